"""Rollouts by transformers' generate, for machines without vLLM: simko.py's `--rollout hf`, VLLMEngine's interface."""
import numpy as np
import torch
from transformers import GenerationConfig

from simko import Sample, load_model, pack, policy_statistics


class HFEngine:
    """Holds its own copy of the model in the compute dtype; reads the checkpoint's weights, then those of each sync."""
    rows = 256  # responses a batch

    def __init__(self, cfg, stop_ids, device, dtype, weights, max_tokens):
        self.model = load_model(cfg.model, dtype).to(device).eval()
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
            self.model.set_attn_implementation("sdpa")
            out = self.model.generate(ids.to(self.device), attention_mask=mask.long().to(self.device),
                                      generation_config=settings)[:, width:].cpu()
            batch = []
            for i, response, stops in zip(rows, out, torch.isin(out, torch.tensor(self.stop_ids))):
                length = int(stops.int().argmax()) + 1 if stops.any() else len(response)
                batch.append(Sample(i, prompts[i], response[:length].numpy(), np.zeros(0, np.float32), not stops.any()))
            if logprobs:
                self.model.set_attn_implementation("packed")
                logp = policy_statistics(self.model, pack(batch, self.device), 1, temperature)[0].float().cpu()
                for sample, part in zip(batch, logp.split([len(s.response_ids) for s in batch])):
                    sample.engine_logp = part.numpy()
            samples += batch
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
