"""The macros against plain Python, on runs that `eventlog` wrote: live, sealed, and some of each.

The examples in the comments of the views and macros run here too.
"""

from __future__ import annotations

import math
import os
import random
import re
import statistics
from collections import defaultdict
from importlib.resources import files as files_of
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest

import analysis
import eventlog
from analysis import naming
from eventlog.seal import clean, seal
from tests.analysis.test_connect import ask
from tests.logs import HandmadePiece, handmade_run

STEPS = 30
RUNS = {
    "first": {"lr": 0.1, "seed": 0, "net": {"layers": 2, "wide": True}},
    "second": {"lr": 0.1, "seed": 1, "net": {"layers": 2, "wide": True}},
    "third": {"lr": 0.1, "seed": 2, "net": {"layers": 2, "wide": True}},
    "other": {"lr": 1, "seed": 0, "net": {"layers": 3}, "none": None, "odd key's": [1]},
}

Row = dict[str, Any]


def rows_of(run_id: str) -> list[Row]:
    """Return what a run logs at each step."""
    rng = random.Random(run_id)
    rows = []
    for step in range(STEPS):
        row: Row = {
            "train/loss": rng.gauss(1, 0.3) if step % 7 != 3 else math.nan,
            "train/accuracy": 100 * rng.random() if step != 5 else 0.0,
            "cost/avg_cost_per_sample": rng.random() / 100,
            "judge/success_rate": round(rng.uniform(0.7, 1.0), 2) if step > 3 else 1.0,
            "dataset/gsm8k/accuracy": 100 * rng.random(),
            "checkpoint/step": step,
        }
        if step % 3 == 0:
            row["dataset/math/accuracy"] = rng.choice([50, 42.5])
        rows.append(row)
    return rows


def episodes_of(run_id: str) -> list[tuple[int, eventlog.Trajectory]]:
    rng = random.Random(f"episodes {run_id}")
    episodes = []
    for step in range(3):
        for split, n_prompts in (("train", 4), ("eval", 2)):
            for prompt in range(n_prompts):
                for member in range(3):
                    error = rng.choice([None, None, "timeout"])
                    reward = rng.choice([0.0, 1.0, 1.0, -0.5]) if prompt else 0.0
                    call = eventlog.ToolCall(
                        rng.choice(["calculator", "search"]),
                        {"e": member},
                        error=error,
                        duration_s=rng.random(),
                    )
                    turns = [
                        eventlog.Turn("system", "be kind"),
                        eventlog.Turn("user", f"What is {prompt} + {prompt if split == 'eval' else step}?"),
                        eventlog.Turn("assistant", rng.choice(["Sorry, é", "So: 4"]), [call]),
                    ][: 2 if member == 2 and prompt == 3 else None]
                    episodes.append(
                        (
                            step,
                            eventlog.Trajectory(
                                turns,
                                id=f"{step}.{prompt}.{member}",
                                group=f"{split}.{step}.{prompt}" if prompt != 2 else None,
                                reward=None
                                if member == 1 and prompt == 3
                                else math.nan
                                if member == 0 and prompt == 3
                                else reward,
                                token_ids=list(range(rng.randrange(5, 50))),
                                completion_tokens=rng.randrange(1, 9),
                                duration_s=rng.random(),
                                stop_reason=rng.choice(["done", "length", None]),
                                exception="Boom" if member == 2 and prompt == 3 else None,
                                info={
                                    "split": split,
                                    "source": ["gsm8k", "math"][prompt % 2],
                                    "domain": "math",
                                },
                            ),
                        )
                    )
    return episodes  # fmt: skip


