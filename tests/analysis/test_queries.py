"""The queries that `analysis sql` offers, on a log that has an answer to each."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import analysis
from analysis.queries import QUERIES
from eventlog import cursor as cursors
from eventlog.cursor import Cursor, Sink
from tests.logs import TIME_US, HandmadePiece, handmade_run

Rows = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    root = tmp_path_factory.mktemp("root")
    for run_id, lr, reward in (("a", 0.1, 0.5), ("b", 0.1, 0.7), ("c", 0.2, 0.4)):
        run = handmade_run(root, run_id, config={"lr": lr})
        run.log(step=0, **{"train/reward": reward})
        if run_id == "c":
            run.log("alert", title="loss", text="it is NaN", level="ERROR")
        run.log("exit", exitcode=0)
    mixture = handmade_run(root, "mixture")
    mixture.log(step=0, **{"cost/avg_cost_per_sample": 0.02, "train/accuracy": 40.0})
    mixture.log(step=1, **{"cost/avg_cost_per_sample": 0.03, "train/accuracy": 75.0})
    mixture.log(
        step=1, **{"dataset/gsm8k/accuracy": 85.2, "dataset/math/accuracy": 42.1, "judge/success_rate": 0.75}
    )
    cursors.save(
        mixture.piece.dir.parent,
        Cursor(Sink("https://api.wandb.ai", None, "demo", "mixture"), next={"writer": "main-0001", "seq": 1}),
        TIME_US,
    )
    episodes = HandmadePiece(mixture.identity, mixture.piece, stream="trajectories")
    for group, reward, error in (
        ("p1", 0.0, None),
        ("p1", 1.0, None),
        ("p2", -1.0, "timeout"),
        ("p2", 0.0, None),
    ):
        call = {"name": "calculator", "arguments": {}, "error": error, "duration_s": 0.5}
        turns = [
            {"role": "user", "content": f"{reward}"},
            {"role": "assistant", "content": "…", "tool_calls": [call]},
        ]
        episodes.log("trajectory", step=1, id=None, group=group, reward=reward, turns=turns)
    con = analysis.connect(root)
    return {question: con.execute(query).fetchall() for question, query in QUERIES.items()}


def rounded(rows: Rows) -> Rows:
    return [tuple(round(value, 6) if isinstance(value, float) else value for value in row) for row in rows]


LOGGED_AT = datetime.fromtimestamp(TIME_US // 1_000_000, timezone.utc) + timedelta(milliseconds=2)
ANSWERS: dict[str, Rows] = {
    "Which run is best": [("b", "0.1", 0.7, 0, "finished"), ("a", "0.1", 0.5, 0, "finished"), ("c", "0.2", 0.4, 0, "finished")],
    "Where was each run": [("b", 0.7, 0, 0.7, 0), ("a", 0.5, 0, 0.5, 0), ("c", 0.4, 0, 0.4, 0)],
    "How do the seeds": [('{"lr":0.1}', 2, 0.6, 1.27062), ('{"lr":0.2}', 1, 0.4, None)],
    "How far is mathematics": [("mixture", 43.1)],
    "Whose judge fails": [("mixture", 0.75)],
    "At which step": [("mixture", 1, 0.04)],
    "Of how many prompts": [("mixture", 1, 0.5, 0.0)],
    "Which tools fail": [("calculator", 4, 0.25, 0.5)],
    "What did the worst": [(0, "user", "-1.0"), (1, "assistant", "…")],
    "What were we warned": [("c", LOGGED_AT, 0, "loss", "it is NaN")],
    "What is not uploaded": [("mixture", "waiting", 3, None)],
}  # fmt: skip


@pytest.mark.parametrize("question", QUERIES)
def test_every_question_has_its_answer(answers: dict[str, Rows], question: str) -> None:
    (answer,) = [answer for begin, answer in ANSWERS.items() if question.startswith(begin)]

    assert rounded(answers[question]) == answer
