"""What the SDK reports of this machine is the measure: the same names, and values in the same units at the same moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from eventlog.system import Sampler, System, cgroup_dir
from tests.wandb_server import WandbServer

PROJECT = Path(__file__).parents[2]

# A driver with two GPUs, of which the second has no fan; the process in GPU_USER computes on the first.
DRIVER = r"""
#include <stdlib.h>
#include <string.h>
typedef unsigned int u; typedef unsigned long long ull; typedef char *gpu;
typedef struct {u pid; ull memory; u instance, compute;} process;
static char first, second;
#define SAYS(question, parameters, answer) int question parameters { answer; return 0; }
SAYS(nvmlInit_v2, (void), )
SAYS(nvmlInitWithFlags, (u f), )
SAYS(nvmlShutdown, (void), )
SAYS(nvmlSystemGetCudaDriverVersion, (u *v), *v = 12080)
SAYS(nvmlSystemGetCudaDriverVersion_v2, (u *v), *v = 12080)
SAYS(nvmlDeviceGetCount_v2, (u *n), *n = 2)
SAYS(nvmlDeviceGetHandleByIndex_v2, (u i, gpu *g), *g = i ? &second : &first)
SAYS(nvmlDeviceGetName, (gpu g, char *s, u n), strncpy(s, "NVIDIA H100 80GB HBM3", n))
SAYS(nvmlDeviceGetUUID, (gpu g, char *s, u n), strncpy(s, g == &first ? "GPU-0" : "GPU-1", n))
SAYS(nvmlDeviceGetNumGpuCores, (gpu g, u *n), *n = 16896)
SAYS(nvmlDeviceGetArchitecture, (gpu g, u *n), *n = 9)
SAYS(nvmlDeviceGetUtilizationRates, (gpu g, u *n), n[0] = 37; n[1] = 12)
SAYS(nvmlDeviceGetMemoryInfo, (gpu g, ull *n), n[0] = 80ull << 30; n[1] = 59ull << 30; n[2] = 21ull << 30)
SAYS(nvmlDeviceGetMemoryInfo_v2, (gpu g, ull *n), n[1] = 80ull << 30; n[2] = 1; n[3] = 59ull << 30; n[4] = 20ull << 30)
SAYS(nvmlDeviceGetTemperature, (gpu g, u sensor, u *n), *n = 41)
SAYS(nvmlDeviceGetPowerUsage, (gpu g, u *n), *n = 350000)
SAYS(nvmlDeviceGetEnforcedPowerLimit, (gpu g, u *n), *n = 700000)
SAYS(nvmlDeviceGetClockInfo, (gpu g, u clock, u *n), *n = clock == 1 ? 1980 : 2619)
SAYS(nvmlDeviceGetMemoryErrorCounter, (gpu g, u kind, u counter, u where, ull *n), *n = 5 + kind)
int nvmlDeviceGetFanSpeed(gpu g, u *n) { *n = 30; return g == &first ? 0 : 3; }
int nvmlDeviceGetFanSpeed_v2(gpu g, u fan, u *n) { return nvmlDeviceGetFanSpeed(g, n); }
int nvmlDeviceGetComputeRunningProcesses_v3(gpu g, u *n, process *p) {
    u found = getenv("GPU_USER") && g == &first, room = *n;
    *n = found;
    if (room < found) return 7;
    if (found) *p = (process){atoi(getenv("GPU_USER")), 1, -1, -1};
    return 0;
}
SAYS(nvmlDeviceGetGraphicsRunningProcesses_v3, (gpu g, u *n, process *p), *n = 0)
"""

# The SDK and our sampler side by side in one busy process; both samples and both sets of facts come out.
SIDE_BY_SIDE = """
import json, os, sys, time
os.environ["GPU_USER"] = str(os.getpid())
import wandb
from eventlog.system import Sampler, gpu_facts
sampler = Sampler()
run = wandb.init(project="p", id="r", settings=wandb.Settings(x_stats_sampling_interval=0.5))
began_s = time.monotonic()
sampler.sample(began_s)
while (now_s := time.monotonic()) < began_s + 3:
    sum(range(10_000))
