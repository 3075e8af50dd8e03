"""What the views say about logs, whatever was logged and however the logs ended."""

from __future__ import annotations

import gc
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import analysis
import eventlog
from eventlog import cursor as cursors
from eventlog.cursor import Cursor, Sink
from eventlog.piece import RunIdentity, claim_secondary, this_host
from eventlog.reader import read
from eventlog.record import encode, frame
from eventlog.seal import seal
from tests.logs import TIME_US, HandmadePiece, handmade_run, resumed

VIEWS = [
    "runs",
    "config",
    "metrics",
    "summary",
    "trajectories",
    "messages",
    "tool_calls",
    "sync_state",
    "records",
]


def ask(con: duckdb.DuckDBPyConnection, query: str, *values: Any) -> list[Any]:
    """Return the rows; of one column, its values."""
    rows = con.execute(query, list(values)).fetchall()
    return [row[0] for row in rows] if rows and len(rows[0]) == 1 else rows


def test_no_runs_have_the_same_views_with_nothing_in_them(tmp_path: Path) -> None:
    handmade_run(tmp_path / "some").log(x=1)
    some, none = analysis.connect(tmp_path / "some"), analysis.connect(tmp_path / "none")

    described = [(view, ask(some, f"DESCRIBE {view}"), ask(none, f"DESCRIBE {view}")) for view in VIEWS]

    for view, with_runs, without in described:
        assert with_runs == without
        assert ask(none, f"SELECT * FROM {view}") == []


