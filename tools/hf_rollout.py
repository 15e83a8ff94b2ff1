"""Rollouts by transformers' generate, for machines without vLLM: simko.py's `--rollout hf`, VLLMEngine's interface."""
import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor

from simko import Sample, load_model


class SampledLogp(LogitsProcessor):
    """Changes nothing, and keeps the log-probs of sampled tokens: each call sees the token that the last one's logits
    led to. generate's own way to return them keeps the logits of the whole response until its end."""

    def __init__(self, temperature):
        self.temperature, self.columns, self.logp = temperature, [], None

    def __call__(self, ids, logits):
        if self.logp is not None:
            self.columns.append(self.logp.gather(1, ids[:, -1:]))
        self.logp = (logits.float() / self.temperature).log_softmax(-1)
        return logits


class HFEngine:
    """Holds its own copy of the model in the compute dtype; reads the checkpoint's weights, then those of each sync."""
    rows = 256  # responses a batch

    def __init__(self, cfg, stop_ids, device, dtype, weights, max_tokens):
        self.model = load_model(cfg.model, dtype).to(device).eval()
        self.model.set_attn_implementation("sdpa")
        self.model.generation_config = GenerationConfig()  # generate() fills what it is not told from the checkpoint's
        self.stop_ids, self.device = stop_ids, device

    @torch.no_grad()
    def generate(self, prompts, n, temperature, top_p, max_tokens, progress, logprobs=True):
        """n Samples for each of the prompts (int arrays), one prompt after another. Greedy at temperature 0."""
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
        settings = GenerationConfig(max_new_tokens=max_tokens, eos_token_id=self.stop_ids,
                                    pad_token_id=self.stop_ids[0], **sampling)
        samples, copies = [], [i for i in range(len(prompts)) for _ in range(n)]
        for start in progress(range(0, len(copies), self.rows), desc="rollout"):
            rows = copies[start:start + self.rows]
            sizes = torch.tensor([len(prompts[i]) for i in rows])
            width = int(sizes.max())
            mask = torch.arange(width) >= width - sizes[:, None]  # padding on the left: generate goes on at the right
            ids = torch.full((len(rows), width), self.stop_ids[0])
            ids[mask] = torch.from_numpy(np.concatenate([prompts[i] for i in rows]))
            sampled = SampledLogp(temperature)
            out = self.model.generate(ids.to(self.device), attention_mask=mask.long().to(self.device),
                                      generation_config=settings, logits_processor=[sampled] if logprobs else [])
            logp = np.zeros((len(rows), 0), np.float32)
            if logprobs:
                sampled(out, sampled.logp)  # the last token's
                logp = torch.cat(sampled.columns, 1).cpu().numpy()
            out = out[:, width:].cpu()
            for i, response, p, stops in zip(rows, out, logp, torch.isin(out, torch.tensor(self.stop_ids))):
                length = int(stops.int().argmax()) + 1 if stops.any() else len(response)
                samples.append(Sample(i, prompts[i], response[:length].numpy(), p[:length], not stops.any()))
        return samples

    def sleep(self):
        """It keeps its memory."""

    @torch.no_grad()
    def sync(self, named_weights):
        """Copies (name, tensor) pairs into its model."""
        own = dict(self.model.named_parameters())
        for name, weight in named_weights:
            own[name].copy_(weight)

    def close(self):
        """Nothing outlives the process."""
