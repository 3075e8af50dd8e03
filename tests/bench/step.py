"""One step of a training, ours beside TRL's: the calculator's quick recipe, one process and one thread each.

    python -m tests.bench.step ours|trl STEPS HOME     what a trainer's steps took, as JSON

Both begin with the policy that our warm-up makes, and play, at each step, the same problems in groups of the same
size: several turns, with the calculator's answers between them. TRL draws by its own tool loop (`tools=`) and
transformers' `generate`, with our chat format as its template: token for token the same prompts. It learns from all
groups, where ours leaves out those whose rewards are equal; a malformed call ends its episode, where ours answers with the
error. It logs nothing but numbers to itself; ours logs as always.

Invariants
----------
* A step is from the end of the one before it to its own: rollout, update, and what ours logs. Evaluations and checkpoints
  are in none, and the first is left out: it pays for what is done once.
* Ratios are of the processor's seconds: with one thread that is what a step takes on an idle machine.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.bench.apart import measured
from tests.bench.row import Row, at_most

STEPS = 20
# Nothing but steps: a row of the log for each.
NEVER = 1_000_000
SETTINGS = {"threads": 1, "eval_interval": NEVER, "checkpoint_interval": NEVER, "eval_size": 8}
# Our chat format (`trainer.chat`), written down as TRL wants it.
TEMPLATE = r"""
{%- for message in messages -%}
  {%- if message.role == 'tool' -%}
    {{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
  {%- else -%}
    {{ '<|im_start|>' + message.role + '\n' + (message.content or '') }}
    {%- for call in message.tool_calls or [] -%}
      {{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
      {{- '}\n</tool_call>' }}
    {%- endfor -%}
    {{ '<|im_end|>\n' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""


def rows(home: Path, scale: int) -> Iterator[Row]:
    steps = max(STEPS // scale, 2)
    found = {who: measured("step", who, steps, home / who, home=home) for who in ("ours", "trl")}
    ours, theirs = found["ours"], found["trl"]
    size = (
        f"{steps} steps of {ours.pop('trajectories')} trajectories, 1 thread; TRL by its tools= and generate"
    )
    log_s = ours.pop("log_s")
    ratio = ours["cpu_s"] / theirs["cpu_s"]
    yield Row("training step", "ours", ours, ratio, "TRL", (at_most(ratio, 0.5, "≤ 1/2 of TRL"),), size)
    yield Row("training step", "TRL", theirs, size=size)

    share = log_s / ours["cpu_s"]
    yield Row(
        "logging, of a training step",
        "ours",
        {"log_ms": 1e3 * log_s, "step_ms": 1e3 * ours["cpu_s"]},
        share,
        "step",
        (at_most(share, 0.01, "≤ 1 % of the step"),),
        "a row, a table, all trajectories with their ids and log-probs",
    )


@dataclass
class Clock:
    """How long each step took, by the wall and by the processor."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    _last: tuple[float, float] | None = None

    def step_ended(self) -> None:
        now = (time.perf_counter(), time.process_time())
        if self._last is not None:
            self.wall_s.append(now[0] - self._last[0])
            self.cpu_s.append(now[1] - self._last[1])
        self._last = now

    def medians(self) -> dict[str, float]:
        return {"wall_s": statistics.median(self.wall_s), "cpu_s": statistics.median(self.cpu_s)}


# --- ours -------------------------------------------------------------------------------------------------------------


class TimedRun:
    """A run, and how long its calls take; a row ends a step."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self.clock = Clock()
        self.log_s: list[float] = [0.0]
        self.tokens: list[int] = [0]

    def log(self, data: Mapping[str, Any], *, step: int | None = None) -> None:
        self._timed(lambda: self._run.log(data, step=step))
        if "rollouts/returns_mean" in data:
            self.clock.step_ended()
            self.log_s.append(0.0)
            self.tokens.append(0)

    def log_trajectory(self, trajectory: Any, step: int | None = None) -> None:
        self._timed(lambda: self._run.log_trajectory(trajectory, step=step))
        self.tokens[-1] += trajectory.completion_tokens

    def alert(self, title: str, text: str, level: Any = None) -> None:
        self._timed(lambda: self._run.alert(title, text, level))

    def _timed(self, call: Callable[[], None]) -> None:
        started_s = time.thread_time()  # the sealing and syncing threads have their own
        call()
        self.log_s[-1] += time.thread_time() - started_s


def ours(course: Any, state: Any) -> dict[str, float]:
    from trainer import loop

    run = TimedRun(course.run)
    loop.train(replace(course, run=run), state)
    # The first step was not timed, and what comes after the last row is no step.
    return {
        **run.clock.medians(),
        "tokens_drawn": statistics.median(run.tokens[1:-1]),
        "log_s": statistics.median(run.log_s[1:-1]),
        "trajectories": course.settings.trajectories_per_step,
    }


# --- TRL --------------------------------------------------------------------------------------------------------------


def calculator(expression: str) -> str:
    """Compute an arithmetic expression.

    Args:
        expression: Numbers and + - * / ( ).

    Returns:
        Its value.
    """
    from trainer.tasks.calculator import evaluate, format_number

    return format_number(evaluate(expression))


def correct(completions: Sequence[Any], answer: Sequence[str], **others: Any) -> list[float]:
    """Return 1 for each conversation that ends with the right number, as our task does."""
    from eventlog import Turn
    from trainer.tasks.calculator import final_answer

    found = [
        final_answer(
            [Turn(turns[-1]["role"], turns[-1].get("content") or "", turns[-1].get("tool_calls") or [])]
        )
        for turns in completions
    ]
    return [
        float(said is not None and abs(float(said) - float(right)) < 1e-6)
        for said, right in zip(found, answer, strict=True)
    ]


def trl(course: Any, state: Any) -> dict[str, float]:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.chat_template_utils import qwen3_template

    from trainer.chat import END, PAD
    from trainer.models import save_pretrained
    from trainer.recipes.calculator_trl import arguments

    settings, clock, tokens = course.settings, Clock(), []

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, hf_state: Any, control: Any, **others: Any) -> None:
            clock.step_ended()

        def on_log(self, args: Any, hf_state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            if "completions/mean_length" in logs:
                tokens.append(logs["completions/mean_length"] * settings.trajectories_per_step)

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=state.chat.tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        chat_template=TEMPLATE,
    )
    tokenizer.response_template = qwen3_template
    asked = [
        problem
        for batch_step in range(course.n_batches)
        for problem in course.problems.of_batch(batch_step, settings.rollouts_per_step, settings.seed)
    ]
    kept = course.checkpoints / "policy"
    save_pretrained(state.model, state.chat, kept)
    state.model.config._name_or_path = os.fspath(kept)  # where TRL looks for its reference
    trainer = GRPOTrainer(
        model=state.model,
        reward_funcs=correct,
        args=GRPOConfig(
            output_dir=os.fspath(course.checkpoints / "trl"),
            **arguments(course)
            | {
                # Of the whole conversation; a turn has its own limit, as in ours.
                "max_completion_length": settings.max_length - 32,
                "generation_kwargs": {"max_new_tokens": settings.max_new_tokens, "use_cache": True},
                "max_tool_calling_iterations": settings.max_turns - 1,
            },
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": p.question}], "answer": p.answer} for p in asked]
        ),
        processing_class=tokenizer,
        callbacks=[Steps()],
        tools=[calculator],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {**clock.medians(), "tokens_drawn": round(statistics.median(tokens[1:]))}


def main() -> None:
    # Before transformers is imported: the problems are the generated ones, and nothing asks for others.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from rich.console import Console

    from trainer import recipes
    from trainer.launch import Request, launch

    who, steps, home = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    found: dict[str, float] = {}

    def train(course: Any, state: Any) -> None:
        found.update({"ours": ours, "trl": trl}[who](course, state))

    launch(
        replace(recipes.load("calculator"), train=train),
        Request(
            {**SETTINGS, "steps": steps}, quick=True, name=who, root=home / "runs", output_dir=home / "kept"
        ),
        Console(file=sys.stderr),
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
