"""The mirror for TensorBoard: TensorBoard reads what was logged, whatever happens to the process or the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.importers.tfevents import import_tfevents
from eventlog.importers.tfrecord import Damage, Deframer
from eventlog.integrations.tensorboard import TensorboardMirror
from tests.integrations.tb import rows_of

pytest.importorskip("tensorboard", reason="the tensorboard package cannot be installed here")
PROJECT = Path(__file__).parents[2]


def read_back(directory: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read_back(directory).Scalars(tag)]


def test_scalars_come_back_with_their_steps_and_times(tmp_path: Path):
    import numpy as np

    mirror = TensorboardMirror(tmp_path)
    mirror.log({"loss": 0.5, "nested": {"lr": np.float32(0.25)}, "ok": True}, 3, time_s=1000.5)
    mirror.log({"loss": float("inf")}, 4)
    mirror.close()

    found = read_back(tmp_path)
    first, second = found.Scalars("loss")
    assert (first.step, first.value, first.wall_time) == (3, 0.5, 1000.5)
    assert (second.step, second.value) == (4, float("inf"))
    assert [found.Scalars(tag)[0].value for tag in ("nested/lr", "ok")] == [0.25, 1.0]


def test_what_is_nested_without_end_costs_not_its_row(tmp_path: Path):
    mirror = TensorboardMirror(tmp_path)
    row: dict[str, Any] = {"loss": 0.5}
    row["itself"] = row

    mirror.log(row, 0)

    assert scalars(tmp_path, "loss") == [(0, 0.5)]


def test_what_torch_holds_is_a_number_too(tmp_path: Path):
    torch = pytest.importorskip("torch")
    mirror = TensorboardMirror(tmp_path)

    mirror.log({"loss": torch.tensor(0.5, dtype=torch.bfloat16), "many": torch.zeros(3)}, 0)

    assert scalars(tmp_path, "loss") == [(0, 0.5)]
    assert dict(mirror.not_mirrored) == {"Tensor": 1}


def test_media_come_back(tmp_path: Path):
    import numpy as np

    image = eventlog.Image(np.zeros((4, 5, 3), dtype=np.uint8))
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    mirror = TensorboardMirror(tmp_path / "tb")
    mirror.log(
        {
            "weights": eventlog.Histogram(np_histogram=([2, 3], [0.0, 1.0, 4.0])),
            "sample": image,
            "samples": [image, eventlog.Image(path)],
            "sound": eventlog.Audio(np.zeros(80), sample_rate=80),
            "note": "grün \ud800",
        },
        2,
    )

    found = read_back(tmp_path / "tb")
    histogram = found.Histograms("weights")[0].histogram_value
    assert (list(histogram.bucket), list(histogram.bucket_limit)) == ([2.0, 3.0], [1.0, 4.0])
    assert (histogram.min, histogram.max, histogram.num) == (0.0, 4.0, 5.0)
    shown = found.Images("sample")[0]
    assert (shown.width, shown.height, shown.encoded_image_string[:4]) == (5, 4, b"\x89PNG")
    assert found.Images("samples/1")[0].encoded_image_string == path.read_bytes()
    assert found.Audio("sound")[0].encoded_audio_string[:4] == b"RIFF"
    assert found.Tensors("note/text_summary")[0].tensor_proto.string_val[0].decode() == "grün ?"


def test_the_config_is_a_text_without_its_secrets(tmp_path: Path):
    mirror = TensorboardMirror(tmp_path)
    mirror.config({"lr": 0.001, "api_key": "0123456789abcdef", "betas": (0.9, 0.99)})

    (event,) = read_back(tmp_path).Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert '"lr": 0.001' in text
    assert "[redacted]" in text
    assert "0123456789abcdef" not in text


def test_what_tensorboard_has_no_form_for_is_counted(tmp_path: Path):
    mirror = TensorboardMirror(tmp_path)

    mirror.log({"table": eventlog.Table(["a"], [[1]]), "page": eventlog.Html("<p>"), "none": None}, 0)

    assert dict(mirror.not_mirrored) == {"Table": 1, "Html": 1, "NoneType": 1}
    assert list(tmp_path.iterdir()) == []


def test_the_mirror_can_be_imported_as_the_run_that_it_was(tmp_path: Path):
    mirror = TensorboardMirror(tmp_path / "tb")
    for step in range(3):
        mirror.log({"loss": step / 2, "lr": 0.25}, step)

    (run,) = import_tfevents(tmp_path / "tb", tmp_path / "runs").runs

    assert rows_of(run.run_dir) == [(step, {"loss": step / 2, "lr": 0.25}) for step in range(3)]


# ── the world ────────────────────────────────────────────────────────────────────────────────────────────────


class _Disk:
    """`os.write`, for a disk that takes so many bytes more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_bytes: float = float("inf")
        self._write = os.write
        monkeypatch.setattr("eventlog.integrations.tensorboard.os.write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if self.free_bytes <= 0:
            raise OSError(28, "No space left on device")
        taken = self._write(fd, data[: int(min(len(data), self.free_bytes))])
        self.free_bytes -= taken
        return taken


@pytest.mark.parametrize("free_bytes", [0, 1, 30, 60])
def test_a_full_disk_costs_its_rows_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], free_bytes: int
):
    disk = _Disk(monkeypatch)
    mirror = TensorboardMirror(tmp_path)
    mirror.log({"loss": 0.0}, 0)
    disk.free_bytes = free_bytes
    for step in (1, 2, 3):
        mirror.log({"loss": float(step), "a long name that fills what there is": 1.0}, step)
    disk.free_bytes = float("inf")
    mirror.log({"loss": 4.0}, 4)

    assert mirror.dropped == 3
    assert scalars(tmp_path, "loss") == [(0, 0.0), (4, 4.0)]
    assert capfd.readouterr().err.count("could not be written") == 1


