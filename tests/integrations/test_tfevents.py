"""Importing TensorBoard's files: what is in them is in the log, each event once, also when they grow."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.cli import main
from eventlog.errors import RunExists
from eventlog.imported import ImportedPiece
from eventlog.importers import tfevents
from eventlog.importers.tfevents import Imported, import_tfevents, sources_at
from eventlog.overview import overview_of
from eventlog.piece import primaries
from eventlog.reader import read
from tests.integrations.tb import (
    FILE,
    TIME_S,
    bytes_below,
    first_event,
    flip,
    grow_old,
    losses,
    records_of,
    rows_of,
    scalar_event,
    write,
)

pytest.importorskip("tensorboard", reason="the tensorboard package cannot be installed here")


def imported(logs: Path, root: Path, **options: object) -> Imported:
    return import_tfevents(logs, root, **options)  # type: ignore[arg-type]


def steps_of(run_dir: str | None) -> list[int | None]:
    return [step for step, _ in rows_of(run_dir)]


# ── what comes out ───────────────────────────────────────────────────────────────────────────────────────────


def test_each_directory_with_event_files_is_a_run_named_by_its_path(tmp_path: Path):
    for name in ("exp1", "exp1/eval", "deep/er/exp2"):
        write(tmp_path / "logs" / name, [first_event(), *losses([0])])
    (tmp_path / "logs/empty").mkdir()

    outcome = imported(tmp_path / "logs", tmp_path / "runs", project="old")

    assert [(run.name, run.is_new, run.rows) for run in outcome.runs] == [
        ("deep/er/exp2", True, 1),
        ("exp1", True, 1),
        ("exp1/eval", True, 1),
    ]
    assert {Path(str(run.run_dir)).relative_to(tmp_path / "runs").as_posix() for run in outcome.runs} == {
        "old/deep-er-exp2",
        "old/exp1",
        "old/exp1-eval",
    }
    assert records_of(outcome.runs[2].run_dir, "start")[0].data["name"] == "exp1/eval"


def test_a_directory_and_a_file_can_be_named_as_well(tmp_path: Path):
    path = write(tmp_path / "logs/exp1", [first_event(), *losses([0])])

    by_directory = imported(tmp_path / "logs/exp1", tmp_path / "a")
    by_file = imported(path, tmp_path / "b")

    assert [run.name for run in by_directory.runs + by_file.runs] == ["exp1", "exp1"]
    assert by_directory.records == by_file.records == 2


def test_tags_of_one_step_that_came_together_are_one_row(tmp_path: Path):
    write(
        tmp_path / "exp",
        [
            first_event(),
            scalar_event("loss", 0.5, 3, TIME_S + 1),
            scalar_event("lr", 0.25, 3, TIME_S + 1.001),
            scalar_event("loss", 0.75, 3, TIME_S + 1.002),
            scalar_event("eval/loss", 1.5, 3, TIME_S + 60),
            scalar_event("loss", 1.0, 4, TIME_S + 60.001),
        ],
    )

    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert rows_of(run.run_dir) == [
        (3, {"loss": 0.5, "lr": 0.25}),
        (3, {"loss": 0.75}),
        (3, {"eval/loss": 1.5}),
        (4, {"loss": 1.0}),
    ]
    assert [record.time_us for record in records_of(run.run_dir, "metrics")][:3] == [
        int((TIME_S + 1) * 1e6),
        int((TIME_S + 1.002) * 1e6),
        int((TIME_S + 60) * 1e6),
    ]


def test_what_torchs_writer_writes_comes_out(tmp_path: Path):
    pytest.importorskip("torch")
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path / "exp")
    writer.add_scalar("loss", 0.5, 1)
    writer.add_scalar("best", float("nan"), 1)
    writer.add_histogram("weights", np.array([0.0, 0.1, 0.9, 1.0]), 1, bins=[0.0, 0.5, 1.0])
    writer.add_image("sample", np.zeros((3, 4, 5), dtype=np.uint8), 1)
    writer.add_images("samples", np.zeros((2, 3, 4, 5), dtype=np.uint8), 1)
    writer.add_text("note", "grün", 1)
    writer.add_audio("sound", np.zeros((1, 80)), 1, sample_rate=80)
    writer.add_pr_curve("curve", np.array([0, 1]), np.array([0.1, 0.9]), 1)
    writer.add_hparams({"lr": 0.1, "opt": "adam", "nesterov": True}, {"final": 2.0}, run_name="hp")
    writer.close()

    run, trial = imported(tmp_path / "exp", tmp_path / "runs").runs

    ((step, row),) = rows_of(run.run_dir)
    assert step == 1
    assert (row["loss"], row["note"]) == (0.5, "grün")
    assert row["best"] != row["best"]
    assert row["weights"] == {"_type": "histogram", "values": [2.0, 2.0], "bins": [0.0, 0.5, 1.0]}
    assert (row["sample"]["_type"], row["sample"]["width"], row["sample"]["height"]) == ("image-file", 5, 4)
    assert row["sound"]["_type"] == "audio-file"
    assert dict(run.not_taken) == {"a value of TensorBoard's plugin 'pr_curves'": 1}
    files = {record.data["path"]: record.data for record in read(str(run.run_dir), "files")}
    assert set(files) == {row[key]["path"] for key in ("sample", "samples", "sound")}
    stored = Path(str(run.run_dir)) / "files" / row["sample"]["sha256"]
    assert stored.read_bytes().startswith(b"\x89PNG")
    assert [record.data for record in records_of(trial.run_dir, "config")] == [
        {"lr": 0.1, "nesterov": True, "opt": "adam"}
    ]
    assert rows_of(trial.run_dir) == [(0, {"final": 2.0})]


def test_what_tensorboards_own_writer_writes_comes_out(tmp_path: Path):
    """TensorFlow 2's form: every value a tensor, whose plugin is said with the first one only."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.data_compat import migrate_value
    from tensorboard.plugins.text.summary import text_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    png = b"\x89PNG\r\n\x1a\n and so on"
    histogram = Summary.Value(tag="weights")
    histogram.histo.min, histogram.histo.max, histogram.histo.num = 1.0, 4.0, 5
    histogram.histo.bucket_limit.extend([1.0, 2.0, 1.7976931348623157e308])
    histogram.histo.bucket.extend([0.0, 2.0, 3.0])
    image = Summary.Value(tag="sample")
    image.image.encoded_image_string, image.image.width, image.image.height = png, 5, 4
    writer = EventFileWriter(str(tmp_path / "exp"))
    for step in (1, 2):
        values = [
            migrate_value(Summary.Value(tag="loss", simple_value=step / 4)),
            migrate_value(histogram),
            migrate_value(image),
            text_pb("note", "hello").value[0],
            Summary.Value(tag="matrix", tensor=make_tensor_proto([[1.0, 2.0]])),
            Summary.Value(tag="count", tensor=make_tensor_proto(7)),
        ]
        if step == 2:
            for value in values:
                value.ClearField("metadata")
        writer.add_event(Event(wall_time=TIME_S + step, step=step, summary=Summary(value=values)))
    writer.close()

    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert [(step, row["loss"], row["count"], row["note"]) for step, row in rows_of(run.run_dir)] == [
        (1, 0.25, 7, "hello"),
        (2, 0.5, 7, "hello"),
    ]
    for _, row in rows_of(run.run_dir):
        assert row["weights"] == {"_type": "histogram", "values": [2.0, 3.0], "bins": [1.0, 2.0, 4.0]}
        assert (row["sample"]["format"], row["sample"]["width"], row["sample"]["size"]) == (
            "png",
            5,
            len(png),
        )
    assert dict(run.not_taken) == {"a tensor that is no scalar": 2}