print(json.dumps([sampler.sample(now_s), gpu_facts()]))
run.finish()
"""


class Compared:
    """What the SDK told of a process, and what we did."""

    def __init__(self, directory: Path, **environ: str) -> None:
        with WandbServer() as server:
            kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
            done = subprocess.run(
                [sys.executable, "-c", SIDE_BY_SIDE],
                env={**kept, "PYTHONPATH": pythonpath(), **server.env(directory), **environ},
                cwd=directory,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            run = server.run("ent", "p", "r")
            self.theirs: dict[str, float] = {
                key.removeprefix("system."): value
                for key, value in run.events[-1].items()
                if key.startswith("system.")
            }
            self.their_facts: dict[str, Any] = json.loads(run.files["wandb-metadata.json"])
        self.ours, self.our_facts = json.loads(done.stdout.splitlines()[-1])


def pythonpath() -> str:
    return os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return Compared(tmp_path_factory.mktemp("sdk"))


@pytest.fixture(scope="module")
def compared_on_gpus(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    if shutil.which("gcc") is None or find_spec("pynvml") is None:
        pytest.skip("a pretended driver needs gcc and nvidia-ml-py")
    driver = tmp_path_factory.mktemp("driver")
    (driver / "nvml.c").write_text(DRIVER)
    subprocess.run(
        ["gcc", "-w", "-shared", "-fPIC", "-o", driver / "libnvidia-ml.so.1", driver / "nvml.c"], check=True
    )
    return Compared(tmp_path_factory.mktemp("sdk-gpu"), LD_LIBRARY_PATH=str(driver))


# As the SDK does it


def test_the_names_are_those_that_the_sdk_reports_on_this_machine(compared):
    # Without the GPUs, which only a driver that we can ask as well would name in both.
    theirs = {name for name in compared.theirs if not name.startswith("gpu.")}

    assert {name for name in compared.ours if not name.startswith("gpu.")} == theirs


def test_the_values_are_in_the_sdks_units(compared):
    steady = {"disk./.usagePercent", "disk./.usageGB", "proc.memory.availableMB", "proc.memory.rssMB"}

    ours = {name: compared.ours[name] for name in steady}

    assert ours == pytest.approx({name: compared.theirs[name] for name in steady}, rel=0.1)
    assert compared.ours["memory_percent"] == pytest.approx(compared.theirs["memory_percent"], abs=5)
    assert compared.ours["proc.memory.percent"] == pytest.approx(
        compared.theirs["proc.memory.percent"], rel=0.1
    )
    assert compared.ours["proc.cpu.threads"] == pytest.approx(compared.theirs["proc.cpu.threads"], abs=2)


def test_gpus_have_the_sdks_names_and_values(compared_on_gpus):
    theirs = {name: value for name, value in compared_on_gpus.theirs.items() if name.startswith("gpu.")}
    ours = {name: value for name, value in compared_on_gpus.ours.items() if name.startswith("gpu.")}

    assert len(ours) > 30
    assert ours == theirs


def test_the_facts_about_gpus_are_those_of_the_sdks_metadata(compared_on_gpus):
    theirs = {fact: compared_on_gpus.their_facts[fact] for fact in compared_on_gpus.our_facts}
    # Protobuf writes its 64-bit integers as strings.
    for gpu in theirs["gpu_nvidia"]:
        gpu["memoryTotal"] = int(gpu["memoryTotal"])

    assert compared_on_gpus.our_facts == theirs
    assert theirs.keys() == {name for name in compared_on_gpus.their_facts if "gpu" in name} | {"cudaVersion"}


# One sample


def test_cpu_is_the_share_of_all_cpus_that_the_process_used_since_the_sample_before():
    sampler = Sampler()
    first = sampler.sample(now_s=0.0)
    began = os.times()
    while (now := os.times()).user + now.system < began.user + began.system + 0.3:
        sum(range(10_000))

    one_cpu = sampler.sample(now_s=1.0)["cpu"] * sampler._cpu_capacity

    assert "cpu" not in first
    assert one_cpu == pytest.approx(30, abs=10)


def test_counters_begin_at_the_first_sample(tmp_path: Path):
    sampler = Sampler()

    sample = sampler.sample(now_s=0.0)

    counters = [name for name in sample if name.startswith("network.") or name.endswith((".in", ".out"))]
    assert len(counters) >= 3
    assert {sample[name] for name in counters} == {0}


def test_disk_traffic_is_in_mib(tmp_path: Path):
    sampler = Sampler()
    written = [name for name in sampler.sample(now_s=0.0) if name.endswith(".out")]

    with open(tmp_path / "data", "wb") as file:
        file.write(os.urandom(16 * 1024 * 1024))
        os.fsync(file.fileno())
    sample = sampler.sample(now_s=1.0)

    # The directory may lie on a disk in memory, and others write as well.
    if (most := max((sample[name] for name in written), default=0.0)) > 0:
        assert 16 <= most < 500


def test_a_process_that_is_gone_leaves_the_machines_values():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    sample = Sampler(pid=gone.pid).sample(now_s=0.0)

    assert "memory_percent" in sample
    assert [name for name in sample if name == "cpu" or name.startswith("proc.cpu")] == []


def test_in_a_container_memory_and_cpus_are_the_containers(tmp_path: Path):
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "memory.current").write_text("268435456\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")

    sampler = Sampler(cgroup=tmp_path)
    sample = sampler.sample(now_s=0.0)

    assert (sample["memory_percent"], sample["proc.memory.availableMB"]) == (25, 768)
    assert sampler._cpu_capacity == 0.5


def test_without_limits_a_container_has_what_the_machine_has(tmp_path: Path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")

    sampler, unlimited = Sampler(cgroup=tmp_path), Sampler()

    assert sampler.sample(now_s=0.0)["memory_percent"] > 0
    assert sampler._cpu_capacity == unlimited._cpu_capacity


@pytest.mark.parametrize(
    ("cgroups", "mounts", "expected"),
    [
        ("0::/a/b", "31 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup/a/b"),
        ("0::/", "31 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup"),
        ("0::/a", "31 23 0:26 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup"),
        ("4:memory:/a", "31 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", None),
        ("0::/a", "31 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory", None),
    ],
)
def test_the_limits_of_a_process_stand_in_its_own_cgroup(cgroups: str, mounts: str, expected: str | None):
    assert cgroup_dir(cgroups, mounts) == (None if expected is None else Path(expected))


@pytest.mark.needs_root
def test_no_file_system_but_the_root_is_asked(tmp_path: Path):
    # A dead network mount answers no statfs, for hours.
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    program = "from eventlog.system import Sampler; Sampler().sample(0.0)"

    subprocess.run(
        [
            "strace",
            "-f",
            "-o",
            tmp_path / "trace",
            "-e",
            "trace=statfs",
            sys.executable,
            "-c",
            program,
        ],
        cwd=PROJECT,
        check=True,
    )

    calls = (tmp_path / "trace").read_text()
    mounted = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()}
    assert 'statfs("/",' in calls
    assert [mount for mount in mounted - {"/"} if f'statfs("{mount}"' in calls] == []


# Again and again


def test_samples_are_written_until_the_end_and_none_after_it():
    samples: list[dict[str, float]] = []
    enough = threading.Event()

    def write(sample: dict[str, float]) -> None:
        samples.append(sample)
        if len(samples) == 3:
            enough.set()

    system = System(write, interval_s=0.001)
    system.start()
    assert enough.wait(60)
    system.stop()
    written = list(samples)
    system.stop()

    assert samples == written
    assert "cpu" in samples[1]


def test_a_sample_under_way_at_the_end_is_not_written():
    for _ in range(20):
        samples: list[dict[str, float]] = []
        first = threading.Event()
        system = System(lambda sample: samples.append(sample) or first.set(), interval_s=0.0)  # noqa: B023
        system.start()
        assert first.wait(60)
        thread = next(each for each in threading.enumerate() if each.name == "eventlog system")
        system.stop()
        written = list(samples)
        thread.join(60)

        assert samples == written


def test_the_end_waits_for_a_write_under_way():
    writing, finish = threading.Event(), threading.Event()
    written: list[bool] = []

    def write(sample: dict[str, float]) -> None:
        writing.set()
        written.append(finish.wait(60))

    system = System(write)
    system.start()
    assert writing.wait(60)
    threading.Timer(0.05, finish.set).start()
    system.stop()

    assert written == [True]


def test_a_write_that_fails_ends_the_sampling_and_nothing_else():
    failed = threading.Event()

    def write(sample: dict[str, float]) -> None:
        failed.set()
        raise RuntimeError("a bug of ours")

    system = System(write)
    system.start()
    assert failed.wait(60)
    thread = next((each for each in threading.enumerate() if each.name == "eventlog system"), None)
    if thread is not None:
        thread.join(60)
    system.stop()

    assert str(system.error) == "a bug of ours"


def test_a_forked_child_samples_only_if_it_begins_itself():
    reading, writing_end = os.pipe()
    begun, finish = threading.Event(), threading.Event()
    in_child: list[int] = []

    def write(sample: dict[str, float]) -> None:
        if in_child:
            os.write(writing_end, b"sampled")
        begun.set()
        finish.wait(60)

    system = System(write)
    system.start()
    assert begun.wait(60)
    child = os.fork()
    if child == 0:
        try:
            # The parent's thread was in its write: its lock is held here for ever.
            signal.alarm(30)
            system.stop()
            in_child.append(1)
            finish.set()
            begun.clear()
            system.start()
            begun.wait(60)
            system.stop()
        finally:
            os._exit(0)
    os.close(writing_end)
    said = os.read(reading, 100)
    os.waitpid(child, 0)
    finish.set()
    system.stop()
    os.close(reading)

    assert said == b"sampled"


def test_importing_the_log_costs_no_psutil():
    program = "import sys, eventlog.system; print('psutil' in sys.modules, 'pynvml' in sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["False", "False"]
