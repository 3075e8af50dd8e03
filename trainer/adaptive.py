r"""A small transformer whose cost can be chosen for each sample, and what a forward pass of it costs on this machine.

    sample ─ embed ─▶ importance ─ keep the top `tokens` ─▶ layer 1 ─ sure enough? ─▶ … ─▶ layer `depth` ─▶ answer
                                                                     └────── exit ──────────────────────────▲

What it does: a sample is a set of 64 tokens. Some are links (node → node), the rest is background. From a start node
the model follows links to the one that ends the chain. Each link takes about one layer, so a longer chain needs more
depth; a sample with more links needs more tokens; and the early exit needs neither to be known beforehand.

The three knobs are those of larger adaptive models: *depth* (layers that are run), *exit* (the confidence at which a
layer's answer is taken; every layer has one, by deep supervision), *tokens* (kept by learnt importance).

Invariants
----------
* Everything is drawn from the seed, and nothing from the default generators: a training that is resumed in the middle
  draws what an unbroken one would.
* `run` leaves out what the knobs leave out: layers that are not run and tokens that are not kept cost nothing.
* Latencies come from one table, so that equal decisions cost the same: measured here once, or counted.

There is no policy, reward, prompt or log here.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import checkpoint
from trainer.errors import DataError
from trainer.optimisers import muon_and_adamw, take_step

# --- samples ----------------------------------------------------------------------------------------------------------

N_NODES = 24
N_TOKENS = 64
N_BACKGROUNDS = 4  # kinds of tokens that mean nothing
_BACKGROUND = N_NODES  # the key of such a token

# Family → the fewest and the most links from a sample's start to its answer.
FAMILIES = {"direct": (1, 1), "relay": (2, 2), "chain": (3, 3), "mixed": (1, 3)}
MAX_LINKS = max(most for _, most in FAMILIES.values())
# Links beside the chain that end a chain themselves: else the answer could be told by its end mark alone.
_DECOY_ENDS = 0.3


@dataclass(frozen=True)
class Sample:
    family: str
    path: tuple[int, ...]  # start node, the nodes between, the answer
    tokens: tuple[tuple[int, int], ...]  # (key, value); a link whose value is its key ends a chain

    @property
    def n_links(self) -> int:
        """How many tokens are no background."""
        return sum(key != _BACKGROUND for key, _ in self.tokens)


def draw_sample(rng: random.Random, family: str, n_tokens: int = N_TOKENS) -> Sample:
    """Return a sample of this family: a chain, other links, and background up to `n_tokens`."""
    length = rng.randint(*FAMILIES[family])
    nodes = rng.sample(range(N_NODES), N_NODES)
    n_links = rng.randint(length + 1, min(N_NODES, n_tokens))
    links = [*itertools.pairwise(nodes[: length + 1]), (nodes[length], nodes[length])]
    for node in nodes[length + 1 : n_links]:
        links.append((node, node if rng.random() < _DECOY_ENDS else rng.randrange(N_NODES)))
    background = [(_BACKGROUND, N_NODES + rng.randrange(N_BACKGROUNDS)) for _ in range(n_tokens - n_links)]
    tokens = rng.sample([*links, *background], n_tokens)
    return Sample(family, tuple(nodes[: length + 1]), tuple(tokens))


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    layers: int = 5
    hidden: int = 96
    heads: int = 4


@dataclass(frozen=True)
class Knobs:
    depth: int  # layers, from 1
    exit: float  # in (0, 1]; at 1 no layer is asked whether it is sure
    tokens: int


@dataclass(frozen=True)
class Ran:
    """What one forward pass did."""

    answer: int
    layers: int  # that were run
    tokens: int  # that were kept
    asked: bool  # whether each layer was asked how sure it is


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._n_heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.hidden)
        self.query_key_value = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.attended = nn.Linear(shape.hidden, shape.hidden)
        self.mlp_norm = nn.LayerNorm(shape.hidden)
        self.mlp = nn.Sequential(
            nn.Linear(shape.hidden, 2 * shape.hidden), nn.GELU(), nn.Linear(2 * shape.hidden, shape.hidden)
        )
        with torch.no_grad():
            # Queries and keys start equal, so a token attends to its like: the first link is learnt in 50 steps, not 200.
            query = torch.randn(shape.hidden, shape.hidden) * 1.5 / shape.hidden**0.5
            self.query_key_value.weight[: 2 * shape.hidden] = query.repeat(2, 1)
            self.query_key_value.bias.zero_()
            self.mlp[2].weight.mul_(0.1)

    def forward(self, hidden_BTH: Tensor, bias_B1TT: Tensor) -> Tensor:
        B, T, H = hidden_BTH.shape
        packed = self.query_key_value(self.attention_norm(hidden_BTH))
        query, key, value = packed.view(B, T, 3, self._n_heads, H // self._n_heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias_B1TT)
        hidden_BTH = hidden_BTH + self.attended(mixed.transpose(1, 2).reshape(B, T, H))
        return hidden_BTH + self.mlp(self.mlp_norm(hidden_BTH))


class AdaptiveModel(nn.Module):  # type: ignore[misc]
    """Token 0 is the question (the start node); half of a token's embedding is its key, half its value."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.node = nn.Embedding(N_NODES + 1 + N_BACKGROUNDS, shape.hidden // 2)
        self.role = nn.Embedding(3, shape.hidden)  # question, token, link that ends a chain
        nn.init.normal_(self.role.weight, std=0.5)
        self.importance = nn.Linear(shape.hidden, 1)
        nn.init.constant_(self.importance.bias, 2.0)
        self.blocks = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.ended = nn.Linear(shape.hidden, 1)

    def embed(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the question's embedding, the tokens', and the log-importance of each token."""
        pairs_BN2 = torch.tensor([sample.tokens for sample in samples])
        keys_BN, values_BN = pairs_BN2.unbind(-1)
        ends_BN = (keys_BN == values_BN).long()
        # Values of background tokens stand behind the background's key in the table.
        places_BN = values_BN + (values_BN >= N_NODES).long()
        tokens_BNH = torch.cat([self.node(keys_BN), self.node(places_BN)], -1) + self.role(1 + ends_BN)
        start_BH = self.node(torch.tensor([sample.path[0] for sample in samples]))
        question_BH = torch.cat([start_BH, torch.zeros_like(start_BH)], -1) + self.role.weight[0]
        return question_BH, tokens_BNH, functional.logsigmoid(self.importance(tokens_BNH)[..., 0])

    def read_out(self, hidden_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's answer as logits over the nodes, and the logit of its being the end of the chain."""
        state_BH = self.norm(hidden_BTH[:, 0])
        half = self.shape.hidden // 2
        return (
            state_BH[:, :half] @ self.node.weight[:N_NODES].T * self.scale,
            self.ended(state_BH)[:, 0],
        )

    def every_layer(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """Return each layer's answer and end logits, and the log-importances: what training looks at."""
        question_BH, tokens_BNH, importance_BN = self.embed(samples)
        hidden_BTH, bias_B1TT = _with_question(question_BH, tokens_BNH, importance_BN)
        answers, ends = [], []
        for layer in self.blocks:
            hidden_BTH = layer(hidden_BTH, bias_B1TT)
            answer_BV, end_B = self.read_out(hidden_BTH)
            answers.append(answer_BV)
            ends.append(end_B)
        return torch.stack(answers, 1), torch.stack(ends, 1), importance_BN

    def run(self, sample: Sample, knobs: Knobs) -> Ran:
        """Answer one sample with these knobs; they must be within the model's."""
        assert 1 <= knobs.depth <= self.shape.layers
        assert 1 <= knobs.tokens <= len(sample.tokens)
        with torch.inference_mode():
            return self._run(sample, knobs, exits=knobs.exit < 1.0)

    def _run(self, sample: Sample, knobs: Knobs, *, exits: bool) -> Ran:
        question_BH, tokens_BNH, importance_BN = self.embed([sample])
        if knobs.tokens < len(sample.tokens):
            kept_N = importance_BN[0].topk(knobs.tokens).indices
            tokens_BNH, importance_BN = tokens_BNH[:, kept_N], importance_BN[:, kept_N]
        hidden_BTH, bias_B1TT = _with_question(question_BH, tokens_BNH, importance_BN)
        depth = 0
        for layer in self.blocks[: knobs.depth]:
            hidden_BTH = layer(hidden_BTH, bias_B1TT)
            depth += 1
            if exits and depth < knobs.depth:
                answer_BV, end_B = self.read_out(hidden_BTH)
                sure = answer_BV.softmax(-1).max() * torch.sigmoid(end_B[0])
                if sure.item() >= knobs.exit:
                    break
        answer_BV, _ = self.read_out(hidden_BTH)
        return Ran(int(answer_BV.argmax()), depth, knobs.tokens, exits)


def _with_question(question_BH: Tensor, tokens_BNH: Tensor, importance_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the question before its tokens, and what is added to attention: importance, and never to itself."""
    hidden_BTH = torch.cat([question_BH[:, None], tokens_BNH], 1)
    T = hidden_BTH.shape[1]
    bias_BT = torch.cat([torch.zeros_like(importance_BN[:, :1]), importance_BN], 1)
    itself_TT = torch.full((T,), -1e4).diag()
    return hidden_BTH, bias_BT[:, None, None, :] + itself_TT


# --- training it ------------------------------------------------------------------------------------------------------

BATCH_SIZE = 48
RAMP_STEPS = 20
COOL_DOWN = 0.3  # of the steps: the learning rates fall to 0
END_WEIGHT = 0.3
SPARSITY_WEIGHT = 0.05


def train_from_nothing(shape: Shape, steps: int, seed: int) -> AdaptiveModel:
    """Return a model that learnt from `steps` batches of drawn samples: 175 take about 15 s of one core.

    Layer l is taught the node after l links (deep supervision), whether that is the end, and to spare tokens.
    """
    rng = random.Random(f"adaptive model {seed}")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = AdaptiveModel(shape)
        optimisers = muon_and_adamw(model, [p for p in model.blocks.parameters() if p.ndim == 2])
        for step in range(steps):
            factor = min(1.0, (step + 1) / RAMP_STEPS, (steps - step) / (COOL_DOWN * steps))
            # Without the background beyond what fills up the links: order and number mean nothing to the model.
            samples = [draw_sample(rng, "mixed", n_tokens=N_NODES) for _ in range(BATCH_SIZE)]
            _loss(model, samples).backward()
            take_step(model, optimisers, factor)
    return _frozen(model)


def _frozen(model: AdaptiveModel) -> AdaptiveModel:
    model.eval().requires_grad_(False)
    return model


def _loss(model: AdaptiveModel, samples: Sequence[Sample]) -> Tensor:
    layers = range(1, model.shape.layers + 1)
    answers_BLV, ends_BL, importance_BN = model.every_layer(samples)
    nodes_BL = torch.tensor([[s.path[min(layer, len(s.path) - 1)] for layer in layers] for s in samples])
    is_end_BL = torch.tensor([[float(layer >= len(s.path) - 1) for layer in layers] for s in samples])
    return (
        functional.cross_entropy(answers_BLV.flatten(0, 1), nodes_BL.flatten())
        + END_WEIGHT * functional.binary_cross_entropy_with_logits(ends_BL, is_end_BL)
        + SPARSITY_WEIGHT * importance_BN.exp().mean()
    )


# --- a model on disk --------------------------------------------------------------------------------------------------

FILE_NAME = "adaptive.pt"


def save(model: AdaptiveModel, directory: Path) -> None:
    """Write the model into `directory`: whole or not at all."""
    checkpoint.write_state(directory / FILE_NAME, to_plain(model))


def load(directory: Path) -> AdaptiveModel:
    """Read what `save` wrote; runs no code from the file."""
    path = directory / FILE_NAME
    try:
        return from_plain(checkpoint.read_state(path))
    except checkpoint.UNREADABLE as error:
        raise DataError(
            f"{str(path)!r} is not an adaptive model that can be read: {checkpoint.reason_of(error)}. "
            "Give another directory with --model_path; in an empty one, a new model is trained and kept."
        ) from None


def to_plain(model: AdaptiveModel) -> dict[str, Any]:
    return {"shape": asdict(model.shape), "weights": model.state_dict()}


def from_plain(kept: Mapping[str, Any]) -> AdaptiveModel:
    # Its first weights are overwritten, but drawing them would move the default generator.
    with torch.random.fork_rng(devices=[]):
        model = AdaptiveModel(Shape(**kept["shape"]))
    model.load_state_dict(kept["weights"])
    return _frozen(model)


# --- what it costs ----------------------------------------------------------------------------------------------------

# Tokens are paid for in blocks, as in batched kernels; so the table is short.
TOKEN_BLOCK = 8
REPEATS = 24
WARM_UPS = 3
# What one core of a laptop does; only proportions matter, since budgets are relative to the full model.
MACS_PER_MS = 1e7

Latencies = dict[str, float]
"""`layers/tokens/asked` → ms."""


class Kind(NamedTuple):
    """Runs that cost the same."""

    layers: int
    tokens: int
    asked: bool

    @property
    def place(self) -> str:
        """Its key in the table; a text, so that a checkpoint and JSON hold the table as it is."""
        return f"{self.layers}/{self.tokens}/{int(self.asked)}"

    def does_at_least(self, other: Kind) -> bool:
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))


def kind_of(ran: Ran) -> Kind:
    """Return what a run costs the same as: its tokens are rounded up to whole blocks.

    >>> kind_of(Ran(answer=0, layers=3, tokens=20, asked=True)).place
    '3/24/1'
    """
    return Kind(ran.layers, -(-ran.tokens // TOKEN_BLOCK) * TOKEN_BLOCK, ran.asked)


def _every_kind(shape: Shape) -> list[Kind]:
    layers, tokens = range(1, shape.layers + 1), range(TOKEN_BLOCK, N_TOKENS + 1, TOKEN_BLOCK)
    return [Kind(*kind) for kind in itertools.product(layers, tokens, (False, True))]


def measure(model: AdaptiveModel, clock: Callable[[], float] = time.perf_counter) -> Latencies:
    """Time a forward pass of each kind on one core of this machine, in ms, after a warm-up.

    What else the machine does only adds to a time, and to do more is never faster. So a kind's latency is the least
    that was seen of it, or of a kind that does more. (A median of the repeats is off by a factor of 5 on a busy machine.)
    """
    sample = draw_sample(random.Random("what is timed"), "mixed")
    kinds = _every_kind(model.shape)
    least_s = dict.fromkeys(kinds, math.inf)
    order = random.Random("in which order")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for repeat in range(WARM_UPS + REPEATS):
            # Each round in an order of its own: what happens regularly hits no kind more than another.
            for kind in order.sample(kinds, len(kinds)):
                # A confidence of 2 is never reached: every layer is asked, and all are run.
                knobs = Knobs(kind.layers, 2.0, kind.tokens)
                with torch.inference_mode():
                    started_s = clock()
                    model._run(sample, knobs, exits=kind.asked)
                    taken_s = clock() - started_s
                if repeat >= WARM_UPS:
                    least_s[kind] = min(least_s[kind], taken_s)
    finally:
        torch.set_num_threads(n_threads)
    return {
        kind.place: min(least_s[more] for more in kinds if more.does_at_least(kind)) * 1000 for kind in kinds
    }


def count(model: AdaptiveModel) -> Latencies:
    """Count the multiply-accumulates of a forward pass of each kind, as ms: the same on every machine."""
    hidden = model.shape.hidden
    read_out = N_NODES * hidden // 2 + hidden
    counted = {}
    for kind in _every_kind(model.shape):
        T = kind.tokens + 1
        # Per token 4 H² in the attention's projections and 4 H² in the MLP; T² H each for scores and mixing.
        layer = 8 * hidden * hidden * T + 2 * T * T * hidden
        macs = kind.layers * (layer + read_out * kind.asked) + read_out
        counted[kind.place] = macs / MACS_PER_MS
    return counted


LATENCIES: Mapping[str, Callable[[AdaptiveModel], Latencies]] = {"measured": measure, "counted": count}


MAX_REMEMBERED = 20_000


class Testbed:
    """An adaptive model and its latencies, made when first asked for, and kept by a checkpoint."""

    __test__ = False  # its name makes pytest think otherwise

    def __init__(
        self, make: Callable[[], AdaptiveModel], latencies: Callable[[AdaptiveModel], Latencies]
    ) -> None:
        self._make = make
        self._latencies = latencies
        # A group tries the same knobs on the same sample many times, and a forward pass has no chance in it.
        self._ran: dict[tuple[Sample, Knobs], Ran] = {}

    @cached_property
    def model(self) -> AdaptiveModel:
        return self._make()

    @cached_property
    def latency_ms(self) -> Latencies:
        return self._latencies(self.model)

    @property
    def full_ms(self) -> float:
        """The latency of all layers over all tokens, without exits: what budgets are a share of."""
        return self.latency_ms[Kind(self.model.shape.layers, N_TOKENS, False).place]

    def run(self, sample: Sample, knobs: Knobs) -> tuple[Ran, float]:
        """Run a sample; return what was done, and the latency of doing that in ms."""
        if (sample, knobs) not in self._ran:
            if len(self._ran) >= MAX_REMEMBERED:
                self._ran.clear()
            self._ran[sample, knobs] = self.model.run(sample, knobs)
        ran = self._ran[sample, knobs]
        return ran, self.latency_ms[kind_of(ran).place]

    def state(self) -> dict[str, Any]:
        return {"model": to_plain(self.model), "latency_ms": dict(self.latency_ms)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._ran.clear()
        self.model = from_plain(state["model"])
        self.latency_ms = dict(state["latency_ms"])
