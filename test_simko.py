"""The equations: a second file to read, beside simko.py and the paper.

It begins with one token whose gradients fit on a line and can be checked
by hand. The tests after it check simko.py against values that are worked
out by hand or computed naively from the paper's formulas. The tests of
the loss compare gradients as well. The last one compares a whole update
of `Trainer` with the paper's objective.

    python -m pytest test_simko.py -s      # -s shows what the tests print

Nothing is downloaded and vLLM is not needed. tests/ holds all other tests.
"""
import itertools
import os
import statistics
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import simko
from runtime.log import Progress
from runtime.packing import Sample
from runtime.ranks import process_group

settings.register_profile("simko", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("simko")
seeds = st.integers(0, 2**32 - 1)
torch.set_num_threads(1)  # more are slower on tensors this small


def randn(*shape, seed=0, dtype=torch.float64):
    """Normal numbers that depend on (shape, seed) and nothing else."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype)


def near(got, want, tolerance=1e-12):
    """Fails unless every entry is right up to `tolerance * (1 + |want|)`."""
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def gradient(output, leaf):
    """The gradient of the sum of `output`, in leaf's shape."""
    return torch.autograd.grad(output.sum(), leaf, retain_graph=True)[0]


# ------------------------------------------------------------ by hand
def test_one_token_of_a_vocabulary_of_four():
    """A correct response takes the second candidate, at gamma = 1.

    GRPO's gradient of log pi(y) with respect to the logits is e_y - pi.
    SimKO with K = 3 and alpha = 0.3 takes 0.3 from y's entry in e_y and
    gives 0.1 to each of the three most probable candidates. Since y is
    among them, e_tilde = (0.1, 0.7 + 0.1, 0.1, 0). The gradient is
    e_tilde - pi: y's logit rises less, and those of the first and third
    candidates fall less.
    """
    pi = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    e_y = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    e_tilde = torch.tensor([0.1, 0.8, 0.1, 0.0], dtype=torch.float64)

    z = pi.log().requires_grad_()
    log_pi = z.log_softmax(0)
    ratio = simko.simko_ratio(
        logp=log_pi[1],
        old_logp=pi[1].log(),
        topk_logp=log_pi[:3],
        is_top1=torch.tensor(False),
        advantage=torch.tensor(1.0),
        gate=torch.tensor(True),
        alpha=0.3,
        lambda_top1=1.1,
    )
    autograd = gradient(ratio, z)

    print()
    for name, vector in {
        "GRPO      e_y - pi    ": e_y - pi,
        "SimKO     e_tilde - pi": e_tilde - pi,
        "autograd  simko_ratio ": autograd,
    }.items():
        print(name, *(f"{x:+.1f}" for x in vector.tolist()))
    near(autograd, e_tilde - pi)
    near(autograd, torch.tensor([-0.3, 0.5, -0.1, -0.1], dtype=torch.float64))


# ---------------------------------------------------------- the ratio
def naive_ratio(z, z_old, y, advantage, gate, alpha, K, lambda_top1):
    """Eq. 3 at one token as the paper prints it, with the old policy's
    probabilities of the top K. z, z_old: (V,) logits."""
    pi = z.softmax(0)
    old = z_old.softmax(0).detach()
    gamma = pi[y] / old[y]
    top = pi.topk(K).indices.tolist()
    if gate and advantage > 0:  # Eq. 6
        gamma_k = [pi[k] / old[k] for k in top]
        shared = sum((gamma / g).detach() * g for g in gamma_k)
        return (1 - alpha) * gamma + alpha / K * shared
    if gate and advantage < 0 and y == top[0]:  # Sec. 4.3
        return lambda_top1 * gamma
    return gamma


def real_ratio(z, z_old, y, advantage, gate, alpha, K, lambda_top1):
    """simko_ratio of (N,) tokens. z, z_old: (N, V) logits."""
    log_pi = z.log_softmax(-1)
    old_log_pi = z_old.log_softmax(-1)
    return simko.simko_ratio(
        log_pi.gather(1, y[:, None])[:, 0],
        old_log_pi.gather(1, y[:, None])[:, 0],
        log_pi.topk(K, -1).values,
        y == z.argmax(-1),
        advantage,
        gate,
        alpha,
        lambda_top1,
    )


@given(V=st.integers(1, 9), K=st.integers(1, 9), alpha=st.floats(0, 1),
       lambda_top1=st.floats(1, 3), seed=seeds)
def test_the_ratio_is_the_papers_whose_old_top_k_cancels(V, K, alpha, lambda_top1, seed):
    K = min(K, V)
    z = randn(24, V, seed=seed).requires_grad_()
    z_old = randn(24, V, seed=seed) + 0.7 * randn(24, V, seed=seed + 1)
    rank_1, any_token = z.argmax(-1), randn(24, V, seed=seed + 3).argmax(-1)
    y = torch.where(randn(24, seed=seed + 2) > 0, rank_1, any_token)
    advantage = randn(24, seed=seed + 4).round()
    gate = randn(24, seed=seed + 5) > -0.5
    weight = randn(24, seed=seed + 6)

    real = real_ratio(z, z_old, y, advantage, gate, alpha, K, lambda_top1)
    tokens = zip(z, z_old, y, advantage, gate)
    naive = torch.stack([naive_ratio(*token, alpha, K, lambda_top1) for token in tokens])
    near(real, naive)
    near(gradient(real * weight, z), gradient(naive * weight, z))


@given(V=st.integers(2, 12), K=st.integers(1, 12), alpha=st.floats(0, 1),
       inside=st.booleans(), seed=seeds)
def test_eq6_has_the_gradient_of_eq5_and_the_value_of_gamma(V, K, alpha, inside, seed):
    K = min(K, V)
    z = randn(1, V, seed=seed).requires_grad_()
    z_old = randn(1, V, seed=seed) + 0.5 * randn(1, V, seed=seed + 1)
    order = z.detach()[0].argsort(descending=True)
    candidates = order[:K] if inside or K == V else order[K:]
    y = candidates[seed % len(candidates)].reshape(1)
    yes = torch.tensor([True])
    ratio = real_ratio(z, z_old, y, torch.ones(1), yes, alpha, K, lambda_top1=7.0)

    pi = z.detach().softmax(-1)
    logp, old_logp = z.log_softmax(-1)[:, y], z_old.log_softmax(-1)[:, y]
    gamma = (logp - old_logp).exp().detach()[0]
    e_y = F.one_hot(y, V).double()
    e_k = F.one_hot(order[:K], V).double().sum(0)
    e_tilde = (1 - alpha) * e_y + alpha / K * e_k
    assert torch.equal(ratio.detach(), gamma)
    near(gradient(ratio, z), gamma * (e_tilde - pi))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(V=st.integers(2, 9), alpha=st.floats(0.01, 1), seed=seeds)
def test_alpha_0_with_lambda_1_and_q_1_are_grpo_bit_for_bit(dtype, V, alpha, seed):
    z = randn(32, V, seed=seed, dtype=dtype).requires_grad_()
    z_old = randn(32, V, seed=seed + 1, dtype=dtype)
    y = randn(32, V, seed=seed + 2).argmax(-1)
    A = randn(32, seed=seed + 3, dtype=dtype).round()
    entropy = torch.distributions.Categorical(logits=z.detach().float()).entropy()
    lengths = torch.tensor([20, 12])
    half = entropy > simko.entropy_threshold(entropy, lengths, q=0.5)
    none = entropy > simko.entropy_threshold(entropy, lengths, q=1.0)
    assert half.any() and not none.any()

    def loss_and_gradient(ratio):
        loss = simko.clipped_loss(ratio, A, 0.2, 0.2)
        return torch.cat([loss.detach(), gradient(loss, z).flatten()])

    logp = z.log_softmax(-1).gather(1, y[:, None])[:, 0]
    old_logp = z_old.log_softmax(-1).gather(1, y[:, None])[:, 0]
    grpo = loss_and_gradient((logp - old_logp).exp())
    alpha_0 = real_ratio(z, z_old, y, A, half, alpha=0.0, K=2, lambda_top1=1.0)
    q_1 = real_ratio(z, z_old, y, A, none, alpha=alpha, K=2, lambda_top1=1.5)
    assert torch.equal(loss_and_gradient(alpha_0), grpo)
    assert torch.equal(loss_and_gradient(q_1), grpo)


# ----------------------------------------------------------- the clip
def test_lambda_acts_before_the_clip():
    """Two wrong rank-1 tokens with gamma = 0.75 and 0.7, lambda = 1.1.

    lambda * gamma is 0.825 and 0.77. The first lies within the clip's
    interval and keeps its gradient. The second is below it, so it counts
    as 0.8 and has no gradient. If lambda came after the clip, both would
    be 1.1 * 0.8, without a gradient.
    """
    gamma = torch.tensor([0.75, 0.7], dtype=torch.float64)
    logp = gamma.log().requires_grad_()
    zero = torch.zeros(2, dtype=torch.float64)
    yes = torch.tensor([True, True])
    A = -torch.ones(2, dtype=torch.float64)
    ratio = simko.simko_ratio(
        logp, zero, zero[:, None], yes, A, yes, alpha=0.5, lambda_top1=1.1
    )
    loss = simko.clipped_loss(ratio, A, 0.2, 0.2)
    near(loss, torch.tensor([0.825, 0.8], dtype=torch.float64))
    want = torch.tensor([0.825, 0.0], dtype=torch.float64)
    near(gradient(loss, logp), want)


@given(gamma=st.floats(0.1, 3), A=st.floats(-2, 2),
       low=st.floats(0.05, 0.9), high=st.floats(0.05, 1))
def test_the_clip_stops_gains_beyond_the_interval_and_nothing_else(gamma, A, low, high):
    leaf = torch.tensor(gamma, dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor(A, dtype=torch.float64)
    loss = simko.clipped_loss(leaf, advantage, low, high)
    value, slope = -gamma * A, -A
    if A > 0 and gamma > 1 + high:
        value, slope = -(1 + high) * A, 0.0
    if A < 0 and gamma < 1 - low:
        value, slope = -(1 - low) * A, 0.0
    near(loss.item(), value)
    near(gradient(loss, leaf).item(), slope)


# -------------------------------------------- advantage, gate, KL, pass@k
@given(size=st.integers(2, 11), groups=st.integers(1, 4), seed=seeds)
def test_advantages_are_rewards_against_their_group(size, groups, seed):
    rewards, want = randn(groups * size, seed=seed).round(), []
    for group in rewards.view(groups, size).tolist():
        mean = statistics.mean(group)
        deviation = statistics.stdev(group) + 1e-6
        want += [(reward - mean) / deviation for reward in group]
    want = torch.tensor(want, dtype=torch.float64)
    near(simko.group_advantage(rewards, size), want, 1e-9)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
       eighths=st.integers(0, 8), seed=seeds)
def test_tau_is_the_quantile_within_each_response(lengths, eighths, seed):
    q = eighths / 8
    entropy = (randn(sum(lengths), seed=seed) * 4).round() / 4  # with ties
    tau = [np.quantile(row, q) for row in entropy.split(lengths)]
    tau = torch.from_numpy(np.repeat(tau, lengths))
    assert torch.equal(simko.entropy_threshold(entropy, torch.tensor(lengths), q), tau)


@pytest.mark.parametrize("entropy, lengths, want", [
    ([1, 5, 2, 4, 3, 0], [6], [0, 1, 0, 0, 0, 0]),
    ([1, 5, 2, 5, 3, 0], [6], [0] * 6),  # tau(0.8) is the tie
    ([.3] * 7, [7], [0] * 7),  # all tie, so none is above
    ([1, 2, 3], [1, 1, 1], [0, 0, 0]),  # each is its own quantile
    ([1, 9, 2, 3], [2, 2], [0, 1, 0, 1]),
])
def test_gates_worked_out_by_hand(entropy, lengths, want):
    entropy, lengths = torch.tensor(entropy).float(), torch.tensor(lengths)
    gate = entropy > simko.entropy_threshold(entropy, lengths, q=0.8)
    assert gate.int().tolist() == want


@given(V=st.integers(1, 9), seed=seeds)
def test_the_kl_penalty_is_never_negative_and_right_on_average(V, seed):
    log_pi = randn(V, seed=seed).log_softmax(0)
    log_ref = randn(V, seed=seed + 1).log_softmax(0)
    penalty = simko.kl_penalty(log_pi, log_ref)
    kl = F.kl_div(log_ref, log_pi, log_target=True, reduction="sum")
    assert (penalty >= 0).all()
    near((log_pi.exp() * penalty).sum(), kl)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n in range(1, 9):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations(range(n), k))
            hits = sum(min(subset) < c for subset in subsets)  # samples 0 to c - 1 are right
            assert simko.pass_at_k(n, torch.tensor([c]), k).item() == hits / len(subsets)


