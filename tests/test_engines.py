"""Tests of both engines. After each load of weights they sample from the trainer's policy, their
samples depend only on the seeds, and they mark truncated responses."""
import dataclasses
import itertools
import json
import os
import statistics
import sys
from contextlib import closing, nullcontext
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, XGLMConfig

import simko
from runtime.hf_engine import HFEngine
from runtime.ranks import process_group
from runtime.seeding import seed_everything
from tests import workers
from tests.conftest import (
    CPU, STOPS, VOCABULARY, config, load_samples, move, needs_vllm, plain_logits, plain_model,
    quiet)


def engine_prompts(folder):
    """Returns prompts, of which the last one is long enough for vLLM's prefix cache."""
    return [s.prompt_ids for s in load_samples(folder)] + [np.arange(150) % 50 + 3]


def try_engine(folder, backend):
    """Loads a trainer's weights into an engine, moves all weights and loads them again, and does
    the same with adapters. Writes a report that the tests below check."""
    cfg = config(folder, rollout=backend, temperature=0.9, micro_batch_tokens=4000,
                 max_prompt_length=len(engine_prompts(folder)[-1]))
    report = {}
    with closing(simko.make_engine(cfg, STOPS, CPU, torch.float32, "dummy", 24)) as engine:
        def rollout(*key):
            seed_everything(*key)
            return engine.generate(engine_prompts(folder), 4, cfg.temperature, 1.0, 16, quiet)

        def compare(trainer, samples):
            """Returns the largest difference of log-probs and the mean of log pi + H, whose
            expectation is 0 if the tokens are drawn from pi."""
            entropies, _ = trainer.compute_old_logp(samples, quiet)
            logp = torch.cat([s.old_logp for s in samples])
            engine_logp = torch.cat([torch.from_numpy(s.engine_logp) for s in samples])
            surprise = (logp.sum() + entropies.sum()).item() / len(logp)
            return (logp - engine_logp).abs().max().item(), surprise

        def load_and_move(trainer, name):
            engine.load_weights(trainer.named_weights())
            before = rollout(0, 0, 0)
            report[f"{name}loaded"] = compare(trainer, before)
            move(trainer.policy, 1)
            report[f"{name}stale"] = compare(trainer, before)
            engine.load_weights(trainer.named_weights())

        trainer = simko.Trainer(cfg, CPU, torch.float32)
        report["not loaded"] = compare(trainer, rollout(0, 0, 0))
        load_and_move(trainer, "")
        keys = (0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)
        rollouts = {str(key): rollout(*key) for key in keys}
        rollouts["again"] = rollout(0, 0, 0)
        report["moved"] = [compare(trainer, samples) for samples in rollouts.values()]
        policy = plain_model(folder, 1)

        def likelier(n, temperature, top_p):
            """Returns for each sampled token how many tokens are likelier than it, and their
            probability."""
            found = []
            for s in engine.generate(
                    engine_prompts(folder), n, temperature, top_p, 16, quiet, logprobs=False):
                p = (plain_logits(policy, s) / (temperature or 1)).softmax(-1)
                above = p > p[range(len(p)), s.response_ids][:, None]
                found += zip(above.sum(-1).tolist(), (p * above).sum(-1).tolist())
            return found

        report["greedy"] = likelier(1, 0.0, 1.0)
        report["nucleus"] = likelier(4, 1.0, 0.5)
        report["hot"] = likelier(4, 2.0, 1.0)
        trainer = simko.Trainer(dataclasses.replace(cfg, lora_rank=4), CPU, torch.float32)
        load_and_move(trainer, "LoRA ")
        report["LoRA moved"] = compare(trainer, rollout(0, 0, 0))
        report["samples"] = {
            key: [(s.prompt, s.prompt_ids.tolist(), s.response_ids.tolist(), s.truncated)
                  for s in samples]
            for key, samples in rollouts.items()}
        (folder / f"{backend}.json").write_text(json.dumps(report))


def try_engine_alone(folder, backend):
    with (mock.patch.dict(os.environ), process_group(),
          mock.patch.object(HFEngine, "batch_size", 20)):
        try_engine(folder, backend)


def vllm_engines(bases, log):
    """Tries an engine for each checkpoint in a fork of this process, so that vLLM is imported
    only once."""
    # test_runs.py tests compiled engines, which take twice as long.
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    import vllm.v1.worker.cpu_worker  # noqa: F401
    for base in bases:
        pid = workers.fork(partial(try_engine_alone, base, "vllm"), log)
        if workers.end_of(pid):
            raise SystemExit(1)


