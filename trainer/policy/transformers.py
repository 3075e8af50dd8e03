"""A policy that is a transformers model in this process: building a tiny one, decoding, and scoring tokens.

    complete ─▶ read what is new of each distinct prompt ─▶ copy to the rows of its group ─▶ draw, token by token
                         ▲                                                                        │
                         └─────── keys and values of the last call, for the next turn ◀───────────┘

Invariants
----------
* Decoding (cached, rows of any length side by side, finished rows set aside) and scoring (one forward) give a token
  the same log-prob, up to rounding: tests hold both to it.
* Keys and values of a token stand in the column of its position, whatever the other rows hold. So a row never moves
  to make room, no padding is seen, and a token at position p sees the columns up to p.
* What a row draws depends on its place in the call and on the step, not on how the rows were read or set aside. All
  randomness is torch's default generator of the CPU, wherever the model is: a checkpoint that restores it restores
  the samples.
* At most `max_rows` sequences are decoded at once, and at most as many are kept for the next turn.

For models with full attention and logits that are linear in the last hidden state, as Qwen's and Llama's are, bare or
under a LoRA; others are refused. An end token is the only stop; text, chats and tools are unknown here.
"""

from __future__ import annotations

import bisect
import inspect
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import Cache

from trainer.errors import SettingsError
from trainer.policy import Completion, TokenIds

# Read in one forward, padding included: enough to keep a GPU busy, and few enough that the activations of a tiny model
# stay in a CPU's caches.
READ_AT_ONCE_TOKENS = 4096
# Settings of models that do not see all columns, or whose logits are not the head's: they would be decoded wrongly.
UNSUPPORTED = (
    *("sliding_window", "attention_chunk_size"),
    *("final_logit_softcapping", "logits_scaling", "logit_scale"),
)


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


def pretrained(name: str, dtype: str) -> PreTrainedModel:
    """Return a causal language model by its Hugging Face name or from a directory, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype)).eval()


# --- scoring ----------------------------------------------------------------------------------------------------------


def token_logprobs(model: Any, token_ids_BT: Tensor, mask_BT: Tensor, temperature: float) -> Tensor:
    """Return the log-prob of each next token with mask 1, and 0 elsewhere; with a gradient if enabled.

    In float32, on the mask's device. The head runs on the masked-in tokens only: prompts and padding are most of a
    batch.
    """
    body, head = _body_and_head(model)
    device = body.device
    token_ids_BT, sampled_BT = token_ids_BT.to(device), mask_BT.to(device).bool()
    hidden_BTH = body(input_ids=token_ids_BT[:, :-1], use_cache=False).last_hidden_state
    logits_NV = head(hidden_BTH[sampled_BT]).float() / (temperature or 1.0)
    targets_N1 = token_ids_BT[:, 1:][sampled_BT][:, None]
    logprobs_N = torch.log_softmax(logits_NV, dim=-1).gather(1, targets_N1)[:, 0]
    zeros_BT = torch.zeros(sampled_BT.shape, device=device)
    return zeros_BT.masked_scatter(sampled_BT, logprobs_N).to(mask_BT.device)


def _body_and_head(model: Any) -> tuple[Any, Any]:
    """Return what makes hidden states of ids, and what makes logits of those."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # a LoRA lives in the layers themselves: this is the adapted model
    return model.base_model, model.get_output_embeddings()


# --- decoding ---------------------------------------------------------------------------------------------------------


