"""A rollout engine that uses transformers' generate, for machines without
vLLM. It has the same interface as VLLMEngine in simko.py."""
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor

from runtime.models import load_model
from runtime.packing import Sample


class SampledLogp(LogitsProcessor):
    """Records the log-probs of the sampled tokens and changes no logits.

    generate calls it before it samples a token, with that token's logits and
    all ids so far. The last id is therefore the token that was sampled from
    the previous call's logits. (generate's own output_logits would keep all
    logits until the end.)"""

    def __init__(self, temperature):
        self.temperature = temperature
        self.columns, self.logp = [], None

    def __call__(self, ids, logits):
        if self.logp is not None:
            self.record(ids)
        self.logp = (logits.float() / self.temperature).log_softmax(-1)
        return logits

    def record(self, ids):
        """Records the log-probs of the last column of ids, which the previous
        logits gave."""
        self.columns.append(self.logp.gather(1, ids[:, -1:]))


class HFEngine:
    """Generates with its own copy of the model in the compute dtype. It
    always starts with the checkpoint's weights and ignores load_format."""
    batch_size = 256  # responses generated at a time

    def __init__(self, cfg, stop_ids, device, dtype, load_format, max_tokens):
        # The model's own attention, unlike packed_attention, masks the prompts' padding.
        self.model = load_model(cfg.model, dtype, attention=None).to(device).eval()
        # Otherwise generate() would take unset options from the checkpoint.
        self.model.generation_config = GenerationConfig()
        self.stop_ids, self.device = stop_ids, device

    @torch.no_grad()
    def generate(self, prompts, n, temperature, top_p, max_tokens,
                 progress, logprobs=True):
        """Returns n Samples for each prompt, ordered by prompt.

        prompts: int64 arrays of token ids. Temperature 0 means greedy
        decoding. progress: wraps an iterable, as tqdm does. If logprobs is
        false, the samples have no log-probs."""
        sampling = {}
        if temperature:
            sampling = {"do_sample": True, "temperature": temperature,
                        "top_p": top_p, "top_k": 0}
        settings = GenerationConfig(
            max_new_tokens=max_tokens, eos_token_id=self.stop_ids,
            pad_token_id=self.stop_ids[0], **sampling)
        stop_ids = torch.tensor(self.stop_ids)
        copies = [i for i in range(len(prompts)) for _ in range(n)]
        samples = []
        for start in progress(range(0, len(copies), self.batch_size), desc="rollout"):
            rows = copies[start:start + self.batch_size]
            unpadded = [torch.from_numpy(prompts[i]) for i in rows]
            left = {"batch_first": True, "padding_side": "left"}  # generate appends
            ids = pad_sequence(unpadded, **left)
            mask = pad_sequence([torch.ones_like(prompt) for prompt in unpadded], **left)
            sampled = SampledLogp(temperature)
            out = self.model.generate(
                ids.to(self.device), attention_mask=mask.to(self.device),
                generation_config=settings,
                logits_processor=[sampled] if logprobs else [])
            logp = np.zeros((len(rows), 0), np.float32)
            if logprobs:
                sampled.record(out)
                logp = torch.cat(sampled.columns, 1).cpu().numpy()
            responses = out[:, ids.shape[1]:].cpu()
            stops = torch.isin(responses, stop_ids)
            for i, response, row_logp, stop in zip(rows, responses, logp, stops):
                length = len(response)
                if stop.any():
                    length = int(stop.int().argmax()) + 1
                samples.append(Sample(
                    i, prompts[i], response[:length].numpy(), row_logp[:length],
                    truncated=not stop.any()))
        return samples

    def sleep(self):
        """Does nothing: this engine keeps its memory."""

    @torch.no_grad()
    def load_weights(self, named_weights):
        """Copies (name, tensor) pairs into the engine's model."""
        own = dict(self.model.named_parameters())
        for name, weight in named_weights:
            own[name].copy_(weight)

    def close(self):
        """Does nothing: this engine has nothing to release."""