def test_a_histogram_of_more_bins_than_wandb_shows_is_made_coarser(tmp_path: Path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value(tag="weights")
    value.histo.min, value.histo.max = 0.0, 1000.0
    value.histo.bucket_limit.extend(float(limit) for limit in range(1, 1001))
    value.histo.bucket.extend([1.0] * 1000)
    event = Event(wall_time=TIME_S, step=0, summary=Summary(value=[value]))
    write(tmp_path / "exp", [first_event(), tfevents_frame(event)])

    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    ((_, row),) = rows_of(run.run_dir)
    assert (len(row["weights"]["values"]), sum(row["weights"]["values"])) == (500, 1000.0)
    assert (row["weights"]["bins"][0], row["weights"]["bins"][-1]) == (0.0, 1000.0)


def tfevents_frame(event: object) -> bytes:
    from eventlog.importers.tfrecord import frame

    return frame(event.SerializeToString())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("limits", "counts", "bins"),
    [
        ([1.0, 2.0, 1.7976931348623157e308], [0.0, 2.0, 3.0], [1.0, 2.0, 9.0]),
        ([-1.7976931348623157e308, 2.0, 3.0], [0.0, 2.0, 0.0], [-9.0, 2.0]),
        ([1.0, 2.0], [3.0, 0.0], [-9.0, 1.0]),
    ],
)
def test_the_outermost_limits_of_a_histogram_are_what_was_seen(
    tmp_path: Path, limits: list[float], counts: list[float], bins: list[float]
):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value(tag="weights")
    value.histo.min, value.histo.max = -9.0, 9.0
    value.histo.bucket_limit.extend(limits)
    value.histo.bucket.extend(counts)
    event = Event(wall_time=TIME_S, step=0, summary=Summary(value=[value]))
    write(tmp_path / "exp", [first_event(), tfevents_frame(event)])

    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    ((_, row),) = rows_of(run.run_dir)
    assert row["weights"] == {"_type": "histogram", "values": [c for c in counts if c], "bins": bins}