def test_what_was_logged_is_there_at_the_next_query(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    con = analysis.connect(tmp_path)

    run.log(step=0, loss=0.5)
    first = ask(con, "SELECT value FROM metrics")
    run.log(step=1, loss=0.25)
    second = ask(con.cursor(), "SELECT value FROM metrics ORDER BY seq")

    assert first == [0.5]
    assert second == [0.5, 0.25]


def test_what_is_configured_and_came_to_the_same_is_the_same_text(tmp_path: Path) -> None:
    for number in range(12):
        config = {f"key{(number + n) % 12}": (number + n) % 12 for n in range(12)}
        handmade_run(tmp_path, f"run{number}", config=config).log(step=0, **config)
    con = analysis.connect(tmp_path)

    assert ask(con, "SELECT count(DISTINCT config), count(DISTINCT summary) FROM runs") == [(1, 1)]


def test_new_segments_pieces_and_runs_are_there_after_a_refresh(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    con = analysis.connect(tmp_path)

    run.new_segment()
    run.log(step=0, x=1)
    run.die()
    resumed(run.identity, tmp_path).log(step=1, x=2)
    handmade_run(tmp_path, "other").log(step=0, x=3)
    analysis.refresh(con)

    assert ask(con, "SELECT value FROM metrics ORDER BY value") == [1, 2, 3]


# -- what counts ----------------------------------------------------------------------------------------------


def seqs(con: duckdb.DuckDBPyConnection) -> list[int]:
    return sorted(ask(con, "SELECT seq FROM records"))


def truth(run: HandmadePiece) -> list[int]:
    return [record.seq for record in read(run.piece.dir.parent)]


def test_a_live_log_cut_at_any_byte_shows_what_was_committed(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for x in range(3):
        run.log(step=x, x=x)
    size, two_records = run.segment.stat().st_size, len(run.lines[-1]) + len(run.lines[-2])
    con = analysis.connect(tmp_path)

    shown, committed = [], []
    for cut in range(size, size - two_records - 1, -1):
        run.cut(cut)
        shown.append(seqs(con))
        committed.append(truth(run))

    assert shown == committed
    assert shown[0] == [0, 1, 2, 3]
    assert shown[-1] == [0, 1]


def test_a_dead_log_whose_last_record_lacks_only_its_newline_shows_what_was_committed(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, x=0)
    run.log(step=1, x=1)
    run.cut(run.segment.stat().st_size - 1)
    run.die()
    con = analysis.connect(tmp_path)

    shown = seqs(con)

    assert shown == truth(run) == [0, 1]


def test_a_torn_tail_that_is_whole_json_does_not_count_before_a_later_segment(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, x=0)
    run.append(encode(2, TIME_US, "metrics", {"x": "never committed"}, 1)[:-1])
    run.new_segment()
    run.log(step=1, x="committed")
    con = analysis.connect(tmp_path)

    shown = ask(con, "SELECT seq, text FROM metrics ORDER BY seq")

    assert shown == [(1, None), (2, "committed")]


def test_records_that_were_written_twice_are_there_once(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for x in range(4):
        run.log(step=x, x=x)
    run.new_segment(first_seq=2)
    run.append(b"".join(run.lines[2:]))
    run.log(step=4, x=4)
    run.new_segment(first_seq=2, attempt=1)
    run.append(b"".join(run.lines[2:4]))
    con = analysis.connect(tmp_path)

    shown = seqs(con)

    assert shown == [0, 1, 2, 3, 4, 5]


def test_the_part_that_a_killed_rewrite_did_not_reach_is_there(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for x in range(4):
        run.log(step=x, x=x)
    run.new_segment(first_seq=2)
    run.append(run.lines[2] + run.lines[3][:30])
    run.die()
    con = analysis.connect(tmp_path)

    shown = seqs(con)

    assert shown == [0, 1, 2, 3, 4]


def test_damage_costs_no_other_record(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for x in range(3):
        run.log(step=x, x=x)
    run.overwrite(run.offset_of(2), b"\0" * (len(run.lines[2]) - 1))
    con = analysis.connect(tmp_path)

    shown = seqs(con)

    assert shown == [0, 1, 3]


def test_with_verify_no_flipped_bit_of_a_record_gets_through(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for x in range(3):
        run.log(step=x, x=x)
    run.die()
    con = analysis.connect(tmp_path, verify=True)
    at = run.offset_of(2)

    shown, committed = [], []
    for n, byte in list(enumerate(run.lines[2]))[::2]:
        run.overwrite(at + n, bytes([byte ^ 1]))
        analysis.refresh(con)
        shown.append(seqs(con))
        committed.append(truth(run))
        run.overwrite(at + n, bytes([byte]))

    assert shown == committed


def test_a_segment_of_an_unknown_format_is_left_out_with_a_word(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.new_segment()
    run.segment.write_bytes(
        frame(b'"format":2,"stream":"events"}') + encode(1, TIME_US, "metrics", {"x": 1}, 0)
    )

    with pytest.warns(UserWarning, match="has format 2"):
        con = analysis.connect(tmp_path)

    assert seqs(con) == [0]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, x=1)
    run_dir = run.piece.dir.parent
    line = encode(7, TIME_US, "metrics", {"x": "foreign"}, 0)
    (tmp_path / "demo" / "no-run").mkdir()
    (tmp_path / "demo" / "no-run" / "events-000000000000.jsonl").write_bytes(line)
    (run_dir / "events-000000000000.jsonl").write_bytes(line)
    (run_dir / "backup").mkdir()
    (run_dir / "backup" / "events-000000000000.jsonl").write_bytes(line)
    (run.piece.dir / "events-000000000001.jsonl.bak").write_bytes(line)
    (run.piece.dir / "notes.txt").write_text("mine")
    (run.piece.dir / "events-000000000005.jsonl").symlink_to(run_dir / "events-000000000000.jsonl")
    (run.piece.dir / "events-000000000006.jsonl").mkdir()
    run.append(
        line[:-1].replace(b'"seq":7,', b"") + b'\n{"seq":8}\n{"seq":1,"kind":"metrics"}\n[1,2]\n12\n\n'
    )
    con = analysis.connect(tmp_path)

    shown = seqs(con)

    assert shown == [0, 1]


@pytest.mark.parametrize("name", ["[a]*?", "it's", "seq=7", "späth 模型", '"quoted"'])
def test_any_directory_may_be_the_root(tmp_path: Path, name: str) -> None:
    handmade_run(tmp_path / name).log(step=0, x=1)
    con = analysis.connect(tmp_path / name)

    shown = ask(con, "SELECT value FROM metrics")

    assert shown == [1]


@pytest.mark.parametrize("name", ["../../x", "研究 7", 'it\'s "so"', "a" * 300, "."])
def test_a_run_has_the_name_that_it_was_given(tmp_path: Path, name: str) -> None:
    handmade_run(tmp_path, run_id=name, project=name).log(step=0, x=1)
    handmade_run(tmp_path, run_id="plain").log(step=0, x=2)
    con = analysis.connect(tmp_path)

    shown = ask(con, "SELECT value FROM metrics WHERE project = ? AND run_id = ?", name, name)

    assert shown == [1]
    assert ask(con, "SELECT run_id FROM runs WHERE project = ?", name) == [name]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM metrics WHERE run_id = 'b' AND key = 'x'",
        "SELECT * FROM curve('b', 'x')",
        "SELECT * FROM summary WHERE run_id = 'b'",
        "SELECT * FROM runs WHERE project = 'demo' AND run_id = 'b'",
    ],
)
def test_one_run_is_asked_without_reading_the_others(tmp_path: Path, query: str) -> None:
    for run_id in ("a", "b", "c"):
        run = handmade_run(tmp_path, run_id)
        run.log(step=0, x=1)
        run.die()
    con = analysis.connect(tmp_path)
    for run_id in ("a", "c"):
        # A line this long is none that a writer wrote: whoever reads it fails.
        os.truncate(tmp_path / "demo" / run_id / "main-0001" / "events-000000000000.jsonl", 200 * 1024 * 1024)

    rows = ask(con, query)

    assert len(rows) == 1
    with pytest.raises(duckdb.Error, match="maximum_object_size"):
        ask(con, "SELECT * FROM metrics")


# -- values ---------------------------------------------------------------------------------------------------


def leaves(data: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in data.items():
        found += leaves(value, f"{above}{key}.") if isinstance(value, dict) else [(above + key, value)]
    return found


def shown_as(value: Any) -> tuple[float | None, int | None, Any]:
    """Return what `value`, `int` and `text` should be; a list's text is compared as JSON."""
    if value is None:
        return None, None, None
    if isinstance(value, bool):
        return float(value), None, "true" if value else "false"
    if isinstance(value, int):
        fits = -(2**63) <= value < 2**63
        try:
            number = float(value)
        except OverflowError:
            number = math.copysign(math.inf, value)
        return number, value if fits else None, None if fits else str(value)
    if isinstance(value, float):
        return value, None, None
    return None, None, value


KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1f"), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> tuple[HandmadePiece, duckdb.DuckDBPyConnection]:
    root = tmp_path_factory.mktemp("growing")
    return handmade_run(root), analysis.connect(root)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(KEYS, VALUES, max_size=4))
def test_every_value_comes_back_as_what_it_was(
    growing: tuple[HandmadePiece, duckdb.DuckDBPyConnection], data: dict[str, Any]
) -> None:
    run, con = growing
    run.append(encode(run.seq, TIME_US, "metrics", data, 0))
    run.seq += 1

    rows = ask(con, "SELECT key, value, int, text FROM metrics WHERE seq = ?", run.seq - 1)

    assert repr(sorted(map(comparable, rows), key=repr)) == repr(
        sorted((comparable((key, *shown_as(value))) for key, value in leaves(data)), key=repr)
    )


def comparable(row: tuple[Any, ...]) -> tuple[Any, ...]:
    key, value, number, text = row
    if isinstance(text, list):
        text = json.loads(encode(0, 0, "x", {"list": text})[:-1])["data"]["list"]
    elif isinstance(text, str) and text.startswith("["):
        with suppress(ValueError):
            text = json.loads(text)
    return key, value, number, text


def test_a_number_a_text_and_a_nan_may_share_a_key(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for value in (1, 0.5, float("nan"), "NaN", None, True, [1, float("inf")], 2**64, "1"):
        run.log(x=value)
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT value, int, text FROM metrics ORDER BY seq")

    assert repr(rows) == repr(
        [
            (1.0, 1, None),
            (0.5, None, None),
            (math.nan, None, None),
            (None, None, "NaN"),
            (None, None, None),
            (1.0, None, "true"),
            (None, None, '[1,"Infinity"]'),
            (2.0**64, None, "18446744073709551616"),
            (None, None, "1"),
        ]
    )


def test_a_nested_dict_has_dotted_keys_beside_dotted_keys(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(**{"a": {"b": {"c": 1}, "d": float("nan"), "none": {}}, "a.d": "NaN"})
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT key, value, text FROM metrics ORDER BY ALL")

    assert repr(rows) == repr([("a.b.c", 1.0, None), ("a.d", math.nan, None), ("a.d", None, "NaN")])


def test_five_thousand_keys_are_five_thousand_rows(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, **{f"layer/{n}/grad_norm": n for n in range(5000)})
    con = analysis.connect(tmp_path)

    assert ask(con, "SELECT count(*), count(DISTINCT key), sum(int) FROM metrics") == [(5000, 5000, 12497500)]
    assert ask(con, "SELECT count(*), sum(value) FROM summary") == [(5000, 12497500)]


def test_time_is_the_moment_of_the_call(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    con = analysis.connect(tmp_path)

    run.append(encode(1, 1_763_712_000_123_456, "metrics", {"x": 1}, 0))
    run.append(encode(2, 2**62, "metrics", {"x": 2}, 0))

    assert ask(con, "SELECT epoch_us(time) FROM metrics ORDER BY seq") == [1_763_712_000_123_456, None]
    assert ask(con, "SELECT typeof(time) FROM metrics LIMIT 1") == ["TIMESTAMP WITH TIME ZONE"]


def test_every_writer_is_there_under_its_name(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, x=1)
    for label in ("rank3", "fork"):
        beside = HandmadePiece(run.identity, claim_secondary(run.piece.dir.parent, label))
        beside.log(step=0, x=2)
    con = analysis.connect(tmp_path)

    rows = ask(
        con,
        "SELECT regexp_replace(writer, '[0-9a-f]{8}$', '…'), rank, value FROM metrics ORDER BY writer DESC",
    )

    assert rows == [("rank3-…", 3, 2.0), ("main-0001", 0, 1.0), ("fork-…", None, 2.0)]
    assert ask(con, "SELECT value FROM summary") == [1.0]


# -- what a run came to ---------------------------------------------------------------------------------------


def test_config_is_the_overlay_of_starts_and_changes(tmp_path: Path) -> None:
    run = handmade_run(tmp_path, config={"lr": 0.1, "seed": 1, "net": {"layers": 2}, "gone": 5})
    run.log("config", lr=0.2, gone=None)
    run.die()
    again = resumed(run.identity, tmp_path, config={"seed": 2})
    again.log("config", batch=8)
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT key, value FROM config ORDER BY key")

    assert rows == [("batch", "8"), ("gone", None), ("lr", "0.2"), ("net", '{"layers":2}'), ("seed", "2")]
    assert ask(con, "SELECT config ->> '$.net.layers' FROM runs") == ["2"]


def test_summary_is_the_last_value_of_each_key_in_log_order(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, loss=3.0, best=1, note="a")
    run.log(step=1, loss=float("nan"), note="ü")
    run.die()
    resumed(run.identity, tmp_path).log(step=2, loss=1.0)
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT key, value, int, text, step FROM summary ORDER BY key")

    assert rows == [("best", 1.0, 1, None, 0), ("loss", 1.0, None, None, 2), ("note", None, None, "ü", 1)]


def test_a_step_that_was_over_is_not_in_the_summary(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=5, commit=True, x=5)
    run.log(step=5, x=50, after_commit=1)
    run.log(step=3, x=3, only_late=1)
    run.log(step=6, y=6)
    run.log(step=6, x=6)
    run.log(step=5, y=5)
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT key, value FROM summary ORDER BY key")

    assert rows == [("x", 6.0), ("y", 6.0)]
    assert len(ask(con, "SELECT * FROM metrics")) == 8


def test_what_was_set_on_and_deleted_from_the_summary_holds(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(a=1, b=2, c={"d": 1, "e": 2}, f=None)
    run.log("summary", set=[[["a"], float("inf")], [["best", "acc"], 0.9], [["a.b"], "text"]], delete=[])
    run.log("summary", set=[], delete=[["b"], ["c", "d"], ["a", "not there"]])
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT key, value, text FROM summary ORDER BY key")

    assert rows == [("a", math.inf, None), ("a.b", None, "text"), ("best.acc", 0.9, None), ("c.e", 2.0, None)]


def test_a_value_in_the_place_of_a_dict_replaces_it_and_the_reverse(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, to_value={"x": 1, "y": 2}, to_dict=1, both={"x": 1})
    run.log(step=1, to_value=3, to_dict={"x": 4})
    run.log("summary", set=[], delete=[["both"]])
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT key, value FROM summary ORDER BY key")

    assert rows == [("to_dict.x", 4.0), ("to_value", 3.0)]


def test_what_a_run_is_called_is_what_it_said_last(tmp_path: Path) -> None:
    run = handmade_run(tmp_path, name="first", notes="why", tags=["a"], group="g")
    run.log("facts", name="second", tags=["b", "c"])
    run.log("facts", notes=None)
    run.log("exit", exitcode=0)
    run.die()
    resumed(run.identity, tmp_path, tags=["d"])

    con = analysis.connect(tmp_path)

    assert ask(con, 'SELECT name, notes, tags, "group" FROM runs') == [("second", None, ["d"], "g")]


def test_a_run_is_live_until_it_says_how_it_ended_or_is_gone(tmp_path: Path) -> None:
    for run_id, exitcode in (("finished", 0), ("failed", 3)):
        handmade_run(tmp_path, run_id).log("exit", exitcode=exitcode)
    handmade_run(tmp_path, "crashed").die()
    live = handmade_run(tmp_path, "live")
    again = handmade_run(tmp_path, "again")
    again.log("exit", exitcode=1)
    again.die()
    resumed_piece = resumed(again.identity, tmp_path)
    con = analysis.connect(tmp_path)

    states = dict(ask(con, "SELECT run_id, state FROM runs"))

    assert states == {
        "finished": "finished",
        "failed": "failed",
        "crashed": "crashed",
        "live": "live",
        "again": "live",
    }
    live.log("exit", exitcode=0)
    assert ask(con, "SELECT state FROM runs WHERE run_id = 'live'") == ["finished"]
    resumed_piece.die()


def test_another_machines_silent_run_is_stale(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.die()
    text = {"host": f"not-{this_host()}", "boot_id": "another", "pid": 1, "heartbeat": TIME_US}
    (run.piece.dir / "lock").write_text(json.dumps(text))
    con = analysis.connect(tmp_path)

    state = ask(con, "SELECT state FROM runs")

    assert state == ["stale"]


def test_runs_tells_a_run_in_one_row(tmp_path: Path) -> None:
    run = handmade_run(
        tmp_path, name="first", tags=["a", "b"], group="g", job_type="train", host="node-1", config={"lr": 1}
    )
    for step in range(3):
        run.log(step=step, loss=step)
    beside = HandmadePiece(run.identity, run.piece, stream="trajectories")
    beside.log("trajectory", step=0, turns=[])
    run.die()
    again = resumed(run.identity, tmp_path, name="renamed", config={"lr": 2})
    again.log(step=3, loss=3)
    again.log("exit", exitcode=0)
    con = analysis.connect(tmp_path)

    rows = con.execute(
        """SELECT name, state, tags, "group", job_type, host, steps, last_step, records, trajectories, pieces,
        epoch_us(started), round(duration_s, 3), acked, backlog, config, summary, path FROM runs"""
    ).fetchall()

    head = ("renamed", "finished", ["a", "b"], "g", "train", "node-1", 4, 3, 7, 1, 2, TIME_US, 0.005)
    assert rows == [(*head, None, None, '{"lr":2}', '{"loss":3}', str(run.piece.dir.parent))]


def test_sync_state_is_what_the_cursor_says_against_what_the_log_has(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for step in range(3):
        run.log(step=step, x=step)
    run.die()
    again = resumed(run.identity, tmp_path)
    again.log(step=3, x=3)
    sink = Sink("https://api.wandb.ai", None, "demo", "run")
    cursor = Cursor(
        sink, attach={"url": "https://wandb.ai/x"}, next={"writer": "main-0002", "seq": 1}, state="waiting",
        error="offline", not_shown={"repeated": 2},
    )  # fmt: skip
    cursors.save(run.piece.dir.parent, cursor, TIME_US)
    con = analysis.connect(tmp_path)
    again.log(step=4, x=4)

    rows = ask(con, "SELECT base_url, state, records, acked, backlog, error, url, not_shown FROM sync_state")

    assert rows == [
        ("https://api.wandb.ai", "waiting", 7, 5, 2, "offline", "https://wandb.ai/x", '{"repeated":2}')
    ]
    assert ask(con, "SELECT acked, backlog FROM runs") == [(5, 2)]


# -- trajectories ---------------------------------------------------------------------------------------------

TURN = {"role": "user", "content": "2 + 2?", "tool_calls": [], "tool_call_id": None, "duration_s": None}
CALL = {
    "id": "c1",
    "name": "calculator",
    "arguments": {"e": "2+2"},
    "result": "4",
    "error": None,
    "duration_s": 0.5,
}
EPISODE = {
    "id": "t1", "group": "p1", "reward": 1.0, "advantage": 0.5,
    "turns": [TURN, {**TURN, "role": "assistant", "content": "é", "tool_calls": [CALL, {**CALL, "error": "timeout"}]}],
    "token_ids": [1, 2, 3], "mask": [0, 1, 1], "logprobs": [-0.5, float("-inf")], "metrics": {"turns": 2.0},
    "prompt_tokens": 1, "completion_tokens": 2, "started_us": TIME_US, "duration_s": 1.5, "exception": None, "info": {},
}  # fmt: skip


def with_episodes(root: Path, *episodes: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    run = handmade_run(root)
    stream = HandmadePiece(run.identity, run.piece, stream="trajectories")
    for step, episode in enumerate(episodes):
        stream.log("trajectory", step=step, **episode)
    return analysis.connect(root)


def test_a_trajectory_is_one_row(tmp_path: Path) -> None:
    con = with_episodes(tmp_path, EPISODE)

    rows = ask(
        con,
        """SELECT seq, step, id, "group", reward, advantage, n_turns, n_tokens, prompt_tokens, completion_tokens,
        epoch_us(started), duration_s, exception, metrics FROM trajectories""",
    )

    assert rows == [(0, 0, "t1", "p1", 1.0, 0.5, 2, 3, 1, 2, TIME_US, 1.5, None, '{"turns":2.0}')]


def test_its_turns_and_tool_calls_are_rows_of_their_own(tmp_path: Path) -> None:
    con = with_episodes(tmp_path, EPISODE)

    messages = ask(
        con, "SELECT trajectory_id, seq, turn, role, content, tool_calls FROM messages ORDER BY turn"
    )
    calls = ask(
        con, "SELECT turn, call, name, arguments, result, error, duration_s FROM tool_calls ORDER BY call"
    )

    assert [row[:5] for row in messages] == [("t1", 0, 0, "user", "2 + 2?"), ("t1", 0, 1, "assistant", "é")]
    assert [len(json.loads(row[5])) for row in messages] == [0, 2]
    assert calls == [
        (1, 0, "calculator", '{"e":"2+2"}', "4", None, 0.5),
        (1, 1, "calculator", '{"e":"2+2"}', "4", "timeout", 0.5),
    ]


def test_a_strange_trajectory_costs_only_its_strange_fields(tmp_path: Path) -> None:
    strange = {
        **EPISODE,
        "reward": float("nan"),
        "advantage": "much",
        "turns": "none",
        "group": 7,
        "prompt_tokens": 2**70,
    }
    con = with_episodes(tmp_path, strange, EPISODE)

    rows = ask(
        con, 'SELECT reward, advantage, n_turns, "group", prompt_tokens FROM trajectories ORDER BY seq'
    )

    assert repr(rows) == repr([(math.nan, None, None, "7", None), (1.0, 0.5, 2, "p1", 1)])


def test_a_trajectory_of_40_mebibytes_is_read(tmp_path: Path) -> None:
    long_text = "x" * (40 * 1024 * 1024)
    con = with_episodes(tmp_path, {**EPISODE, "turns": [{**TURN, "content": long_text}]}, EPISODE)

    lengths = ask(con, "SELECT length(content) FROM messages ORDER BY seq, turn")

    assert lengths == [len(long_text), 6, 1]


def test_identity_is_run_json_wherever_the_directory_is_moved(tmp_path: Path) -> None:
    run = handmade_run(tmp_path, "original")
    run.log(step=0, x=1)
    run_dir = run.piece.dir.parent
    os.rename(run_dir, run_dir.with_name("moved"))
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT run_id, path FROM runs")

    assert rows == [("original", str(run_dir.with_name("moved")))]
    assert RunIdentity.load(run_dir.with_name("moved")).run_id == "original"
    assert ask(con, "SELECT value FROM curve('original', 'x')") == [1.0]


def test_what_eventlog_itself_writes_can_be_asked_while_it_writes(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="real", config={"lr": 0.1}, tags=["t"], root=tmp_path) as run:
        run.log({"loss": 0.5, "nested": {"x": float("nan")}}, step=0)
        con = analysis.connect(tmp_path)
        run.log({"loss": 0.25}, step=1)
        turn = eventlog.Turn("assistant", "4", [eventlog.ToolCall("calculator", {"e": "2+2"}, result="4")])
        run.log_trajectory(eventlog.Trajectory([turn], reward=1.0, token_ids=[1, 2]), step=1)
        run.summary["best"] = 0.25
        live = ask(con, "SELECT state, last_step FROM runs")
        analysis.refresh(con)

        curve = ask(con, "SELECT step, value FROM curve('real', 'loss')")
        summary = ask(con, "SELECT key, value FROM summary ORDER BY key")
        called = ask(con, "SELECT name, result, step FROM tool_calls")

    assert live == [("live", 1)]
    assert curve == [(0, 0.5), (1, 0.25)]
    assert repr(summary) == repr([("best", 0.25), ("loss", 0.25), ("nested.x", math.nan)])
    assert called == [("calculator", "4", 1)]
    assert ask(con, "SELECT state, config ->> 'lr', trajectories FROM runs") == [("finished", "0.1", 1)]


def test_a_curve_opens_the_files_of_its_run_alone(tmp_path: Path) -> None:
    runs = [handmade_run(tmp_path, run_id) for run_id in ("one", "other", "sealed")]
    for run in runs:
        run.log(step=0, loss=0.5)
        run.log("exit", exitcode=0)
        run.die()
    seal(runs[2].piece.dir.parent)
    runs[2].segment.unlink()
    con = analysis.connect(tmp_path)
    runs[1].segment.unlink()

    assert ask(con, "SELECT value FROM curve('one', 'loss')") == [0.5]
    assert ask(con, "SELECT value FROM curve('sealed', 'loss')") == [0.5]
    assert ask(con, "SELECT value FROM curve('nobody', 'loss')") == []
    # What it would be to look at the others: DuckDB says so.
    with pytest.raises(duckdb.IOException, match="other"):
        ask(con, "SELECT value FROM curve('other', 'loss')")


def test_the_same_id_in_two_projects_is_two_curves(tmp_path: Path) -> None:
    for project, loss in (("a", 1.0), ("b", 2.0)):
        handmade_run(tmp_path, "same", project).log(step=0, loss=loss)
    con = analysis.connect(tmp_path)

    assert ask(con, "SELECT project, value FROM curve('same', 'loss')") == [("a", 1.0), ("b", 2.0)]


def test_a_cursor_made_before_a_refresh_answers_as_after_it(tmp_path: Path) -> None:
    handmade_run(tmp_path, "one").log(step=0, loss=0.5)
    con = analysis.connect(tmp_path)
    cursor = con.cursor()

    for number in range(3):
        handmade_run(tmp_path, f"more{number}").log(step=0, loss=0.25)
        analysis.refresh(con)

        assert ask(cursor, f"SELECT value FROM curve('more{number}', 'loss')") == [0.25]
        assert ask(cursor, "SELECT count(*) FROM metrics") == [2 + number]


def test_a_connection_that_is_gone_leaves_nothing_behind(tmp_path: Path) -> None:
    con = analysis.connect(tmp_path)
    known = len(analysis._Asked.known)
    con.close()
    del con
    gc.collect()

    assert len(analysis._Asked.known) == known - 1