@pytest.fixture(scope="session")
def vllm_reports(bases, tmp_path_factory):
    """Writes a report of `try_engine` to the folder of each base."""
    log = tmp_path_factory.mktemp("engines") / "log"
    workers.call(partial(vllm_engines, list(bases.values()), log), log)


@pytest.fixture(scope="session", params=["hf", pytest.param("vllm", marks=needs_vllm)])
def engine(request, base):
    """Returns the report of `try_engine`."""
    if request.param == "vllm":
        request.getfixturevalue("vllm_reports")
    else:
        try_engine_alone(base, "hf")
    return json.loads((base / f"{request.param}.json").read_text())


def test_an_engine_samples_from_the_trainers_policy_after_each_load_of_its_weights(engine):
    gaps, surprises = zip(engine["loaded"], *engine["moved"])
    assert max(gaps) < 1e-4 and engine["stale"][0] > 0.1
    assert abs(statistics.mean(surprises[:-1])) < 0.1  # about 4 standard errors


@needs_vllm
@pytest.mark.usefixtures("vllm_reports")
def test_vllm_has_none_of_the_checkpoints_weights_before_the_first_load(base):
    """A weight that the load misses is then noticed."""
    report = json.loads((base / "vllm.json").read_text())
    assert report["not loaded"][0] > 0.1


def test_an_engine_samples_from_the_policy_with_its_adapters(engine):
    assert max(engine["LoRA loaded"][0], engine["LoRA moved"][0]) < 1e-4
    assert engine["LoRA stale"][0] > 0.1


def test_temperature_0_and_top_p_leave_out_what_they_should_and_nothing_else_does(engine):
    counts, _ = zip(*engine["greedy"])
    assert set(counts) == {0}
    counts, masses = zip(*engine["nucleus"])
    assert max(masses) < 0.5 < 1 <= max(counts)
    counts, _ = zip(*engine["hot"])
    assert max(counts) >= 50  # transformers' default would be a top-k of 50


def test_the_same_seeds_give_the_same_tokens_and_another_seed_step_or_rank_others(engine):
    responses = {key: [row[2] for row in rows] for key, rows in engine["samples"].items()}
    assert responses.pop("again") == responses["(0, 0, 0)"]
    assert len(responses) == 4
    assert all(a != b for a, b in itertools.combinations(responses.values(), 2))


@pytest.mark.parametrize("Config", [BloomConfig, XGLMConfig])
def test_generate_hides_the_padding_also_in_families_with_attentions_of_their_own(
        Config, tmp_path):
    """Their layers ignore which attention transformers is told to use."""
    sizes = {"d_model": 32, "hidden_size": 32, "n_head": 2, "attention_heads": 2,
             "n_layer": 1, "num_layers": 1, "ffn_dim": 32}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Config(vocab_size=64, **sizes)).eval()
    model.save_pretrained(tmp_path)
    engine = HFEngine(config(tmp_path), STOPS, CPU, torch.float32, "auto", 8)
    prompts = [np.arange(3, 3 + length) for length in (2, 9)]
    for sample in engine.generate(prompts, 2, 1.0, 1.0, 6, quiet):
        ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids]))[None]
        with torch.no_grad():
            logp = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        own = logp[-len(sample.response_ids):]
        assert (torch.from_numpy(sample.engine_logp) - own).abs().max() < 1e-4


def test_generate_ends_when_all_responses_have_ended(bases):
    """Otherwise each rollout would take as long as its longest response may be."""
    folder, passes = bases[False], []
    engine = HFEngine(config(folder), [*range(VOCABULARY)], CPU, torch.float32, "auto", 9)
    engine.model.register_forward_hook(lambda *_: passes.append(1))
    samples = engine.generate([np.arange(3, 9)], 4, 1.0, 1.0, 9, quiet)
    assert len(samples) == 4 and len(passes) == 1


