"""SimKO in GRPOTrainer of TRL 1.16. Copy this file and `simko_ratio` into
your project, or import the class:

    from tools.trl_trainer import SimKOTrainer
    SimKOTrainer(model, reward, GRPOConfig(...), dataset).train()

`python -m tools.trl_update` compares its update with one of simko.py.
"""
from trl import GRPOTrainer

from simko import simko_ratio


class SimKOTrainer(GRPOTrainer):
    """GRPOTrainer with the ratio of Eq. 3, for text without images or tools.

    TRL's loss computes exp(logp - old_logp). This class replaces old_logp by
    logp - log(ratio), so that the result is the ratio, with its gradient. TRL's
    clip, normalisation, KL penalty and log stay as they are. All logits are
    held at once; runtime/chunked.py avoids that."""
    alpha, K, q, lambda_top1 = 0.01, 3, 0.8, 1.1
    batch = None  # set while a loss is computed

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        args = self.args
        wrong = {
            "loss_type": args.loss_type not in ("grpo", "dapo", "bnpo", "dr_grpo"),
            "importance_sampling_level": args.importance_sampling_level != "token",
            # This mask would take Eq. 3's ratio for a change of the policy.
            "off_policy_mask_threshold": args.off_policy_mask_threshold is not None,
            # The KL penalty would be multiplied by Eq. 3's ratio.
            "use_bias_correction_kl=True": args.beta and args.use_bias_correction_kl,
            "tools": self.tools,
        }
        if names := [name for name, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                f"SimKOTrainer does not work with this {', '.join(names)}: it needs "
                "a clipped loss of each token's ratio, and text without tools")

    def _compute_loss(self, model, inputs):
        if "tool_mask" in inputs:  # also from a rollout_func's env_mask
            raise ValueError("SimKOTrainer needs responses that the model wrote alone")
        self.batch = dict(inputs)
        try:
            return super()._compute_loss(model, self.batch)
        finally:
            self.batch = None

    def _get_per_token_logps_and_entropies(self, model, ids, attention, n, **rest):
        """Returns logp (B, n), the entropies (B, n) and None. ids: (B, T), of
        which the last n are the response. TRL calls this for the current,
        the old and the reference policy; only the current one has a batch."""
        if self.batch is None:
            return super()._get_per_token_logps_and_entropies(model, ids, attention, n, **rest)

        rest.pop("compute_entropy")
        given = [name for name, value in rest.items()
                 if value is not None and value is not False]
        if given:  # images, and the loss of a mixture of experts
            raise ValueError(f"SimKOTrainer does not pass on {', '.join(given)}")

        # The logits at a token predict the next one.
        logits = model(input_ids=ids, attention_mask=attention, logits_to_keep=n + 1).logits
        log_pi = (logits[:, -n - 1:-1].float() / self.temperature).log_softmax(-1)
        padding = self.batch["completion_mask"] == 0
        logp = log_pi.gather(-1, ids[:, -n:, None])[..., 0]
        # A log-prob at padding can be so low that the ratio is 0 and its log -inf.
        logp = logp.masked_fill(padding, 0)
        topk_logp = log_pi.topk(self.K).values
        is_top1 = logp >= topk_logp[..., 0]

        # tau is a quantile within each response, which may be all padding.
        entropy = -(log_pi.exp() * log_pi).sum(-1)
        nan = float("nan")
        tau = entropy.masked_fill(padding, nan).nanquantile(self.q, 1, keepdim=True)

        # Without this entry, TRL takes the current policy as the old one.
        old_logp = self.batch.get("old_per_token_logps", logp.detach())
        advantage = self.batch["advantages"][:, None]
        ratio = simko_ratio(
            logp, old_logp, topk_logp, is_top1, advantage, entropy > tau,
            self.alpha, self.lambda_top1)
        self.batch["old_per_token_logps"] = logp - ratio.log()
        return logp, entropy, None
