"""Tests of LoRA. The adapters' gradients equal those of a plain PEFT model, and the engine, the
checkpoint and the export get the policy with its adapters. test_engines.py tries both engines."""
import json
import shutil
import weakref
from unittest import mock

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import simko
from runtime import cli, lora
from runtime.checkpoints import checkpoint_state
from runtime.ranks import device_mesh
from tests.conftest import (
    CPU, config, distance, edit_json, load_samples, main, metrics, move, near, plain_logits,
    plain_model, quiet, short_recipe)
from tests.test_trainer import naive_backward, weights_of
from tools import zoo

RANK, ALPHA = 3, 12.0


def lora_config(folder, **changes):
    return config(folder, lora_rank=RANK, lora_alpha=ALPHA, **changes)


def adapters(tensors):
    """Returns the adapters among {name: tensor}, with the names that PEFT gives them."""
    return {
        f"base_model.model.{name}": x
        for name, x in tensors.items()
        if ".lora_" in name
    }


def peft_model(folder, start, *seeds):
    """Returns PEFT's own model in float64, with the adapters `start`, moved by `seeds`."""
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    model = get_peft_model(plain_model(folder), settings)
    for name, x in start.items():
        model.get_parameter(name).data = x.clone()
    for seed in seeds:
        move(model, seed)
    return model.double()