@needs_vllm
def test_each_rank_gets_the_responses_to_its_own_prompts_from_the_engine_that_it_shares(
        monkeypatch):
    """Ranks 0 and 1 share an engine, and so do ranks 2 and 3. Rank 0 has one prompt, and each
    further rank has one more."""
    shares = [[np.array([10 * rank + i]) for i in range(rank + 1)] for rank in range(4)]
    monkeypatch.setattr(simko, "gather", lambda _: shares)
    sent = []

    def echo(prompts, *_, **__):
        """Responds to each prompt twice with its own tokens."""
        sent.append([prompt["prompt_token_ids"] for prompt in prompts])
        return [mock.Mock(outputs=[mock.Mock(token_ids=ids)] * 2) for ids in sent[-1]]

    engine = mock.Mock(tp_size=2, stop_ids=STOPS)
    engine.llm.generate = echo
    for rank, prompts in enumerate(shares):
        monkeypatch.setattr(simko.dist, "get_rank", lambda rank=rank: rank)
        samples = simko.VLLMEngine.generate(
            engine, prompts, 2, 1.0, 1.0, 4, quiet, logprobs=False)
        assert [s.response_ids for s in samples] == [ids for ids in prompts for _ in range(2)]
    assert sent[0] == sent[1] == [[0], [10], [11]]
    assert sent[2] == sent[3] == [[20], [21], [22], [30], [31], [32], [33]]


@pytest.fixture
def make_engine(monkeypatch):
    """Returns a function that makes a VLLMEngine on a device, with a mock in vLLM's place."""
    monkeypatch.setitem(sys.modules, "vllm", mock.Mock())
    monkeypatch.setattr(simko, "prepare_vllm", nullcontext)
    monkeypatch.setattr(simko, "kernel_options", lambda cfg: {})
    monkeypatch.setattr(torch.cuda, "empty_cache", sys.modules["vllm"].LLM().empty_cache)

    def make(device, **changes):
        return simko.VLLMEngine(
            config("model", **changes), STOPS, torch.device(device), torch.float32, "dummy", 24)
    return make


def test_an_engine_takes_its_share_of_the_gpu_or_the_memory_that_the_user_names(
        make_engine, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    for device, memory in (
            ("cuda", {"gpu_memory_utilization": 0.4, "enable_sleep_mode": True}),
            ("cpu", {"kv_cache_memory_bytes": 3 * 2**30})):
        make_engine(device, gpu_memory_utilization=0.4, max_prompt_length=100,
                    max_completion_length=10, seed=7)
        options = sys.modules["vllm"].LLM.call_args.kwargs
        assert {name: value for name, value in options.items()
                if "memory" in name or "sleep" in name} == memory
        assert options["max_model_len"] == 100 + 24 and options["seed"] == 7


def test_on_a_gpu_a_sleeping_engine_gets_its_weights_before_its_cache(make_engine):
    """While the trainer gathers its weights for the engine, the cache takes no memory."""
    engine, call = make_engine("cuda"), mock.call
    load = call.collective_rpc("reload_weights", kwargs={"weights_iterator": "weights"})
    forget = call.reset_prefix_cache()
    for _ in range(2):
        engine.llm.reset_mock()
        engine.sleep()
        engine.load_weights("weights")
        assert engine.llm.mock_calls == [
            call.sleep(level=2), call.empty_cache(), call.wake_up(tags=["weights"]), load,
            call.wake_up(tags=["kv_cache"]), forget]
    engine = make_engine("cpu")  # which stays awake, and keeps a copy of a tied head
    engine.llm.reset_mock()
    engine.sleep()
    engine.load_weights("weights")
    assert engine.llm.mock_calls == [load, call.apply_model(simko.repack_heads), forget]


@pytest.mark.parametrize("asleep, error, calls", [
    (False, None, ["llm_engine.engine_core.shutdown"]),
    (True, None, ["wake_up", "llm_engine.engine_core.shutdown"]),
    (True, RuntimeError("out of memory"), ["wake_up"])])
def test_a_sleeping_engine_wakes_to_be_closed_unless_it_cannot(make_engine, asleep, error, calls):
    engine = make_engine("cuda")
    if asleep:
        engine.sleep()
    engine.llm.reset_mock()
    engine.llm.wake_up.side_effect = error
    engine.close()
    assert [name for name, *_ in engine.llm.mock_calls] == calls


def test_responses_come_in_order_keep_their_end_and_say_when_they_were_cut(engine, base):
    samples = engine["samples"]["(0, 0, 0)"]
    prompts = [[i, prompt.tolist()] for i, prompt in enumerate(engine_prompts(base))]
    assert [row[:2] for row in samples] == [prompt for prompt in prompts for _ in range(4)]
    for *_, tokens, truncated in samples:
        assert not set(STOPS).intersection(tokens[:-1])
        assert len(tokens) == 16 or not truncated
        assert truncated == (tokens[-1] not in STOPS)
    assert {row[3] for row in samples} == {False, True}
    assert len({tuple(row[2]) for row in samples}) > 24