def test_a_secret_among_the_hyperparameters_stays_out(tmp_path: Path):
    pytest.importorskip("torch")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "exp") as writer:
        writer.add_hparams({"api_key": "0123456789abcdef"}, {}, run_name=".")

    imported(tmp_path / "exp", tmp_path / "runs")

    written = b"".join(bytes_below(tmp_path / "runs").values())
    assert b"[redacted]" in written
    assert b"0123456789abcdef" not in written


def test_rows_that_go_back_in_step_are_kept_and_counted(tmp_path: Path):
    write(tmp_path / "exp", [first_event(), *losses([5, 6, 4, 7])])

    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert steps_of(run.run_dir) == [5, 6, 4, 7]
    assert run.past_steps == 1


# ── again, and grown ─────────────────────────────────────────────────────────────────────────────────────────


def test_importing_twice_changes_no_byte(tmp_path: Path):
    for name in ("a", "a/b"):
        write(tmp_path / "logs" / name, [first_event(), *losses(range(20))])
    imported(tmp_path / "logs", tmp_path / "runs")
    before = bytes_below(tmp_path / "runs")

    again = imported(tmp_path / "logs", tmp_path / "runs")

    assert bytes_below(tmp_path / "runs") == before
    assert (again.records, [run.is_new for run in again.runs]) == (0, [False, False])


def test_what_grew_is_added_and_nothing_else(tmp_path: Path):
    write(tmp_path / "exp", [first_event(), *losses([0, 1])])
    imported(tmp_path / "exp", tmp_path / "runs")

    write(tmp_path / "exp", losses([2, 3]))
    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert (run.records, run.rows) == (2, 2)
    assert steps_of(run.run_dir) == [0, 1, 2, 3]


def test_a_second_file_of_the_directory_follows_also_when_the_first_one_grows_later(tmp_path: Path):
    second = FILE.replace("host.7", "host.8")
    write(tmp_path / "exp", [first_event(), *losses([0])])
    write(tmp_path / "exp", [first_event(), *losses([10])], second)
    imported(tmp_path / "exp", tmp_path / "runs")

    write(tmp_path / "exp", losses([1]))
    write(tmp_path / "exp", losses([11]), second)
    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert steps_of(run.run_dir) == [0, 10, 1, 11]


def test_a_torn_tail_is_waited_for(tmp_path: Path):
    events = losses([0, 1])
    path = write(tmp_path / "exp", [first_event(), events[0], events[1][:20]])
    (torn,) = imported(path.parent, tmp_path / "runs").runs

    write(path.parent, [events[1][20:]])
    (whole,) = imported(path.parent, tmp_path / "runs").runs

    assert (torn.rows, torn.torn_bytes, torn.damaged) == (1, 20, 0)
    assert (whole.rows, whole.torn_bytes, whole.damaged) == (1, 0, 0)
    assert steps_of(whole.run_dir) == [0, 1]


def test_a_flipped_byte_costs_one_event_and_is_said(tmp_path: Path):
    events = [first_event(), *losses([0, 1, 2])]
    path = write(tmp_path / "exp", events)
    flip(path, len(b"".join(events[:2])) + 15)

    outcome = imported(path.parent, tmp_path / "runs")

    (run,) = outcome.runs
    assert (run.damaged, outcome.is_whole) == (1, False)
    assert steps_of(run.run_dir) == [0, 2]
    (gap,) = records_of(run.run_dir, "gap")
    assert gap.data["dropped"] == 1
    assert f"at byte {len(b''.join(events[:2]))} of {FILE}" in gap.data["reason"]


