"""Watches a training for what people look for when a curve is odd, and says it once, while it can still be stopped.

    rollouts, evaluations, updates ─▶ signs (is it so now?) ─▶ alarms (it has become so)

Invariants
----------
* It decides by what is logged: anybody can find the reason of an alarm in the curves.
* A sign that lasts is one alarm; it may be another after it was gone.
* A resumed training raises the alarms that an unbroken one would: what it remembers is in the checkpoint.

It changes nothing in the training, and sends nothing: the loop does.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eventlog import Trajectory
from trainer.collectors import At, Collector, Metrics, UpdateStats, finished, mean, returns_of, std

# Returns are judged by the median of so many rollout batches' means: one bad batch is noise.
WINDOW = 3
# A fall counts if it is this many standard errors of one mean ...
STANDARD_ERRORS = 4.0
# ... and this share of the way from the lowest level seen to the best ...
FALL_SHARE = 0.5
# ... and this share of the best.
FALL_LEAST = 0.1
CLIP_FRACTION_HIGH = 0.3
ENTROPY_SHARE_LOW = 0.02  # of the first step's
KL_HIGH = 1.0  # nats per token
DRIFT_HIGH = 0.1  # mean |difference| of log-probs
ALL_EQUAL_SHARE = 0.9  # of the groups
EXCEPTIONS_SHARE = 0.5  # of the trajectories
JUDGE_SUCCESS_LOW = 0.8  # of the calls: `judge/success_rate`
REASON_MAX_LENGTH = 200


@dataclass(frozen=True)
class Alarm:
    title: str
    text: str
    level: str  # INFO, WARN or ERROR, as in W&B


@dataclass
class Level:
    """Where a mean stands, by the median of the last `window` of them, and between what it has been."""

    window: int
    recent: list[float] = field(default_factory=list)
    best: float | None = None
    worst: float | None = None

    def collapse(self, values: Sequence[float]) -> tuple[float, float] | None:
        """Take the next values; return (level now, best level) if it has collapsed."""
        self.recent = [*self.recent, mean(values)][-self.window :]
        if len(self.recent) < self.window:
            return None
        now = statistics.median(self.recent)
        best = now if self.best is None else self.best
        worst = now if self.worst is None else self.worst
        self.best, self.worst = max(best, now), min(worst, now)
        error = std(values, unbiased=False) / math.sqrt(len(values))
        # What falls below all that was seen has fallen all the way.
        fall, way = best - now, best - min(worst, now)
        least = max(STANDARD_ERRORS * error, FALL_SHARE * way, FALL_LEAST * max(abs(best), 1e-9))
        return (now, best) if fall > least else None


class Monitor(Collector):
    def __init__(self) -> None:
        # The held-out problems are always the same, and their first evaluation is of the policy that was given:
        # a training that ruins it in its first batches shows here alone.
        self._held_out = Level(1)
        self._returns = Level(WINDOW)
        self._first_entropy: float | None = None
        self._lasting: list[str] = []
        self._alarms: list[Alarm] = []

    def alarms(self) -> list[Alarm]:
        """Return what is to be said now, once."""
        found, self._alarms = self._alarms, []
        return found

    def of_rollouts(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        returns = returns_of(trajectories)
        if returns:
            collapse = self._returns.collapse(returns)
            self._sign_collapse("The reward collapsed", f"at batch {at.batch_step} the mean return", collapse)
        groups: dict[str | None, set[float | None]] = {}
        for trajectory in finished(trajectories):
            groups.setdefault(trajectory.group, set()).add(trajectory.reward)
        equal = sum(len(rewards) == 1 for rewards in groups.values())
        self._sign(
            "Nothing to learn from",
            bool(groups) and equal >= ALL_EQUAL_SHARE * len(groups),
            f"at batch {at.batch_step} the rewards are equal within {equal} of {len(groups)} groups. The problems "
            "are too easy or too hard for this policy, or it does the same whatever it is asked.",
            "WARN",
        )
        self._sign_exceptions("Episodes fail", f"at batch {at.batch_step}", trajectories)
        calls = [t.info["judge"] for t in finished(trajectories) if "judge" in t.info]
        reasons = [call["error"] for call in calls if call["error"] is not None]
        self._sign(
            "The judge fails",
            len(calls) - len(reasons) < JUDGE_SUCCESS_LOW * len(calls),
            f"at batch {at.batch_step} {len(reasons)} of {len(calls)} calls brought no verdict, most often: "
            f"{_commonest(reasons)}. Answers that nobody judged count as wrong.",
            "ERROR",
        )
        return {}

    def of_update(self, at: At, update: UpdateStats | None, is_batchs_last: bool) -> Metrics:
        if update is None:
            return {}
        if self._first_entropy is None:
            self._first_entropy = update.entropy
        self._sign(
            "The policy has run away",
            not update.kl <= KL_HIGH,
            f"at step {at.global_step} its KL from the reference is {update.kl:.3g} nats per token. "
            "A lower lr, or a higher kl_weight, holds it.",
            "WARN",
        )
        self._sign(
            "The policy has stopped exploring",
            update.entropy < ENTROPY_SHARE_LOW * self._first_entropy,
            f"at step {at.global_step} its entropy is {update.entropy:.3g} nats per token; it began with "
            f"{self._first_entropy:.3g}.",
            "INFO",
        )
        self._sign(
            "Updates are clipped",
            update.clip_fraction > CLIP_FRACTION_HIGH,
            f"at step {at.global_step} the clip stopped {update.clip_fraction:.0%} of the tokens: "
            "the steps are larger than the clip allows. A lower lr, or fewer epochs_per_step, makes them smaller.",
            "WARN",
        )
        return {}

    def of_evaluation(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        rewards = returns_of(trajectories)
        if rewards:
            collapse = self._held_out.collapse(rewards)
            what = f"at step {at.global_step} the held-out reward"
            self._sign_collapse("The held-out reward collapsed", what, collapse)
        # Under a title of its own the last word is said, also where it was said before: it is what the training came to.
        title = "Held-out episodes failed to the end" if at.is_final else "Held-out episodes fail"
        self._sign_exceptions(title, f"at step {at.global_step}", trajectories)
        return {}

    def of_drift(self, at: At, drift: float) -> None:
        """Take the mean difference between the sampler's log-probs and the policy's."""
        self._sign(
            "The sampler is another policy",
            drift > DRIFT_HIGH,
            f"at batch {at.batch_step} the server's log-probs differ from the policy's by {drift:.3g} on average: "
            "it may serve older weights, or other ones.",
            "ERROR",
        )

    def _sign_exceptions(self, title: str, where: str, trajectories: Sequence[Trajectory]) -> None:
        reasons = [t.exception for t in trajectories if t.exception is not None]
        self._sign(
            title,
            len(reasons) >= EXCEPTIONS_SHARE * max(len(trajectories), 1),
            f"{where} {len(reasons)} of {len(trajectories)} episodes raised, most often: {_commonest(reasons)}",
            "ERROR",
        )

    def _sign_collapse(self, title: str, what: str, collapse: tuple[float, float] | None) -> None:
        now, best = collapse or (0.0, 0.0)
        self._sign(
            title,
            collapse is not None,
            f"{what} is {now:.3f}; it has been {best:.3f}. A lower lr may have kept it; best.pt is the state with "
            "the best evaluation.",
            "ERROR",
        )

    def _sign(self, title: str, is_so: bool, text: str, level: str) -> None:
        if not is_so:
            self._lasting = [lasting for lasting in self._lasting if lasting != title]
        elif title not in self._lasting:
            self._lasting.append(title)
            self._alarms.append(Alarm(title, text, level))

    def state(self) -> dict[str, Any]:
        return {
            "held_out": asdict(self._held_out),
            "returns": asdict(self._returns),
            "first_entropy": self._first_entropy,
            "lasting": self._lasting,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._held_out, self._returns = Level(**state["held_out"]), Level(**state["returns"])
        self._first_entropy, self._lasting = state["first_entropy"], list(state["lasting"])


def _commonest(reasons: Sequence[str]) -> str:
    """Return the reason that occurs most, on one short line; numbers do not make two of one.

    >>> _commonest(["no room for 8", "no\\nanswer", "no room for 9"])
    'no room for 8'
    """
    lines = [" ".join(reason.split())[:REASON_MAX_LENGTH] for reason in reasons]
    kinds = [re.sub(r"\d+", "0", line) for line in lines]
    return lines[kinds.index(Counter(kinds).most_common(1)[0][0])] if lines else ""