@pytest.fixture(scope="module", params=["live", "sealed", "some of each"])
def con(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> duckdb.DuckDBPyConnection:
    root = tmp_path_factory.mktemp("root")
    for n, (run_id, config) in enumerate(RUNS.items()):
        with eventlog.init(project="demo", id=run_id, root=root, quiet=True, config=config) as run:
            for step, row in enumerate(rows_of(run_id)):
                run.log(row, step=step)
                if step == 11:
                    run.log({"train/loss": 7.0, "dataset/math/accuracy": 10}, step=step)
            for step, episode in episodes_of(run_id):
                run.log_trajectory(episode, step=step)
            run.alert("late", "…", level="WARN")
            run.summary["note"] = f"of {run_id}"
        if request.param == "sealed" or (request.param == "some of each" and n % 2):
            assert seal(root / "demo" / run_id).damage == []
            clean(root / "demo" / run_id)
    return analysis.connect(root)


def curve_of(run_id: str, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of a key, in the order of the log."""
    found = []
    for step, row in enumerate(rows_of(run_id)):
        if key in row:
            found.append((step, row[key]))
        if step == 11:
            found += [
                (step, value)
                for at, value in {"train/loss": 7.0, "dataset/math/accuracy": 10}.items()
                if at == key
            ]
    return found  # fmt: skip


def by_step(run_id: str, key: str) -> dict[int, float]:
    return dict(curve_of(run_id, key))


def close(rows: list[Any], expected: list[Any]) -> bool:
    """Whether they agree, floats to 12 digits."""
    plain = [[row] if not isinstance(row, (tuple, list)) else list(row) for row in rows]
    wanted = [[row] if not isinstance(row, (tuple, list)) else list(row) for row in expected]
    return len(plain) == len(wanted) and all(
        len(row) == len(other)
        and all(
            math.isclose(a, b, rel_tol=1e-11, abs_tol=1e-11) or (math.isnan(a) and math.isnan(b))
            if isinstance(a, float) and isinstance(b, (int, float))
            else a == b
            for a, b in zip(row, other, strict=True)
        )
        for row, other in zip(plain, wanted, strict=True)
    )


# -- the examples ---------------------------------------------------------------------------------------------


def examples() -> list[str]:
    found: list[str] = []
    for name in ("views.sql", "macros.sql"):
        text = files_of("analysis").joinpath(name).read_text(encoding="utf-8")
        for block in re.findall(r"(?:^-- > .*\n)+", text, re.MULTILINE):
            for line in block.splitlines():
                line = line.removeprefix("-- > ")
                if found and line.startswith("QUALIFY"):
                    found[-1] += f"\n{line}"
                else:
                    found.append(line)
    return found


# These find what no run of this root has.
FIND_NOTHING = (
    "FROM checkpoints",
    "FROM sync_state",
    "'1.0.0' AND 0",
    "FROM console",
    "FROM files",
    "FROM system",
)


@pytest.mark.parametrize("example", examples())
def test_every_example_runs(con: duckdb.DuckDBPyConnection, example: str) -> None:
    rows = con.execute(example).fetchall()

    assert rows or any(text in example for text in FIND_NOTHING)


def test_every_view_and_macro_has_an_example(con: duckdb.DuckDBPyConnection) -> None:
    names = [*naming.views(con), *(name for name, _ in naming.macros(con)), "metrics_of"]

    shown = set(re.findall(r"\w+", " ".join(re.findall(r"FROM \w+", " ".join(examples())))))

    assert len(names) >= 30
    assert [name for name in names if name not in shown] == []


# -- curves ---------------------------------------------------------------------------------------------------


def test_a_curve_is_what_was_logged_in_order(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(con, "SELECT step, value FROM curve('second', 'train/loss')")

    assert close(rows, curve_of("second", "train/loss"))


def test_curves_are_those_of_each_run(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(con, "SELECT run_id, step, value FROM curves(['first', 'third', 'nobody'], 'train/loss')")

    assert close(
        rows, [(run_id, *point) for run_id in ("first", "third") for point in curve_of(run_id, "train/loss")]
    )


def smoothed(values: list[float], alpha: float) -> list[float]:
    last, found = 0.0, []
    for n, value in enumerate(values, start=1):
        last = last * alpha + (1 - alpha) * value
        found.append(last / (1 - alpha**n))
    return found


@pytest.mark.parametrize("alpha", [0, 0.1, 0.6, 0.99])
def test_ema_is_wandbs_smoothing(con: duckdb.DuckDBPyConnection, alpha: float) -> None:
    points = [(step, value) for step, value in curve_of("first", "train/loss") if math.isfinite(value)]

    rows = ask(con, f"SELECT step, ema FROM ema('first', 'train/loss', {alpha})")

    expected = smoothed([value for _, value in points], alpha)
    assert close(rows, [(step, value) for (step, _), value in zip(points, expected, strict=True)])


@pytest.mark.parametrize("alpha", [1e-200, 0.001, 0.5, 0.9, 0.999, 0.999999])
def test_ema_of_a_long_curve_is_as_exact(tmp_path: Path, alpha: float) -> None:
    run = handmade_run(tmp_path)
    rng = random.Random(0)
    values = [rng.gauss(0, 1) * 10 ** rng.randrange(-3, 4) for _ in range(3000)]
    for step, value in enumerate(values):
        run.log(step=step, x=value)

    rows = ask(analysis.connect(tmp_path), f"SELECT ema FROM ema('run', 'x', {alpha})")

    for row, expected in zip(rows, smoothed(values, alpha), strict=True):
        assert row == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_ema_refuses_what_is_no_weight(con: duckdb.DuckDBPyConnection) -> None:
    for alpha in (1, -0.1):
        with pytest.raises(duckdb.Error, match="from 0 to below 1"):
            ask(con, f"FROM ema('first', 'train/loss', {alpha})")


# -- runs against each other ----------------------------------------------------------------------------------


def test_compare_runs_puts_last_values_side_by_side(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(
        con, "SELECT key, value_a, value_b, difference, text_a, text_b FROM compare_runs('first', 'other')"
    )

    expected: list[Any] = []
    for key in sorted(rows_of("first")[0] | {"dataset/math/accuracy": 0}):
        # A step that was over does not count, as it does not in W&B's summary.
        a, b = (curve_of(run_id, key)[-1][1] for run_id in ("first", "other"))
        expected.append((key, float(a), float(b), float(b) - float(a), None, None))
    expected.append(("note", None, None, None, "of first", "of other"))
    assert close(rows, sorted(expected))


def test_what_only_one_run_has_is_compared_with_nothing(tmp_path: Path) -> None:
    handmade_run(tmp_path, "a").log(x=1, both=1)
    handmade_run(tmp_path, "b").log(y=2, both=3)
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT key, value_a, value_b, difference FROM compare_runs('a', 'b')")

    assert rows == [("both", 1.0, 3.0, 2.0), ("x", 1.0, None, None), ("y", None, 2.0, None)]


def test_config_diff_is_what_is_configured_otherwise(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(con, "FROM config_diff('first', 'other')")

    assert rows == [
        ("lr", "0.1", "1"),
        ("net.layers", "2", "3"),
        ("net.wide", "true", None),
        ("none", None, "null"),
        ("odd key's", None, "[1]"),
    ]
    assert ask(con, "FROM config_diff('first', 'first')") == []


def test_config_diff_takes_equal_numbers_for_equal(tmp_path: Path) -> None:
    big = 2**60
    handmade_run(tmp_path, "a", config={"lr": 1, "big": big, "n": {"x": 1, "y": 2}, "t": "1", "null": None})
    handmade_run(
        tmp_path, "b", config={"lr": 1.0, "big": big + 1, "n": {"y": 2, "x": 1}, "t": 1, "null": None}
    )
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT key FROM config_diff('a', 'b')")

    assert rows == ["big", "t"]


T_975 = {1: 12.706205, 2: 4.302653}


def test_seeds_ci_is_over_runs_that_differ_in_the_seed_alone(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(con, "SELECT setting ->> 'lr' AS lr, step, n, mean, low, high FROM seeds_ci('train/loss')")

    expected: list[Any] = []
    for lr, run_ids in (("0.1", ["first", "second", "third"]), ("1", ["other"])):
        for step in range(STEPS):
            # Of a step that was logged twice, the last value; NaN is none.
            values = [by_step(run_id, "train/loss")[step] for run_id in run_ids]
            if math.isnan(values[0]):
                continue
            middle = statistics.fmean(values)
            interval: Any = None, None
            if len(values) > 1:
                half = T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
                interval = middle - half, middle + half
            expected.append((lr, step, len(values), middle, *interval))
    assert close(rows, expected)


def test_seeds_ci_may_be_asked_over_all_that_share_some_keys(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(con, "SELECT setting, n FROM seeds_ci('checkpoint/step', alike := ['seed']) WHERE step = 0")

    assert rows == [('{"seed":0}', 2), ('{"seed":1}', 1), ('{"seed":2}', 1)]


def test_the_quantiles_of_t_are_those_of_the_tables(con: duckdb.DuckDBPyConnection) -> None:
    known = {
        0: None,
        1: 12.706205,
        4: 2.776445,
        30: 2.042272,
        31: 2.039513,
        60: 2.000298,
        120: 1.979930,
        10**9: 1.959964,
    }

    for df, expected in known.items():
        (found,) = ask(con, f"SELECT internal.t_975({df})")
        assert found == (None if expected is None else pytest.approx(expected, abs=1.5e-6))  # fmt: skip


# -- a mixture with a judge -----------------------------------------------------------------------------------


def test_dataset_gap_is_in_percentage_points_by_step(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(con, "SELECT step, gsm8k, math, gap FROM dataset_gap('first')")

    gsm8k, mathematics = by_step("first", "dataset/gsm8k/accuracy"), by_step("first", "dataset/math/accuracy")
    assert close(rows, [(s, gsm8k[s], m, gsm8k[s] - m) for s, m in sorted(mathematics.items())])


@pytest.mark.parametrize("window", [10, 3])
def test_judge_health_is_a_moving_mean_and_says_where_it_went_bad(
    con: duckdb.DuckDBPyConnection, window: int
) -> None:
    rows = ask(
        con,
        f"SELECT step, success_rate, mean, is_bad, first_bad_step FROM judge_health('third', steps := {window})",
    )

    rates = list(by_step("third", "judge/success_rate").values())
    first_bad = next(step for step, rate in enumerate(rates) if rate < 0.8)
    expected = [
        (step, rate, statistics.fmean(rates[max(0, step + 1 - window) : step + 1]), rate < 0.8, first_bad)
        for step, rate in enumerate(rates)
    ]
    assert close(rows, expected)


def test_cost_efficiency_has_the_best_step_first(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(con, "SELECT step, cost_per_correct FROM cost_efficiency('first')")

    cost, accuracy = by_step("first", "cost/avg_cost_per_sample"), by_step("first", "train/accuracy")
    found = sorted((cost[s] / (accuracy[s] / 100), s) for s in cost if accuracy[s])
    assert close(rows, [(s, value) for value, s in found] + [(5, None)])


# -- trajectories ---------------------------------------------------------------------------------------------


def played(split: str | None = None) -> dict[int, list[eventlog.Trajectory]]:
    found: dict[int, list[eventlog.Trajectory]] = defaultdict(list)
    for step, episode in episodes_of("first"):
        if split in (None, episode.info["split"]):
            found[step].append(episode)
    return found


def rewards_of(episodes: list[eventlog.Trajectory]) -> list[float]:
    return [e.reward for e in episodes if e.reward is not None and not math.isnan(e.reward)]


def mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


@pytest.mark.parametrize("above", [0, -1])
def test_pass_at_group_is_over_prompts(con: duckdb.DuckDBPyConnection, above: int) -> None:
    rows = ask(
        con,
        f"""SELECT step, prompts, trajectories, pass_at_group, dead_groups, mean_reward
        FROM pass_at_group('first', above := {above})""",
    )

    expected = []
    for step, episodes in played("train").items():
        groups: dict[Any, list[eventlog.Trajectory]] = defaultdict(list)
        for n, episode in enumerate(episodes):
            groups[episode.group or n].append(episode)
        rewards = list(map(rewards_of, groups.values()))
        solved = sum(any(reward > above for reward in group) for group in rewards)
        dead = sum(len(set(group)) <= 1 for group in rewards)
        expected.append(
            (
                step,
                len(groups),
                len(episodes),
                solved / len(groups),
                dead / len(groups),
                mean(rewards_of(episodes)),
            )
        )
    assert close(rows, expected)  # fmt: skip


def test_reward_by_source_is_over_time(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(con, "SELECT step, source, trajectories, mean_reward, correct FROM reward_by_source('first')")

    expected = []
    for step, episodes in played("train").items():
        for source in ("gsm8k", "math"):
            of_source = [e for e in episodes if e.info["source"] == source]
            rewards = rewards_of(of_source)
            expected.append(
                (step, source, len(of_source), mean(rewards), mean([float(r > 0) for r in rewards]))
            )
    assert close(rows, expected)


def test_tool_failures_are_by_tool_and_step(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(con, "SELECT step, name, calls, failures, failure_rate, mean_s FROM tool_failures('first')")

    expected = []
    for step, episodes in played("train").items():
        calls = [call for e in episodes for turn in e.turns for call in turn.tool_calls]
        for name in ("calculator", "search"):
            of_name = [call for call in calls if call.name == name]
            failed = sum(call.error is not None for call in of_name)
            duration_s = mean([call.duration_s for call in of_name if call.duration_s is not None])
            expected.append((step, name, len(of_name), failed, failed / len(of_name), duration_s))
    assert close(rows, expected)


def test_trajectory_lengths_are_statistics_by_step(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(
        con,
        """SELECT step, trajectories, mean_turns, max_turns, mean_completion_tokens, max_completion_tokens, mean_tokens,
        median_tokens, max_tokens, mean_s, cut_off FROM trajectory_lengths('first')""",
    )

    expected = []
    for step, episodes in played("train").items():
        turns, tokens = [len(e.turns) for e in episodes], [len(e.token_ids) for e in episodes]
        completions = [e.completion_tokens or 0 for e in episodes]
        cut_off = [float(e.stop_reason == "length") for e in episodes]
        duration_s = mean([e.duration_s or 0 for e in episodes])
        expected.append(
            (
                step,
                len(episodes),
                mean(turns),
                max(turns),
                mean(completions),
                max(completions),
                mean(tokens),
                statistics.median(tokens),
                max(tokens),
                duration_s,
                mean(cut_off),
            )
        )
    assert close(rows, expected)  # fmt: skip


def test_same_prompts_are_matched_by_their_text(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(
        con,
        "SELECT split, prompt, n_a, reward_a, n_b, reward_b, difference, answer_b FROM same_prompts('first', 0, 2)",
    )

    asked: dict[Any, list[list[eventlog.Trajectory]]] = {}
    for at, step in enumerate((0, 2)):
        for e in played()[step]:
            key = e.info["split"], f"system: be kind\nuser: {e.turns[1].content}"
            asked.setdefault(key, [[], []])[at].append(e)
    expected = []
    for (split, prompt), (before, after) in asked.items():
        if before and after:
            a, b = mean(rewards_of(before)), mean(rewards_of(after))
            difference = None if a is None or b is None else b - a
            expected.append(
                (split, prompt, len(before), a, len(after), b, difference, after[0].turns[-1].content)
            )
    expected.sort(key=lambda row: (row[6] is None, row[6], row[1]))
    assert close(rows, expected)
    assert {row[0] for row in rows} >= {"eval"}
    assert all(a[6] is None or b[6] is None or a[6] <= b[6] for a, b in pairwise(rows))


@pytest.mark.parametrize(
    ("wanted", "is_wanted"),
    [
        ("words := 'sorry, É'", lambda e: any("Sorry" in turn.content for turn in e.turns)),
        ("words := '100%'", lambda e: False),
        ("tool := 'search'", lambda e: any(c.name == "search" for t in e.turns for c in t.tool_calls)),
        ("failed := true", lambda e: e.exception is not None or any(c.error for t in e.turns for c in t.tool_calls)),
        ("failed := false", lambda e: e.exception is None and not any(c.error for t in e.turns for c in t.tool_calls)),
        ("lowest := 0, highest := 0.5", lambda e: 0 in rewards_of([e])),
        ("tool := 'calculator', highest := 0", lambda e: any(c.name == "calculator" for t in e.turns for c in t.tool_calls) and any(r <= 0 for r in rewards_of([e]))),
    ],
)  # fmt: skip
def test_find_trajectories_finds_what_matches_all(
    con: duckdb.DuckDBPyConnection, wanted: str, is_wanted: Any
) -> None:
    rows = ask(con, f"SELECT seq FROM find_trajectories(run := 'first', {wanted})")

    assert rows == [seq for seq, (_, episode) in enumerate(episodes_of("first")) if is_wanted(episode)]


def test_find_trajectories_without_a_run_looks_at_all(con: duckdb.DuckDBPyConnection) -> None:
    rows = ask(
        con,
        "SELECT run_id, count(*) FROM find_trajectories(words := 'kind') WHERE first_turn = 0 GROUP BY ALL ORDER BY ALL",
    )

    assert rows == [(run_id, len(episodes_of(run_id))) for run_id in sorted(RUNS)]


# -- what is opened -------------------------------------------------------------------------------------------

OF_ONE_RUN = [
    "curve('b', 'x')",
    "curves(['b'], 'x')",
    "curves(['b', 'nobody'], 'x')",
    "ema('b', 'x', 0.5)",
    "compare_runs('b', 'b')",
    "config_diff('b', 'nobody')",
    "dataset_gap('b')",
    "judge_health('b')",
    "cost_efficiency('b')",
    "pass_at_group('b')",
    "reward_by_source('b')",
    "tool_failures('b')",
    "trajectory_lengths('b')",
    "same_prompts('b', 0, 0)",
    "find_trajectories(run := 'b', words := 'hi')",
]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_macro_over_one_run_opens_its_files_alone(tmp_path: Path, sealed: bool) -> None:
    for run_id in ("a", "b", "c"):
        run = handmade_run(tmp_path, run_id, config={"lr": 1})
        run.log(
            step=0,
            **dict.fromkeys(
                ["x", "dataset/gsm8k/accuracy", "dataset/math/accuracy", "judge/success_rate", "train/accuracy", "cost/avg_cost_per_sample"], 1
            ),
        )  # fmt: skip
        turns = [{"role": "user", "content": "hi", "tool_calls": [{"name": "t"}]}]
        HandmadePiece(run.identity, run.piece, stream="trajectories").log(
            "trajectory", step=0, turns=turns, reward=1.0
        )
        run.die()
        if sealed:
            assert seal(run.piece.dir.parent).damage == []
            clean(run.piece.dir.parent)
    con = analysis.connect(tmp_path)
    # The first sealed file is opened for its columns.
    for file in (tmp_path / "demo" / "c" / "main-0001").glob("*-*"):
        file.write_bytes(b"x" * 1000)
        if not sealed:
            os.truncate(file, 200 * 1024 * 1024)

    for macro in OF_ONE_RUN:
        assert ask(con, f"FROM {macro}"), macro
    assert len(analysis.history(con, "b").fetchall()) == 1
    with pytest.raises(duckdb.Error):
        ask(con, "SELECT * FROM metrics")


def test_one_id_in_two_projects_is_two_runs(tmp_path: Path) -> None:
    for project, rate in (("p", 0.5), ("q", 0.9)):
        run = handmade_run(tmp_path, "same", project=project)
        for step in range(2):
            run.log(step=step, **{"judge/success_rate": rate})
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT project, step, mean, first_bad_step FROM judge_health('same')")

    assert rows == [("p", 0, 0.5, 0), ("p", 1, 0.5, 0), ("q", 0, 0.9, None), ("q", 1, 0.9, None)]


@pytest.mark.parametrize("macro", [*OF_ONE_RUN, "seeds_ci('x')", "find_trajectories()"])
def test_an_empty_root_has_the_same_columns(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, macro: str
) -> None:
    none = analysis.connect(tmp_path / "none")

    assert ask(none, f"DESCRIBE FROM {macro}") == ask(con, f"DESCRIBE FROM {macro}")
    assert ask(none, f"FROM {macro}") == []


# -- a run as a table -----------------------------------------------------------------------------------------


def test_history_is_a_row_for_each_step_and_a_column_for_each_key(con: duckdb.DuckDBPyConnection) -> None:
    table = analysis.history(con, "first")

    rows = rows_of("first")
    rows[11] |= {"train/loss": 7.0, "dataset/math/accuracy": 10}
    keys = sorted({key for row in rows for key in row})
    assert table.columns == ["project", "step", *keys]
    assert close(table.fetchall(), [("demo", step, *map(row.get, keys)) for step, row in enumerate(rows)])


def test_history_takes_any_key_and_value(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="run", root=tmp_path, quiet=True) as run:
        run.log({"loss": 3, "q\"'é": 0.5, "project": 4, "step": 5, "null": None}, step=1)
        run.log({"Loss": 1, "loss": 2, "q\"'é": "x", "yes": True, "d": {"step": math.inf}}, step=2)
        run.log({"loss": None}, step=2)
    con = analysis.connect(tmp_path)

    table = analysis.history(con, "run")

    assert [str(kind) for kind in table.types] == [
        "VARCHAR",
        "BIGINT",
        *["DOUBLE"] * 5,
        "VARCHAR",
        "DOUBLE",
        "DOUBLE",
    ]
    assert table.fetchall() == [
        ("demo", 1, None, None, 3.0, None, 4.0, "0.5", 5.0, None),
        ("demo", 2, 1.0, math.inf, 2.0, None, None, "x", None, 1.0),
    ]
    assert analysis.history(con, "nobody").fetchall() == []


def test_history_of_five_thousand_keys_has_so_many_columns(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for step in range(3):
        run.log(step=step, **{f"k{n}": n + step for n in range(5000)})

    rows = analysis.history(analysis.connect(tmp_path), "run").fetchall()

    assert [(len(row), sum(row[2:])) for row in rows] == [
        (5002, 12497500.0 + 5000 * step) for step in range(3)
    ]