@settings(max_examples=60)
@given(data=st.data())
def test_however_often_it_is_imported_while_it_grows_each_event_is_there_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    tmp_path = tmp_path_factory.mktemp("grows")
    events = [
        first_event(),
        *(
            scalar_event(tag, step, step, TIME_S + step + place / 1000)
            for step in range(4)
            for place, tag in enumerate(("a", "b", "c"))
        ),
    ]
    content = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4), label="imports at byte"))

    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        write(tmp_path / "exp", [content[begin:end]])
        outcome = imported(tmp_path / "exp", tmp_path / "runs")

    assert not any(run.damaged or run.torn_bytes for run in outcome.runs)
    logged = [(step, tag) for step, row in rows_of(outcome.runs[0].run_dir) for tag in row]
    assert logged == [(step, tag) for step in range(4) for tag in ("a", "b", "c")]


class _Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("killed_at", range(1, 12))
def test_a_killed_import_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
):
    pytest.importorskip("numpy")
    image = _image_event(step=1)
    write(tmp_path / "exp", [first_event(), *losses([0]), image])
    imported(tmp_path / "exp", tmp_path / "runs")
    write(tmp_path / "exp", [*losses([2, 3]), _image_event(step=4), *losses([5])])
    grow_old(tmp_path / "exp" / FILE)
    with monkeypatch.context() as dying:
        _die_at_the_nth_effect(dying, killed_at)
        with pytest.raises(_Killed):
            imported(tmp_path / "exp", tmp_path / "runs")

    # What comes between changes how the rest is grouped, unless the killed round is finished first.
    write(tmp_path / "exp", losses([6]))
    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert steps_of(run.run_dir) == [0, 1, 2, 3, 4, 5, 6]
    assert len(list(read(str(run.run_dir), "files"))) == 2
    assert not run.not_taken


def _image_event(step: int) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value(tag="sample")
    value.image.encoded_image_string = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", step)
    return tfevents_frame(Event(wall_time=TIME_S + 10 * step, step=step, summary=Summary(value=[value])))


