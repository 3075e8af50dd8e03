"""What the e-mail agent logs beside the loop's own: `eval/*`, `final_eval/*` and `train/*`, under their seed's names.

`train/*` stands in the first row of each rollout batch, `eval/*` where an evaluation is due, and `final_eval/*` once, of
the policy after the last update. Rewards are ART·E's, from -2 to 1.5; what is called correct is a fraction, 0-1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eventlog import Trajectory
from trainer.collectors import At, Collector, Metrics, finished, means

_MEASURED = ("answer_correct", "sources_correct", "num_turns")
_TRAIN_ONLY = ("answer_correct", "attempted_answer", "num_turns")

_UNITS = {
    "reward": "-2 to 1.5",
    "answer_correct": "fraction",
    "sources_correct": "fraction",
    "num_turns": "turns",
    "duration": "s",
    "prompt_tokens": "tokens",
    "completion_tokens": "tokens",
    "n_trajectories": "trajectories",
}


class EmailMetrics(Collector):
    units: Mapping[str, str] = {
        **{f"{part}/{name}": unit for part in ("eval", "final_eval") for name, unit in _UNITS.items()},
        "eval/exceptions": "trajectories",
        "final_eval/exceptions": "trajectories",
        "train/total_trajectories": "trajectories",
        "train/avg_reward": "-2 to 1.5",
        "train/answer_correct": "fraction",
        "train/attempted_answer": "fraction",
        "train/num_turns": "turns",
        "train/prompt_tokens": "tokens",
        "train/completion_tokens": "tokens",
        "train/epoch": "epochs",
        "train/epoch_step": "rollout batches",
    }
    axes: Mapping[str, str] = {"train/*": "global_step", "final_eval/*": "global_step"}

    def of_rollouts(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        rows = [
            {"avg_reward": t.reward, **_tokens(t), **{name: t.metrics.get(name) for name in _TRAIN_ONLY}}
            for t in finished(trajectories)
        ]
        return {
            "train/total_trajectories": len(trajectories),
            "train/epoch": at.epoch,
            "train/epoch_step": at.epoch_step,
            **means("train/", rows),
        }

    def of_evaluation(self, at: At, trajectories: Sequence[Trajectory]) -> Metrics:
        row = evaluation(trajectories)
        parts = ("eval", "final_eval") if at.is_final else ("eval",)
        return {f"{part}/{name}": value for part in parts for name, value in row.items()}


def evaluation(trajectories: Sequence[Trajectory]) -> Metrics:
    """Return what an evaluation says of these trajectories, without the prefix of its kind."""
    done = finished(trajectories)
    rows = [
        {
            "reward": t.reward,
            "duration": t.duration_s,
            **_tokens(t),
            **{name: t.metrics.get(name) for name in _MEASURED},
        }
        for t in done
    ]
    return {**means("", rows), "n_trajectories": len(done), "exceptions": len(trajectories) - len(done)}


def _tokens(trajectory: Trajectory) -> dict[str, float | None]:
    return {
        "prompt_tokens": trajectory.prompt_tokens,
        "completion_tokens": trajectory.completion_tokens,
    }