class TransformersEngine:
    def __init__(
        self, model: Any, *, end_id: int | Collection[int], pad_id: int, max_rows: int = 512
    ) -> None:
        self._end_ids = torch.tensor([end_id] if isinstance(end_id, int) else sorted(end_id))
        self._pad_id = pad_id
        self._max_rows = max_rows
        self.sync(model, 0)

    def sync(self, model: Any, version: int) -> None:
        # The same process: the weights are shared, not copied. What was read with the old ones is of no more use.
        _refuse_unless_supported(model)
        self._model = model
        self._body, self._head = _body_and_head(model)
        # Renamed in the course of transformers 5.
        names = inspect.signature(self._body.forward).parameters
        self._cache_argument = "cache" if "cache" in names else "past_key_values"
        # In bfloat16, a token read alone and one read among others differ in the second digit.
        self.exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())
        self._kept: _Kept | None = None

    def complete(self, prompts: Sequence[TokenIds], max_new: int, temperature: float) -> list[Completion]:
        completions = [Completion([], []) for _ in prompts]
        if not prompts or max_new < 1:
            return completions
        kept, self._kept = self._kept, None
        changes = _changes(self._model)
        if kept and kept.changes != changes:
            kept = None
        parts = _parts_of_like_length(prompts, self._max_rows)
        was_training = self._model.training
        self._model.eval()  # no dropout; and a model that saves memory in training would read no cache
        try:
            with torch.inference_mode():
                for part in parts:
                    rows = self._read([tuple(prompts[i]) for i in part], kept, max_new)
                    self._decode(rows, [completions[i] for i in part], max_new, temperature)
        finally:
            self._model.train(was_training)
        if len(parts) == 1:
            sequences = [(*prompts[i], *completions[i].token_ids) for i in rows.places_B.tolist()]
            self._kept = _Kept(sequences, rows.cache, changes)
        return completions

    def _read(self, prompts: Sequence[tuple[int, ...]], kept: _Kept | None, max_new: int) -> _Rows:
        """Have the model read the prompts: equal ones once, and nothing that is kept from the last call."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(prompt, []).append(place)
        # Those with about as much to read stand together: they will be read in one forward.
        plans = sorted(((kept.plan(p) if kept else _Plan(p, 0, 0)) for p in places), key=_Plan.n_new)

        width = max(map(len, prompts))
        cache = _Cache(len(plans), width + max_new - 1)  # the last token is drawn, and never read
        if kept:
            cache.copy(kept.cache, [plan.slot for plan in plans], max(plan.n_known for plan in plans))
        hidden_BH = torch.cat([self._read_block(cache, plans, *block) for block in _blocks(plans)])

        groups = [places[plan.prompt] for plan in plans]
        slots = [slot for slot, group in enumerate(groups) for _ in group]
        if len(slots) > len(plans):
            read, cache = cache, _Cache(len(slots), width + max_new - 1)
            cache.copy(read, slots, width)
        return _Rows(
            cache,
            hidden_BH[slots],
            places_B=torch.tensor(list(itertools.chain(*groups))),
            lengths_B=torch.tensor([len(plans[slot].prompt) for slot in slots]),
        )

    def _read_block(self, cache: _Cache, plans: Sequence[_Plan], start: int, stop: int) -> Tensor:
        """Have the model read what is new of these prompts; return the hidden state of the last token of each."""
        new = [plan.prompt[plan.n_known :] for plan in plans[start:stop]]
        width = max(map(len, new))
        ids_BQ = torch.tensor([[*ids, *[self._pad_id] * (width - len(ids))] for ids in new])
        n_new_B = torch.tensor([len(ids) for ids in new])
        known_B = torch.tensor([plan.n_known for plan in plans[start:stop]])
        columns_BQ = torch.arange(width) + known_B[:, None]
        columns_BQ[torch.arange(width) >= n_new_B[:, None]] = PADDING
        hidden_BQH = self._forward(cache, start, ids_BQ, columns_BQ)
        return hidden_BQH[torch.arange(stop - start), n_new_B - 1]

    def _decode(self, rows: _Rows, into: Sequence[Completion], max_new: int, temperature: float) -> None:
        """Draw tokens for all rows until each is finished; finished ones are set aside, behind the others."""
        cache, hidden_BH, places_B, lengths_B = rows
        n = len(places_B)  # the rows that are not finished, and stand in front
        for step in range(1, max_new + 1):
            logits_BV = self._head(hidden_BH).float() / (temperature or 1.0)
            # A number for each place, in use or not; and none at all if nothing is left to chance.
            uniform_B = torch.rand(len(into), dtype=torch.float64)[places_B[:n]] if temperature else None
            ids_B, logprobs_B = _draw(torch.log_softmax(logits_BV, dim=-1), uniform_B)
            for place, token_id, logprob in zip(
                places_B[:n].tolist(), ids_B.tolist(), logprobs_B.tolist(), strict=True
            ):
                into[place].token_ids.append(token_id)
                into[place].logprobs.append(logprob)
            goes_on_B = torch.isin(ids_B, self._end_ids, invert=True)
            n_on = int(goes_on_B.sum())
            if n_on == 0 or step == max_new:
                return
            if n_on < n:
                # Each unfinished row from the back takes the place of a finished one in front.
                finished = (~goes_on_B[:n_on]).nonzero()[:, 0]
                unfinished = goes_on_B[n_on:].nonzero()[:, 0] + n_on
                cache.swap(finished, unfinished, int(lengths_B[:n].max()))
                for of_row_B in (ids_B, places_B, lengths_B):
                    of_row_B[finished], of_row_B[unfinished] = of_row_B[unfinished], of_row_B[finished]
                n = n_on
            hidden_BH = self._forward(cache, 0, ids_B[:n, None], lengths_B[:n, None])[:, 0]
            lengths_B[:n] += 1

    def _forward(self, cache: _Cache, start: int, ids_BQ: Tensor, columns_BQ: Tensor) -> Tensor:
        """Read these tokens into these columns of the rows from `start` on; return their hidden states."""
        device, dtype = self._body.device, self._body.dtype
        width = cache.open(start, columns_BQ, device)
        positions_BQ = columns_BQ.clamp(min=0).to(device)
        unseen_BQK = torch.arange(width, device=device) > positions_BQ[:, :, None]
        mask_BQK = torch.zeros(unseen_BQK.shape, dtype=dtype, device=device)
        mask_BQK.masked_fill_(unseen_BQK, torch.finfo(dtype).min)
        output = self._body(
            input_ids=ids_BQ.to(device),
            attention_mask=mask_BQK[:, None],
            position_ids=positions_BQ,
            use_cache=True,
            **{self._cache_argument: cache},
        )
        hidden_BQH: Tensor = output.last_hidden_state
        return hidden_BQH


def _draw(logprobs_BV: Tensor, uniform_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a token for each row, and its log-prob: the token that a share of the probability reaches, or the best.

    >>> _draw(torch.log(torch.tensor([[0.2, 0.5, 0.3]])), torch.tensor([0.71], dtype=torch.float64))[0]
    tensor([2])
    """
    if uniform_B is None:
        ids_B1 = logprobs_BV.argmax(dim=-1, keepdim=True)
    else:
        upto_BV = logprobs_BV.exp().cumsum(dim=-1, dtype=torch.float64)
        share_B1 = uniform_B.to(upto_BV.device)[:, None] * upto_BV[:, -1:]
        # Rounding can reach the sum itself, behind which there is no token.
        ids_B1 = torch.searchsorted(upto_BV, share_B1, right=True).clamp(max=upto_BV.shape[1] - 1)
    return ids_B1[:, 0].cpu(), logprobs_BV.gather(1, ids_B1)[:, 0].cpu()