# ------------------------------------------------------------- the update
def naive_objective(model, samples, cfg):
    """The objective of Sec. 2 with the ratio of Eq. 3, one response and one
    token at a time. It holds for the first update after a rollout, where
    pi_old is pi and the clip cuts nothing."""
    objective = 0
    for s in samples:
        ids = torch.from_numpy(np.concatenate([s.prompt_ids, s.response_ids]))
        z = model(ids[None]).logits[0, len(s.prompt_ids) - 1:-1]
        entropy = torch.distributions.Categorical(logits=z.detach()).entropy()
        tau = np.quantile(entropy, cfg.q)
        for z_l, h, y in zip(z, entropy, s.response_ids):
            ratio = naive_ratio(
                z_l, z_l, y, s.advantage, h > tau, cfg.alpha, cfg.K, cfg.lambda_top1)
            objective += ratio * s.advantage / len(s.response_ids)
    return objective / len(samples)


@pytest.mark.parametrize("tokens", [1, 15, 1000])
def test_an_update_has_the_papers_gradient_in_one_micro_batch_or_many(tokens, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    size = {"vocab_size": 7, "hidden_size": 16, "intermediate_size": 16}
    shape = LlamaConfig(**size, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(shape).save_pretrained(tmp_path)
    rng, samples = np.random.default_rng(0), []
    for length, A in zip([1, 5, 2, 9, 9], [0.9, -0.4, 1.3, 0.7, -1.1]):
        prompt, response = rng.integers(7, size=3), rng.integers(7, size=length)
        engine_logp = np.zeros(length, np.float32)
        samples.append(Sample(0, prompt, response, engine_logp, False, advantage=A))

    cfg = simko.Config(
        model=str(tmp_path), micro_batch_tokens=tokens, alpha=0.3,
        lambda_top1=1.5, q=0.5, max_grad_norm=1e9)
    model = LlamaForCausalLM.from_pretrained(tmp_path).double()
    (-naive_objective(model, samples, cfg)).backward()
    quiet = Progress(shown=False)
    # process_group sets environment variables, which the patch removes again.
    with mock.patch.dict(os.environ), process_group() as device:
        trainer = simko.Trainer(cfg, device, torch.float64)
        trainer.compute_old_logp(samples, quiet)
        trainer.update(samples, "simko", None, quiet)
        for name, p in trainer.policy.named_parameters():
            want = model.get_parameter(name).grad
            # Trainer accumulates gradients in float32.
            near(p.grad.full_tensor().double(), want, 1e-5)