def _die_at_the_nth_effect(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Raise after so many appended records, flushes and renames, with what was appended written or not."""
    left = [n]

    def dying(effect):  # type: ignore[no-untyped-def]
        def call(*args, **options):  # type: ignore[no-untyped-def]
            result = effect(*args, **options)
            left[0] -= 1
            if left[0] == 0:
                raise _Killed
            return result

        return call

    append = ImportedPiece.append

    def appended(
        piece: ImportedPiece, stream: str, kind: str, data: dict[str, object], *rest: object
    ) -> None:
        append(piece, stream, kind, data, *rest)  # type: ignore[arg-type]
        if data:
            piece.flush()

    monkeypatch.setattr(ImportedPiece, "append", dying(appended))
    monkeypatch.setattr(tfevents.os, "replace", dying(os.replace))


# ── the end of a run ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_nobody_wrote_to_for_long_is_over(tmp_path: Path):
    path = write(tmp_path / "exp", [first_event(), *losses([0])])
    (young,) = imported(tmp_path / "exp", tmp_path / "runs").runs
    assert records_of(young.run_dir, "exit") == []

    grow_old(path)
    (old,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert [record.data for record in records_of(old.run_dir, "exit")] == [{"exitcode": 0}]
    assert overview_of(Path(str(old.run_dir))).state == "finished"
    before = bytes_below(tmp_path / "runs")
    assert imported(tmp_path / "exp", tmp_path / "runs").records == 0
    assert bytes_below(tmp_path / "runs") == before


def test_a_run_that_was_over_and_grows_is_resumed(tmp_path: Path):
    path = write(tmp_path / "exp", [first_event(), *losses([0, 1])])
    grow_old(path)
    imported(tmp_path / "exp", tmp_path / "runs")

    write(tmp_path / "exp", losses([2]))
    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert primaries(Path(str(run.run_dir))) == ["main-0001", "main-0002"]
    assert steps_of(run.run_dir) == [0, 1, 2]
    first, second = records_of(run.run_dir, "start")
    assert (first.data["resumed"], second.data["resumed"], second.data["step"]) == (False, True, 2)
    assert second.data["runtime_s"] == 10.0
    assert overview_of(Path(str(run.run_dir))).state != "finished"


# ── whose run it is ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_directory_is_known_again_from_wherever_it_is_named(tmp_path: Path):
    write(tmp_path / "logs/a/exp", [first_event(), *losses([0])])
    (first,) = imported(tmp_path / "logs", tmp_path / "runs").runs

    (alone,) = imported(tmp_path / "logs/a/exp", tmp_path / "runs").runs
    os.rename(tmp_path / "logs", tmp_path / "archive")
    (moved,) = imported(tmp_path / "archive/a", tmp_path / "runs").runs

    assert first.run_dir == alone.run_dir == moved.run_dir
    assert alone.records == moved.records == 0


def test_two_copies_are_two_runs_each_time(tmp_path: Path):
    for name in ("a", "b"):
        write(tmp_path / "logs" / name / "train", [first_event(), *losses([0])])
    first = imported(tmp_path / "logs", tmp_path / "runs")

    write(tmp_path / "logs/b/train", losses([1]))
    second = imported(tmp_path / "logs", tmp_path / "runs")

    assert [run.run_dir for run in first.runs] == [run.run_dir for run in second.runs]
    assert [run.records for run in second.runs] == [0, 1]

    write(tmp_path / "logs/c/train", [first_event(), *losses([0])])
    third = imported(tmp_path / "logs", tmp_path / "runs")
    assert [run.is_new for run in third.runs] == [False, False, True]
    assert steps_of(third.runs[2].run_dir) == [0]


def test_a_run_id_that_is_taken_is_left_alone(tmp_path: Path):
    import eventlog

    with eventlog.init(project="demo", id="exp", root=tmp_path / "runs", quiet=True) as run:
        run.log({"loss": 1.0})
    write(tmp_path / "exp", [first_event(), *losses([0])])

    (found,) = imported(tmp_path / "exp", tmp_path / "runs", project="demo").runs

    assert Path(str(found.run_dir)).name == "exp-2"
    assert rows_of(run.dir) == [(0, {"loss": 1.0})]
    with pytest.raises(RunExists, match="not that of"):
        imported(tmp_path / "exp", tmp_path / "runs", project="demo", run_id="exp")


def test_a_run_that_was_resumed_by_a_training_goes_on_in_a_later_piece(tmp_path: Path):
    import eventlog

    write(tmp_path / "exp", [first_event(), *losses([0])])
    imported(tmp_path / "exp", tmp_path / "runs", project="demo")
    with eventlog.init(project="demo", id="exp", root=tmp_path / "runs", resume="must", quiet=True) as run:
        run.log({"loss": 9.0}, step=1)

    write(tmp_path / "exp", losses([2]))
    imported(tmp_path / "exp", tmp_path / "runs", project="demo")

    assert [step for step, _ in rows_of(run.dir)] == [0, 1, 2]


def test_the_log_made_anew_is_the_same_log(tmp_path: Path):
    write(tmp_path / "exp", [first_event(), *losses([0])])
    for root in ("a", "b"):
        imported(tmp_path / "exp", tmp_path / root)

    one, other = (
        {name: content for name, content in bytes_below(tmp_path / root).items() if name.endswith(".jsonl")}
        for root in ("a", "b")
    )
    assert one == other


def test_a_log_that_lost_what_was_imported_is_not_added_to(tmp_path: Path):
    write(tmp_path / "exp", [first_event(), *losses([0, 1])])
    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs
    for segment in Path(str(run.run_dir)).rglob("events-*"):
        segment.unlink()
    write(tmp_path / "exp", losses([2]))

    (again,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert "delete its directory" in next(iter(again.not_taken))
    assert rows_of(run.run_dir) == []


def test_a_run_that_another_import_is_reading_is_left_to_it(tmp_path: Path):
    write(tmp_path / "exp", [first_event(), *losses([0])])
    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs
    write(tmp_path / "exp", losses([1]))
    from eventlog.piece import RunIdentity

    run_dir = Path(str(run.run_dir))
    other = ImportedPiece.open(run_dir, RunIdentity.load(run_dir), "main-0001")
    assert other is not None
    try:
        (busy,) = imported(tmp_path / "exp", tmp_path / "runs").runs
    finally:
        other.close()

    assert dict(busy.not_taken) == {"a run that another import is reading": 1}
    assert steps_of(run.run_dir) == [0]


# ── mistakes, and what is no event file ──────────────────────────────────────────────────────────────────────


def test_one_run_id_cannot_name_two_runs(tmp_path: Path):
    for name in ("a", "b"):
        write(tmp_path / "logs" / name, [first_event()])

    with pytest.raises(ValueError, match="holds 2 runs"):
        imported(tmp_path / "logs", tmp_path / "runs", run_id="one")
    assert not (tmp_path / "runs").exists()


def test_a_path_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        imported(tmp_path / "nowhere", tmp_path / "runs")


def test_a_directory_without_one_whole_event_makes_no_run(tmp_path: Path):
    write(tmp_path / "exp", [first_event()[:10]])

    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert (run.run_dir, run.torn_bytes) == (None, 10)
    assert not (tmp_path / "runs").exists()


def test_other_files_are_no_sources(tmp_path: Path):
    (tmp_path / "model.pt").write_bytes(b"x")

    assert sources_at(tmp_path) == sources_at(tmp_path / "model.pt") == []


def test_progress_reaches_the_end_and_never_goes_back(tmp_path: Path):
    for name in ("a", "b"):
        write(tmp_path / "logs" / name, [first_event(), *losses(range(100))])
    size = sum(path.stat().st_size for path in (tmp_path / "logs").rglob("*tfevents*"))
    for _ in range(2):
        seen: list[tuple[int, int]] = []

        imported(tmp_path / "logs", tmp_path / "runs", progress=lambda *at, seen=seen: seen.append(at))

        assert seen == sorted(seen)
        assert seen[-1] == (size, size)


# ── what comes of it ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_imported_run_is_uploaded_once_also_when_it_has_grown(tmp_path: Path):
    from tests.syncd.syncing import sync
    from tests.wandb_server import WandbServer

    path = write(tmp_path / "exp", [first_event(), *losses([0, 1]), _image_event(step=1)])
    grow_old(path)
    with WandbServer(entity="ent") as server:
        imported(tmp_path / "exp", tmp_path / "runs", project="old", mode="online")
        sync(server, tmp_path / "runs")
        run = server.run("ent", "old", "exp")
        first = [row.get("loss") for row in run.history]
        grow_old(write(tmp_path / "exp", losses([2, 3])))
        imported(tmp_path / "exp", tmp_path / "runs", project="old")
        sync(server, tmp_path / "runs")

        assert first == [0.0, 0.5]
        assert [(row["_step"], row["loss"]) for row in run.history] == [
            (0, 0.0),
            (1, 0.5),
            (2, 1.0),
            (3, 1.5),
        ]
        assert [round(row["_timestamp"] - TIME_S) for row in run.history] == [0, 10, 20, 30]
        assert run.history[1]["sample"]["path"] in run.files
        assert (run.display_name, server.state(run), server.violations) == ("exp", "finished", [])


def test_a_run_imported_as_it_is_by_default_is_uploaded_only_when_asked_for(tmp_path: Path):
    write(tmp_path / "exp", [first_event(), *losses([0])])

    (run,) = imported(tmp_path / "exp", tmp_path / "runs").runs

    assert records_of(run.run_dir, "start")[0].data["mode"] == "offline"
    with pytest.raises(ValueError, match="mode is"):
        imported(tmp_path / "exp", tmp_path / "runs", mode="later")


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["import", *map(str, arguments)], catch_exceptions=False)


def test_the_command_says_what_it_made_and_twice_that_it_knows_it(tmp_path: Path):
    write(tmp_path / "logs" / "exp1", [first_event(), *losses([0, 1])])
    options = ("--root", tmp_path / "runs", "--project", "old", "--json")

    (first,) = map(orjson.loads, command(tmp_path / "logs", *options).stdout.splitlines())
    (second,) = map(orjson.loads, command(tmp_path / "logs", *options).stdout.splitlines())

    assert (first["is_new"], first["rows"]) == (True, 2)
    assert (second["is_new"], second["records"]) == (False, 0)
    said = command(tmp_path / "logs", *options[:-1]).stdout
    assert "old/exp1" in said
    assert "known" in said


def test_the_command_exits_with_1_for_damage_and_2_where_there_is_nothing(tmp_path: Path):
    path = write(tmp_path / "logs" / "exp1", [first_event(), *losses([0, 1])])
    flip(path, len(first_event()) + 30)
    (tmp_path / "empty").mkdir()
    root = ("--root", tmp_path / "runs")

    damaged = command(tmp_path / "logs", *root)
    nothing = command(tmp_path / "empty", *root)
    gone = command(tmp_path / "gone", *root)

    assert (damaged.exit_code, nothing.exit_code, gone.exit_code) == (1, 2, 2)
    assert "1 damaged places" in damaged.stderr
    assert "no event file of TensorBoard's" in nothing.stderr