def _parts_of_like_length(prompts: Sequence[TokenIds], max_rows: int) -> list[Sequence[int]]:
    """Return the places of the prompts, in parts of at most `max_rows`.

    >>> _parts_of_like_length([[1, 1, 1], [2], [3, 3]], 2)
    [[1, 2], [0]]
    """
    if len(prompts) <= max_rows:
        return [range(len(prompts))]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [by_length[i : i + max_rows] for i in range(0, len(prompts), max_rows)]


def _blocks(plans: Sequence[_Plan]) -> Iterator[tuple[int, int]]:
    """Cut plans that stand in the order of what is to be read into ranges that are read in one forward each."""
    start = 0
    for i, plan in enumerate(plans):
        if (i + 1 - start) * plan.n_new() > READ_AT_ONCE_TOKENS and i > start:
            yield start, i
            start = i
    yield start, len(plans)


def _n_common(sequence: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many tokens two sequences begin with alike.

    >>> _n_common((1, 2, 3), (1, 2, 4, 5)), _n_common((1,), (1, 2))
    (2, 1)
    """
    pairs = zip(sequence, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(sequence), len(other)))


def _changes(model: Any) -> int:
    """Return a number that grows whenever a weight is written in place, as optimisers and checkpoints do."""
    return sum(parameter._version for parameter in model.parameters())


def _refuse_unless_supported(model: Any) -> None:
    config = model.config.get_text_config()
    for name in UNSUPPORTED:
        if getattr(config, name, None) is not None:
            raise SettingsError(
                f"the engine 'transformers' cannot decode {config.model_type!r} models that have a {name}: it knows full "
                "attention and plain logits. Choose another --model-name, such as one of Qwen's or Llama's."
            )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise SettingsError(
            f"the engine 'transformers' gives its own masks, which attention {config._attn_implementation!r} does not "
            "take. Load the model with attn_implementation='sdpa'."
        )


# --- what was read ----------------------------------------------------------------------------------------------------

PADDING = -1


class _Plan(NamedTuple):
    """How a prompt will be read: its first `n_known` tokens were, in row `slot` of the last call."""

    prompt: tuple[int, ...]
    slot: int
    n_known: int

    def n_new(self) -> int:
        return len(self.prompt) - self.n_known


class _Rows(NamedTuple):
    """The rows of a call, each read up to its last token."""

    cache: _Cache
    hidden_BH: Tensor  # of the last token
    places_B: Tensor  # in the call
    lengths_B: Tensor


class _Kept:
    """What the last call read and drew, to be found by the first tokens of a prompt."""

    def __init__(self, sequences: Sequence[tuple[int, ...]], cache: _Cache, changes: int) -> None:
        in_order = sorted((sequence, slot) for slot, sequence in enumerate(sequences))
        self._sequences = [sequence for sequence, _ in in_order]
        self._slots = [slot for _, slot in in_order]
        self.cache = cache
        self.changes = changes  # of the weights, when this was read

    def plan(self, prompt: tuple[int, ...]) -> _Plan:
        """Return the plan that reads the least. The last token of a sequence was drawn, but not read."""
        # In the order of their tokens, the sequence that has most in common with a prompt stands beside it.
        after = bisect.bisect(self._sequences, prompt)
        plans = [_Plan(prompt, 0, 0)]
        for i in range(max(after - 1, 0), min(after + 1, len(self._sequences))):
            sequence = self._sequences[i]
            n_common = _n_common(sequence, prompt)
            plans.append(_Plan(prompt, self._slots[i], min(n_common, len(sequence) - 1, len(prompt) - 1)))
        return min(plans, key=_Plan.n_new)


class _Cache(Cache):  # type: ignore[misc]  # transformers brings no types
    """Keys and values, layer by layer: row r, column c has those of token c of sequence r.

    What stands behind the last token of a row is finite, and not seen.
    """

    def __init__(self, n_rows: int, n_columns: int) -> None:
        self.layers: list[
            Any
        ] = []  # transformers asks them about masks and positions, which it is given instead
        self._n_rows = n_rows
        self._n_columns = n_columns + 1  # the last one takes what padding writes
        # Of each layer, keys and values: row, head, column, channel. Attention reads along a row and head.
        self._stored: list[tuple[Tensor, Tensor]] = []

    def open(self, start: int, columns_BQ: Tensor, device: torch.device) -> int:
        """Say where the keys and values of the next forward go; return how many columns it sees."""
        self._rows = slice(start, start + len(columns_BQ))
        self._rows_B1 = torch.arange(start, start + len(columns_BQ), device=device)[:, None]
        self._columns_BQ = columns_BQ.to(device)
        self._width = int(columns_BQ.max()) + 1
        return self._width

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values, and return all that this forward sees: transformers calls it for each layer."""
        if layer_idx == len(self._stored):
            self._stored.append(self._room_for(key_states, value_states))
        keys, values = self._stored[layer_idx]
        keys[self._rows_B1, :, self._columns_BQ] = key_states.transpose(1, 2)
        values[self._rows_B1, :, self._columns_BQ] = value_states.transpose(1, 2)
        return keys[self._rows, :, : self._width], values[self._rows, :, : self._width]

    def copy(self, source: _Cache, slots: Sequence[int], n_columns: int) -> None:
        """Take these rows of another cache, as far as these columns."""
        chosen = torch.tensor(slots)
        for layer in source._stored:
            self._stored.append(self._room_for(*layer))
            for mine, theirs in zip(self._stored[-1], layer, strict=True):
                mine[:, :, :n_columns] = theirs[:, :, :n_columns].index_select(0, chosen.to(theirs.device))

    def swap(self, these: Tensor, those: Tensor, n_columns: int) -> None:
        for stored in itertools.chain(*self._stored):
            seen = stored[:, :, :n_columns]
            seen[these], seen[those] = seen[those], seen[these]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def _room_for(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        def room(states: Tensor) -> Tensor:
            _, heads, _, channels = states.shape
            return states.new_zeros(self._n_rows, heads, self._n_columns, channels)

        return room(keys), room(values)
