"""What a person sees of a training: a bar on a terminal, plain lines in a file or pipe.

Invariants
----------
* Where nobody watches (no terminal) there is no bar and no colour: lines that `grep` finds, each said once.
* It is silent on every rank but the first, and asks the log only for what is cheap: the newest cursors.

It decides nothing, and a terminal that cannot be written to stops nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from eventlog import cursor
from trainer.collectors import At, Metrics, finished
from trainer.collectors.grpo import transcript

if TYPE_CHECKING:
    from eventlog import Trajectory

# How often the cursors are read for the bar.
LOOK_EVERY_S = 2.0


class Progress:
    """Says lines from the start; the bar is on the screen inside of `of_run`."""

    def __init__(self, name: str, console: Console | None = None, *, shows_episodes: bool = False) -> None:
        self._name = name
        self._console = console
        self._shows_episodes = shows_episodes
        self._run_dir: Path | None = None
        self._bars: Bars | None = None
        self._looked_s = float("-inf")
        self._uploaded = ""

    @property
    def _has_bar(self) -> bool:
        return self._console is not None and self._console.is_terminal

    @contextmanager
    def of_run(self, run_dir: Path) -> Iterator[None]:
        """Show how far the training is that is logged there."""
        self._run_dir = run_dir
        if not self._has_bar:
            yield
            return
        self._bars = Bars(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bars.add_task(self._name, total=None, news="")
        try:
            with self._bars:
                yield
        finally:
            self._bars = None

    def say(self, text: str) -> None:
        """Print a line that matters, with or without a bar."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """Print a line for whoever reads the output later; a bar says it in another way."""
        if self._bars is None:
            self.say(text)

    # --- what the loop tells ----------------------------------------------------------------------------------------

    def evaluating(self, at: At, n_problems: int) -> None:
        self.detail(f"--- Evaluating at Global Step {at.global_step} ---")
        self.detail(f"Evaluating on {n_problems} test scenarios...")

    def evaluated(self, at: At, row: Metrics) -> None:
        reward = row.get("eval/reward")
        self.say(
            f"step {at.global_step}: held-out reward "
            + ("unknown, every episode failed" if reward is None else f"{reward:.3f}")
        )

    def generating(self, n_groups: int) -> None:
        self.detail(f"Generating {n_groups} trajectory groups...")

    def batch(self, at: At, row: Metrics, trajectories: Sequence[Trajectory], duration_s: float) -> None:
        """Tell of a rollout batch that was played and learnt from."""
        if self._shows_episodes and trajectories:
            self.say(in_words(trajectories[0]))
        reward = row.get("rollouts/returns_mean")
        tokens = sum(t.completion_tokens or 0 for t in finished(trajectories))
        facts = [
            "no reward" if reward is None else f"reward {reward:.3f}",
            *([f"kl {abs(row['rollouts/kl_mean']):.3f}"] if "rollouts/kl_mean" in row else []),
            f"{tokens / max(duration_s, 1e-9):.0f} tok/s",
        ]
        if self._bars is not None:
            uploaded = self._uploaded_now()
            self._bars.update(
                self._task,
                completed=at.batch_step + 1,
                total=at.n_batches,
                news="  ".join([*facts, *([uploaded] if uploaded else [])]),
            )
            return
        self.detail(f"Generated {len(trajectories)} trajectories")
        self.detail("Average reward: " + ("unknown" if reward is None else f"{reward:.4f}"))
        self.detail("   ".join([f"step {at.batch_step + 1}/{at.n_batches}", *facts, f"{duration_s:.1f} s"]))

    def _uploaded_now(self) -> str:
        """Say how many rows W&B has, as the newest cursor knows."""
        if self._run_dir is not None and time.monotonic() - self._looked_s > LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            acked = [c.acked.get("wandb-history.jsonl", 0) for c in cursor.cursors(self._run_dir)]
            self._uploaded = f"on W&B {max(acked)} rows" if acked else ""
        return self._uploaded


def in_words(trajectory: Trajectory) -> str:
    """Return an episode as a person reads it: what it earned, and who said what."""
    outcome = trajectory.exception or f"reward {trajectory.reward}"
    return f"--- {outcome}\n{transcript(trajectory.turns)}"
