"""What the quick model's tokens cost: drawn in one turn and in three, beside transformers' own `generate`, and trained.

All of a group's prompts are equal at first, as in a rollout; nothing is graded, and no text is made.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.row import Row, at_least

# As the calculator's: 24 groups of 8, prompts of 60 tokens, turns of 16, answers of 20.
GROUPS, GROUP_SIZE = 24, 8
PROMPT_TOKENS, TURN_TOKENS, ANSWER_TOKENS = 60, 16, 20
TURNS = 3
TRAINED_ROWS, TRAINED_TOKENS = 48, 120
VOCAB_SIZE, END, PAD = 400, 1, 0
ROUNDS = 4
GENERATED_AIM, TRAINED_AIM = 8000, 20_000  # tokens a second, on two idle cores


def rows(home: Path, scale: int) -> Iterator[Row]:
    # As the trainer's commands have it, and before torch is imported: idle threads that spin cost the others their time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from trainer.policy.transformers import TransformersEngine, tiny_qwen3

    torch.manual_seed(0)
    model = tiny_qwen3(VOCAB_SIZE, hidden=128, layers=3, max_tokens=256)
    engine = TransformersEngine(model, end_id=END, pad_id=PAD)
    numbers = random.Random(0)
    openings = [
        [numbers.randrange(2, VOCAB_SIZE) for _ in range(PROMPT_TOKENS)]
        for _ in range(max(GROUPS // scale, 1))
    ]
    prompts = [prompt for prompt in openings for _ in range(GROUP_SIZE)]
    size = f"{len(prompts)} rows × {TURN_TOKENS} tokens, {torch.get_num_threads()} threads"

    theirs = _pace(lambda: _generate(model, prompts), scale)
    for n_turns in (1, TURNS):
        pace = _pace(lambda n=n_turns: _play(engine, prompts, n), scale)  # type: ignore[misc]
        yield Row(
            f"decoding, {n_turns} turn{'s' * (n_turns > 1)}",
            "ours",
            pace,
            ratio=pace["tokens_per_s"] / theirs["tokens_per_s"],
            of="generate, 1 turn",
            aims=(at_least(pace["tokens_per_s"], GENERATED_AIM, f"≥ {GENERATED_AIM:,} tokens/s"),),
            size=size,
        )
    yield Row("decoding, 1 turn", "generate", theirs, size=size)

    pace = _pace(lambda: _train(model), scale)
    yield Row(
        "training",
        "ours",
        pace,
        aims=(at_least(pace["tokens_per_s"], TRAINED_AIM, f"≥ {TRAINED_AIM:,} tokens/s"),),
        size=f"{TRAINED_ROWS} rows × {TRAINED_TOKENS} tokens, forward and backward",
    )


def _pace(work: Callable[[], int], scale: int) -> dict[str, float]:
    """Return the best of some rounds: other programs on the machine only ever add to the time."""
    work()
    paces = []
    for _ in range(1 if scale > 1 else ROUNDS):
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        n_tokens = work()
        paces.append(
            {
                "tokens_per_s": n_tokens / (time.perf_counter() - started_s),
                # Of all threads together: what is left of a core's time on a busy machine.
                "tokens_per_core_per_s": n_tokens / (time.process_time() - started_cpu_s),
            }
        )
    return {name: max(pace[name] for pace in paces) for name in paces[0]}


def _play(engine: Any, prompts: list[list[int]], n_turns: int) -> int:
    n_tokens = 0
    for _ in range(n_turns):
        completions = engine.complete(prompts, TURN_TOKENS, 1.0)
        n_tokens += sum(len(completion.token_ids) for completion in completions)
        prompts = [
            prompt + completion.token_ids + [PAD] * ANSWER_TOKENS
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    return n_tokens


def _generate(model: Any, prompts: list[list[int]]) -> int:
    import torch

    ids = torch.tensor(prompts)
    options = {"max_new_tokens": TURN_TOKENS, "do_sample": True, "top_k": 0, "use_cache": True}
    with torch.inference_mode():
        drawn = model.generate(ids, pad_token_id=PAD, eos_token_id=END, **options)
    return int((drawn[:, ids.shape[1] :] != PAD).sum())


def _train(model: Any) -> int:
    import torch

    from trainer.policy.transformers import token_logprobs

    ids = torch.randint(2, VOCAB_SIZE, (TRAINED_ROWS, TRAINED_TOKENS))
    mask = torch.zeros(TRAINED_ROWS, TRAINED_TOKENS - 1)
    mask[:, TRAINED_TOKENS // 2 :] = 1
    model.zero_grad()
    token_logprobs(model, ids, mask, 1.0).sum().backward()
    return ids.numel()