def test_a_disk_that_is_full_from_the_start_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = _Disk(monkeypatch)
    disk.free_bytes = 10
    mirror = TensorboardMirror(tmp_path)
    for _ in range(5):
        mirror.log({"loss": 0.0}, 0)
    mirror.flush()
    assert list(tmp_path.iterdir()) == []
    disk.free_bytes = float("inf")

    mirror.log({"loss": 1.0}, 1)

    assert mirror.dropped == 5
    assert scalars(tmp_path, "loss") == [(1, 1.0)]


def test_a_directory_that_cannot_be_made_fails_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    mirror = TensorboardMirror(tmp_path / "file" / "tb")

    mirror.log({"loss": 0.0}, 0)
    mirror.config({"lr": 1})
    mirror.close()

    assert mirror.dropped == 2
    assert "Training and the log go on" in capfd.readouterr().err


def test_a_forked_child_writes_beside_its_parent(tmp_path: Path):
    mirror = TensorboardMirror(tmp_path)
    mirror.log({"loss": 0.0}, 0)
    # Another thread of the parent may hold the lock at that moment.
    with mirror._lock:
        child = os.fork()
        if child == 0:
            try:
                mirror.log({"loss": 1.0}, 1)
                mirror.close()
            finally:
                os._exit(mirror.dropped)
    assert os.waitpid(child, 0)[1] == 0
    mirror.log({"loss": 2.0}, 2)

    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"fork-{child}"]
    assert scalars(tmp_path / f"fork-{child}", "loss") == [(1, 1.0)]
    assert scalars(tmp_path, "loss") == [(0, 0.0), (2, 2.0)]


_LOGS_UNTIL_KILLED = """
import itertools, sys
from eventlog.integrations.tensorboard import TensorboardMirror
mirror = TensorboardMirror(sys.argv[1])
for step in itertools.count():
    mirror.log({"loss": step / 2, "note": "x" * 200_000}, step)
    print(step, flush=True)
"""


def test_kill_9_loses_no_row_that_was_logged_and_harms_none(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", _LOGS_UNTIL_KILLED, str(tmp_path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "20\n":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    last = max([20, *map(int, rest)])

    # A torn event at the end is all that may be wrong, and the process that goes on takes another file.
    (path,) = tmp_path.iterdir()
    assert not [item for item in Deframer().feed(path.read_bytes()) if isinstance(item, Damage)]
    found = scalars(tmp_path, "loss")
    assert found[: last + 1] == [(step, step / 2) for step in range(last + 1)]
    mirror = TensorboardMirror(tmp_path)
    mirror.log({"loss": -1.0}, 1_000_000)
    assert scalars(tmp_path, "loss") == [*found, (1_000_000, -1.0)]


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        TensorboardMirror(tmp_path)


def test_importing_the_mirror_loads_neither_tensorboard_nor_torch():
    script = (
        "import sys, eventlog.integrations.tensorboard, eventlog.importers.tfevents; "
        "print({'tensorboard', 'torch', 'numpy', 'google'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"


def test_threads_write_whole_events(tmp_path: Path):
    import threading

    mirror = TensorboardMirror(tmp_path)
    threads = [
        threading.Thread(target=lambda n=n: [mirror.log({f"t{n}": step}, step) for step in range(50)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [scalars(tmp_path, f"t{n}") for n in range(4)] == [[(step, float(step)) for step in range(50)]] * 4


# ── asked for by `init` ──────────────────────────────────────────────────────────────────────────────────────


def test_init_with_tensorboard_writes_both(tmp_path: Path):
    import numpy as np

    with eventlog.init(
        project="p",
        id="r",
        root=tmp_path,
        quiet=True,
        tensorboard=True,
        config={"lr": 0.5, "api_key": "secret"},
    ) as run:
        for i in range(5):
            run.log({"loss": i / 2, "image": eventlog.Image(np.zeros((2, 2)))}, step=3 * i)

    found = read_back(Path(run.dir) / "tensorboard")
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [
        (3 * i, i / 2) for i in range(5)
    ]
    assert found.Images("image")[-1].step == 12
    assert [row.data["loss"] for row in eventlog.read(run.dir) if row.kind == "metrics"] == [
        i / 2 for i in range(5)
    ]
    written = b"".join(path.read_bytes() for path in (Path(run.dir) / "tensorboard").iterdir())
    assert b"lr" in written
    assert b"secret" not in written


def test_init_takes_the_directory_and_a_resumed_run_goes_on_there(tmp_path: Path):
    for step in range(2):
        with eventlog.init(
            project="p", id="r", root=tmp_path, quiet=True, resume="allow", tensorboard=tmp_path / "tb"
        ) as run:
            run.log({"loss": 0.5 + step}, step=step)

    assert scalars(tmp_path / "tb", "loss") == [(0, 0.5), (1, 1.5)]


def test_a_package_that_is_missing_is_said_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("eventlog.integrations.tensorboard.importlib.util.find_spec", lambda name: None)

    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        eventlog.init(project="p", root=tmp_path, quiet=True, tensorboard=True)

    assert os.listdir(tmp_path) == []