def update(folder, dtype=torch.float64, **changes):
    """Computes the old log-probs with policy 1 and updates policy 2. On two ranks, each has its
    share of the samples. Returns what the tests compare, which can be pickled."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    cfg = lora_config(folder, **changes)
    trainer = simko.Trainer(cfg, CPU, dtype)
    start = weights_of(trainer)
    samples = load_samples(folder)[rank::world]
    move(trainer.policy, 1)
    trainer.compute_old_logp(samples, quiet)
    move(trainer.policy, 2)
    sums = trainer.update(samples, cfg.method, None, quiet)
    gradient = {}
    for name, parameter in trainer.policy.named_parameters():
        if parameter.grad is not None:
            gradient[name] = parameter.grad.full_tensor()
    return {
        "start": adapters(start),
        "gradient": adapters(gradient),
        "all": len(gradient),
        "sums": dict(sums),
        "merged": dict(trainer.named_weights()),
        "sent": sent_to_merge(cfg),
    }


def sent_to_merge(cfg):
    """Returns {collective: calls} of merging one layer, which is so large that DTensor by itself
    would sum whole products over the ranks."""
    shapes = {"base_layer": (1024, 1024), "lora_A.default": (32, 1024),
              "lora_B.default": (1024, 32)}
    weights = {}
    for part, shape in shapes.items():
        weights[f"layer.{part}.weight"] = distribute_tensor(
            torch.ones(shape), device_mesh(CPU), [Shard(0)])
    with CommDebugMode() as sent:
        list(lora.merged(weights, cfg))
    return {str(collective): calls for collective, calls in sent.get_comm_counts().items()}


@pytest.mark.parametrize("changes", [
    {"gradient_checkpointing": False},
    {"beta": 0.3, "temperature": 0.8, "loss_type": "dapo"},
], ids=["grpo", "kl"])
def test_adapters_have_the_gradient_of_a_plain_peft_model(base, group, changes):
    with mock.patch.object(simko, "load_model", wraps=simko.load_model) as load_model:
        seen = update(base, **changes)
    assert load_model.call_count == 1  # the KL penalty needs no second model
    policy = peft_model(base, seen["start"], 1, 2)
    old = peft_model(base, seen["start"], 1)
    branches, _ = naive_backward(lora_config(base, **changes), plain_model(base), old, policy)
    want = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
    assert distance(seen["gradient"], want) < 1e-6
    # Two blocks have seven linear layers each, with two matrices. Nothing else is trained.
    assert len(want) == seen["all"] == 2 * 7 * 2
    assert len(branches) == 5
    assert min(branches.values()) >= 3


def test_two_processes_have_the_gradient_of_one(base, two_ranks, group):
    one = update(base)
    two = two_ranks["lora", str(base)]
    for name, x in one["start"].items():
        assert torch.equal(x, two["start"][name])
    assert distance(two["gradient"], one["gradient"]) < 1e-6
    assert distance(two["merged"], one["merged"]) < 1e-12
    # The ranks gather A. They do not send whole products B A.
    assert two["sent"] == {"c10d_functional.all_gather_into_tensor": 1}
    near(two["sums"], one["sums"], 1e-5)


@pytest.fixture(scope="module", params=["untied", "tied", "biases, in bfloat16"])
def checkpoint(request, bases, tmp_path_factory):
    """Returns the folder of a checkpoint, which also contains samples."""
    if request.param != "biases, in bfloat16":
        return bases[request.param == "tied"]
    folder = zoo.save("qwen2", tmp_path_factory.mktemp("qwen2"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    shutil.copy(bases[False] / "samples.json", folder)
    return folder


def test_the_merged_weights_are_the_policy(checkpoint, group):
    """They have the names and the log-probs of a model without adapters."""
    trainer = simko.Trainer(lora_config(checkpoint), CPU, torch.float64)
    move(trainer.policy, 1)
    samples = load_samples(checkpoint)
    trainer.compute_old_logp(samples, quiet)
    plain = plain_model(checkpoint)
    own = dict(plain.named_parameters())
    weights = dict(trainer.named_weights())
    assert weights.keys() == own.keys()
    changed = 0
    for name, weight in weights.items():
        changed += not torch.equal(own[name], weight)
        own[name].data = weight
    assert changed == 7 * 2
    for sample in samples:
        ids = sample.response_ids
        log_pi = plain_logits(plain, sample).log_softmax(-1)
        near(sample.old_logp, log_pi[range(len(ids)), ids].detach(), 1e-6)


def test_an_export_does_not_hold_all_weights_in_two_dtypes(tmp_path):
    """Rank 0 converts them one after another, and each is freed when the next one comes."""
    weights = {name: torch.ones(3) for name in "abcd"}
    before = [weakref.ref(weight) for weight in weights.values()]
    alive = []
    for _, weight in lora.merged(weights, lora_config(tmp_path)):
        alive.append(sum(own() is not None for own in before))
        weight = weight.to(torch.bfloat16)
    assert alive == [4, 3, 2, 1]


def test_frozen_weights_are_in_the_dtype_of_the_computation_and_have_no_optimizer_state(
        base, group):
    trainer = simko.Trainer(lora_config(base, learning_rate=1e-3), CPU, torch.bfloat16)
    before = {}
    for name, parameter in trainer.policy.named_parameters():
        before[name] = parameter.detach().full_tensor().clone()
    samples = load_samples(base)
    trainer.compute_old_logp(samples, quiet)
    trainer.update(samples, "simko", None, quiet)
    for name, parameter in trainer.policy.named_parameters():
        learns = ".lora_" in name
        assert parameter.dtype == (torch.float32 if learns else torch.bfloat16)
        assert parameter.requires_grad == learns == (parameter in trainer.optimizer.state)
        # A has a gradient of 0 as long as B is 0, and AdamW then leaves it alone.
        moved = not torch.equal(parameter.full_tensor(), before[name])
        assert moved == ("lora_B" in name), name
    for name, buffer in trainer.policy.named_buffers():
        assert buffer.dtype == torch.float32, name  # such as the frequencies of rotary positions


# ----------------------------------------------------------------------------------- whole runs
LORA = ["--lora-rank", "2", "--lora-alpha", "8"]


@pytest.fixture(scope="module")
def runs(taught, tmp_path_factory):
    """Returns the folders of a run of three steps and of one that stopped after the second."""
    folder = tmp_path_factory.mktemp("lora")
    straight, stopped = folder / "straight", folder / "stopped"
    options = [
        *LORA, "--save-steps", 1, "--learning-rate", 2e-2, "--warmup-steps", 5, "--beta", 0.01]
    main(short_recipe(taught, straight, *options, "--steps", 3))
    main(short_recipe(taught, stopped, *options, "--steps", 2))
    main(short_recipe(taught, stopped, *options, "--steps", 3))
    return straight, stopped


def test_a_run_goes_on_bit_for_bit(runs):
    straight, stopped = runs
    assert metrics(straight) == metrics(stopped)
    for path in (
            "hf/model.safetensors",
            "hf/config.json",
            "adapter/adapter_model.safetensors",
            "adapter/adapter_config.json"):
        assert (straight / path).read_bytes() == (stopped / path).read_bytes()
    rows = metrics(straight)
    assert [row["step"] for row in rows] == [1, 2, 3]
    # Its warm-up ends with the sixth of two updates a step.
    near([row["learning_rate"] for row in rows], [2e-2 * 2 / 6, 2e-2 * 4 / 6, 2e-2])
    for row in rows:
        assert row["grad_norm"] > 0
        assert row["logp_gap"] < 1e-5


def test_a_checkpoint_holds_adapters_and_optimizer_alone(runs, taught):
    folder = runs[0] / "checkpoints/step_000003"
    names = FileSystemReader(folder).read_metadata().state_dict_metadata
    weights = [name for name in names if name.startswith("model.")]
    assert len(weights) == 2 * 7 * 2
    for name in weights:
        assert ".lora_" in name
    moments = [name for name in names if name.startswith("optimizer.state.")]
    assert len(moments) == 3 * len(weights)  # AdamW's two, and the number of steps
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < (taught / "base/model.safetensors").stat().st_size


def test_a_checkpoint_leaves_out_a_tied_head(base, group):
    trainer = simko.Trainer(lora_config(base), CPU, torch.float32)
    names = checkpoint_state(trainer)["model"]
    assert len(names) == 2 * 7 * 2
    for name in names:
        assert ".lora_" in name


def test_the_exported_model_and_the_exported_adapter_agree(runs, taught):
    def load(path):
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    ids = torch.tensor([[1, 5, 8, 4, 9, 7, 3]])
    with torch.no_grad():
        before = load(taught / "base")(ids).logits
        merged = load(runs[0] / "hf")(ids).logits
        model = PeftModel.from_pretrained(load(taught / "base"), runs[0] / "adapter")
        adapted = model(ids).logits
    near(adapted, merged, 1e-4)
    assert (merged - before).abs().max() > 0.01
    named = json.loads((runs[0] / "adapter/adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == str(taught / "base")
    assert named["task_type"] == "CAUSAL_LM"


def test_a_generation_config_that_transformers_cannot_save_does_not_stop_the_export(
        taught, tmp_path):
    shutil.copytree(taught, tmp_path / "taught")
    file = tmp_path / "taught/base/generation_config.json"
    edit_json(file, do_sample=False, top_p=0.5)
    main(short_recipe(tmp_path / "taught", tmp_path / "run", *LORA, "--steps", 1))
    assert (tmp_path / "run/hf/model.safetensors").exists()
    assert (tmp_path / "run/adapter/adapter_model.safetensors").exists()


def test_an_adapter_is_written_whole_or_not_at_all(taught, tmp_path):
    arguments = short_recipe(taught, tmp_path, *LORA, "--steps", 1)

    def cut_off(folder, **options):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{")
        (folder / "part").touch()
        raise KeyboardInterrupt

    for before in (False, True):
        with (mock.patch.object(PreTrainedModel, "save_pretrained", side_effect=cut_off),
              pytest.raises(KeyboardInterrupt)):
            main(arguments)
        assert (tmp_path / "adapter").exists() == before
        assert not (tmp_path / "hf").exists()
        main(arguments)
        names = {path.name for path in (tmp_path / "adapter").iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names
        assert "part" not in names
        assert not list(tmp_path.glob("*.tmp"))
        shutil.rmtree(tmp_path / "hf")  # as if the run had been killed between the two


def test_a_model_that_peft_cannot_adapt_is_refused():
    outcome = zoo.outcome("falcon-h1", "hf", "--lora-rank", "2", *zoo.ONE_BY_ONE)
    assert "--lora-rank: PEFT cannot adapt" in outcome


@pytest.mark.parametrize("flags, words", [
    (["--lora-rank", "-1"], "--lora-rank must be at least 0"),
    (["--lora-rank", "1.5"], "--lora-rank"),
    (["--lora-rank", "4", "--lora-alpha", "0"], "--lora-alpha must be above 0"),
    (["--lora-alpha", "8"], "--lora-alpha needs a --lora-rank")])
def test_what_cannot_be_is_refused(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse_config(["train", *flags], simko.Config)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("flags, words", [
    ([], "--lora-rank was 2, is 0"),
    (["--lora-rank", "4", "--lora-alpha", "8"], "--lora-rank was 2, is 4"),
    (["--lora-rank", "2"], "--lora-alpha was 8.0, is 32.0")])
def test_a_run_does_not_go_on_with_another_rank(runs, taught, flags, words):
    options = ["--save-steps", 1, "--learning-rate", 1e-2, "--beta", 0.01, "--steps", 3]
    with pytest.raises(SystemExit) as stop:
        main(short_recipe(taught, runs[0], *flags, *options))
    message = str(stop.value.code)
    assert words in message
    assert "choose another --output-dir" in message


def first_step(model, trained):
    """Returns the mean |change of log pi| in a first step of AdamW, in units of its rate.
    trained: the names of the parameters that it may move."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(94, (32, 24), generator=generator)
    A = torch.randn(32, 1, generator=generator)

    def log_probs():
        log_pi = model(tokens[:, :-1]).logits.log_softmax(-1)
        return log_pi.gather(-1, tokens[:, 1:, None])[..., 0]

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    moved = [p for p in model.parameters() if p.requires_grad]
    rate = 1e-6
    optimizer = torch.optim.AdamW(moved, rate, weight_decay=0, eps=1e-15)
    old = log_probs()
    (-(old * A).mean()).backward()
    optimizer.step()
    with torch.no_grad():
        return (log_probs() - old).abs().mean().item() / rate


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_a_first_step_of_lora_moves_the_policy_alpha_over_root_3_n_times_as_far(n):
    """Checks a claim of docs/performance.md: n is the number of a layer's inputs, the comparison
    is with full fine-tuning of the same layers at the same rate, and the rank does not matter."""
    alpha = 32
    shape = LlamaConfig(
        vocab_size=94, hidden_size=n, intermediate_size=3 * n, num_hidden_layers=2,
        num_attention_heads=n // 32, tie_word_embeddings=False, initializer_range=n**-0.5)

    def model():
        torch.manual_seed(0)
        return LlamaForCausalLM(shape)

    linear = [f"{name}.weight" for name, layer in model().named_modules()
              if isinstance(layer, torch.nn.Linear) and name != "lm_head"]
    full = first_step(model(), linear)
    for rank in (8, 32):
        adapted = model()
        lora.add_adapters(
            adapted, simko.Config(lora_rank=rank, lora_alpha=alpha), torch.float32)
        trained = [name for name, _ in adapted.named_parameters() if ".lora_" in name]
        share = first_step(adapted, trained) / full
        print(f"n {n}, rank {rank}: {share:.3f} times as far")
        assert share == pytest.approx(alpha / (3**0.5 * n), rel=0.15)
