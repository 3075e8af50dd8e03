"""A policy that is a transformers model in this process: building a tiny one, decoding, and scoring tokens.

Invariants
----------
* Decoding (left-padded, cached, finished rows dropped) and scoring (right-padded, one forward) give a token the same
  log-prob, up to float32 rounding: tests hold both to it.
* All randomness is torch's default generator, so a checkpoint that restores it restores the samples.

Positions are rotary in every model here: what counts is their difference, so left padding moves nothing.
The end token is the only stop; text, chats and tools are unknown here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from trainer.policy import Completion, TokenIds


def tiny_qwen3(vocab_size: int, *, hidden: int, layers: int, max_tokens: int) -> PreTrainedModel:
    """Return a randomly initialised Qwen3 in float32: hidden 128 and 3 layers make about 0.55 M parameters."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        # Wide enough to learn copying, and about 0.55 M parameters at hidden 128.
        intermediate_size=hidden * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=max_tokens,
        # For texts of 100 tokens; the usual 10,000 leaves most rotations too slow to tell neighbours apart. Measured on
        # the calculator: a warm-up of 60 steps for 75, and GRPO's gain in 40 steps 0.3 to 0.4 for 0.2 to 0.25.
        rope_theta=500.0,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Qwen3ForCausalLM(config).float().eval()


def token_logprobs(model: Any, token_ids_BT: Tensor, mask_BT: Tensor, temperature: float) -> Tensor:
    """Return the log-prob of each next token with mask 1, and 0 elsewhere; with a gradient if enabled.

    The head runs on the masked-in tokens only: prompts and padding are most of a batch.
    """
    hidden_BTH = model.model(input_ids=token_ids_BT[:, :-1], use_cache=False).last_hidden_state
    sampled_BT = mask_BT.bool()
    logits_NV = model.lm_head(hidden_BTH[sampled_BT]) / (temperature or 1.0)
    targets_N1 = token_ids_BT[:, 1:][sampled_BT][:, None]
    logprobs_N = torch.log_softmax(logits_NV.float(), dim=-1).gather(1, targets_N1)[:, 0]
    return torch.zeros(mask_BT.shape).masked_scatter(sampled_BT, logprobs_N)


class TransformersEngine:
    exact = True

    def __init__(self, model: PreTrainedModel, *, end_id: int, pad_id: int) -> None:
        self._model: Any = model
        self._end_id = end_id
        self._pad_id = pad_id

    def sync(self, model: PreTrainedModel, version: int) -> None:
        self._model = model  # the same process: the weights are shared, not copied

    def complete(self, prompts: Sequence[TokenIds], max_new: int, temperature: float) -> list[Completion]:
        with torch.inference_mode():
            return self._decode(prompts, max_new, temperature)

    def _decode(self, prompts: Sequence[TokenIds], max_new: int, temperature: float) -> list[Completion]:
        completions = [Completion([], []) for _ in prompts]
        if not prompts or max_new < 1:
            return completions
        # A group's prompts are equal at first, and often later: each is read once, then copied for its rows.
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        copies = torch.tensor([distinct[tuple(prompt)] for prompt in prompts])
        ids_BT, attention_BT = self._left_padded(list(distinct))
        cache = DynamicCache()
        logits_BV = self._next_logits(ids_BT, attention_BT, cache)[copies]
        cache.batch_select_indices(copies)
        attention_BT, rows = attention_BT[copies], torch.arange(len(prompts))
        while True:
            ids_B, logprobs_B = _draw(logits_BV, temperature)
            for row, token_id, logprob in zip(
                rows.tolist(), ids_B.tolist(), logprobs_B.tolist(), strict=True
            ):
                completions[row][0].append(token_id)
                completions[row][1].append(logprob)
            max_new -= 1
            unfinished = (ids_B != self._end_id).nonzero()[:, 0]
            if max_new == 0 or len(unfinished) == 0:
                return completions
            if len(unfinished) < len(rows):
                rows, ids_B, attention_BT = rows[unfinished], ids_B[unfinished], attention_BT[unfinished]
                cache.batch_select_indices(unfinished)
            attention_BT = torch.cat([attention_BT, torch.ones_like(attention_BT[:, :1])], dim=1)
            logits_BV = self._next_logits(ids_B[:, None], attention_BT, cache)

    def _left_padded(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[self._pad_id] * (width - len(p)) + list(p) for p in prompts])
        attention_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        return ids_BT, attention_BT

    def _next_logits(self, ids_BT: Tensor, attention_BT: Tensor, cache: DynamicCache) -> Tensor:
        output = self._model(
            input_ids=ids_BT,
            attention_mask=attention_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV


def _draw(logits_BV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs_BV = torch.log_softmax(logits_BV / (temperature or 1.0), dim=-1)
    if temperature == 0.0:
        ids_B = logprobs_BV.argmax(dim=-1)
    else:
        ids_B = torch.multinomial(logprobs_BV.exp(), 1)[:, 0]
    return ids_B, logprobs_BV.gather(1, ids_B[:, None])[:, 0]


def pretrained(name: str, dtype: str) -> PreTrainedModel:
    """Return a causal language model by its Hugging Face name or from a directory, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype)).eval()
