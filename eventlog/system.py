"""How busy the machine and this process are, every few seconds, under W&B's names and in its units.

    /proc, psutil, NVML ──▶ Sampler.sample(now_s) ──▶ {"cpu": 49.5, "gpu.0.temp": 41, …}
                                      └── System: a thread of its own ──▶ write(sample)   (a `system` record)

Invariants
----------
* What the machine does not tell is left out; a sample never fails, and a training never waits for one.
* Only the file system of `/` is asked: a dead mount elsewhere cannot hang a sample.
* Nothing is read, and nothing is imported, between samples and before the first.
* Nothing is written once `stop` has returned, if it waits.

Counters (bytes, retransmits) count from the first sample, and `cpu` is the mean since the sample before.  Names are
W&B's without their `system.`.  Its profiling counters of Hopper GPUs (`smActive` …) are not here: they cost 0.2 s a sample.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

INTERVAL_S = 15.0
_MIB = 1024**2
_GIB = 1024**3
# What a GPU does for this process is told under this name as well, if the process uses it.
_OF_PROCESS = {"gpu", "memory", "memoryAllocated", "memoryAllocatedBytes", "temp"}
_OF_PROCESS |= {"powerWatts", "enforcedPowerLimitWatts", "powerPercent"}


class System:
    """Samples every `interval_s` in a thread of its own, and passes each sample to `write`."""

    def __init__(self, write: Callable[[dict[str, float]], None], interval_s: float = INTERVAL_S) -> None:
        self.error: Exception | None = None
        """What ended the sampling, if it was not `stop`."""
        self._write = write
        self._interval_s = interval_s
        self._pid = 0

    def start(self) -> None:
        """Begin, or begin anew in a forked child; the first sample is taken at once."""
        self._pid = os.getpid()
        # New ones: in a forked child, the parent's thread may hold the old.
        self._stopped = threading.Event()
        # Reentrant: a write that fails may end the run.
        self._writing = threading.RLock()
        threading.Thread(
            target=self._run, args=(self._stopped, self._writing), name="eventlog system", daemon=True
        ).start()

    def stop(self, waits: bool = True) -> None:
        """End the sampling; a sample under way is not waited for, and not written.

        Unless `waits`, neither is the writing of one: it may wait for the caller.
        """
        if self._pid != os.getpid():
            return
        self._pid = 0
        self._stopped.set()
        if waits:
            # Whoever writes has looked at `_stopped` before; from now on, nobody does.
            with self._writing:
                pass

    def _run(self, stopped: threading.Event, writing: threading.RLock) -> None:
        try:
            sampler = Sampler()
            next_s = time.monotonic()
            while not stopped.is_set():
                sample = sampler.sample(time.monotonic())
                with writing:
                    if sample and not stopped.is_set():
                        self._write(sample)
                # A machine that slept, or a slow sample, is not made up for.
                next_s = max(next_s + self._interval_s, time.monotonic())
                stopped.wait(next_s - time.monotonic())
        except Exception as error:  # noqa: BLE001 - the top of a thread: a training goes on without samples
            self.error = error


class Sampler:
    """Takes samples of one process and the machine it runs on."""

    def __init__(self, pid: int | None = None, cgroup: Path | None = None) -> None:
        import psutil

        self._psutil = psutil
        self._pid = os.getpid() if pid is None else pid
        self._nvml = _nvml()
        self._unknown = (OSError, ValueError, LookupError, ArithmeticError, RuntimeError, psutil.Error)
        self._first: dict[str, float] = {}
        self._cpu_before: tuple[float, float] | None = None
        self._devices: set[str] | None = None
        self._cgroup = cgroup or _cgroup()
        self._cpu_capacity = self._count_cpus()

    def sample(self, now_s: float) -> dict[str, float]:
        """Return what can be told at this moment of a clock that only goes forward."""
        sample: dict[str, float] = {}
        for part in (
            self._network,
            self._retransmits,
            self._disk_space,
            self._disk_traffic,
            self._memory,
            self._process,
            self._gpus,
        ):
            try:
                sample |= part(now_s)
            except self._unknown:
                continue
        return sample

    def _since_first(self, what: str, count: float) -> float:
        return count - self._first.setdefault(what, count)

    # ── the machine ──────────────────────────────────────────────────────────────────────────────────────────

    def _network(self, now_s: float) -> dict[str, float]:
        """Bytes.  A bond and the cards in it carry the same traffic, so that the cards do not count; nor does loopback."""
        sent = received = 0.0
        for nic, count in self._psutil.net_io_counters(pernic=True, nowrap=False).items():
            if nic not in ("lo", "lo0") and not os.path.lexists(f"/sys/class/net/{nic}/master"):
                sent += self._since_first(f"sent {nic}", count.bytes_sent)
                received += self._since_first(f"received {nic}", count.bytes_recv)
        return {"network.sent": sent, "network.recv": received}

    def _retransmits(self, now_s: float) -> dict[str, float]:
        names, counts = (
            line.split()
            for line in Path("/proc/net/snmp").read_text().splitlines()
            if line.startswith("Tcp:")
        )
        count = int(counts[names.index("RetransSegs")])
        return {"network.tcpRetransmits": self._since_first("retransmits", count)}

    def _disk_space(self, now_s: float) -> dict[str, float]:
        disk = os.statvfs("/")
        used = disk.f_blocks - disk.f_bfree
        return {
            "disk./.usagePercent": 100.0 * used / (used + disk.f_bavail),
            "disk./.usageGB": used * disk.f_frsize / _GIB,
        }

    def _disk_traffic(self, now_s: float) -> dict[str, float]:
        counters = self._psutil.disk_io_counters(perdisk=True, nowrap=False)
        if self._devices is None:
            partitions = [
                (part.mountpoint, os.path.realpath(part.device)) for part in self._psutil.disk_partitions()
            ]
            self._devices = devices_of_root(partitions, counters)
        traffic = {}
        for device in self._devices & counters.keys():
            count = counters[device]
            traffic[f"disk.{device}.in"] = self._since_first(f"in {device}", count.read_bytes) / _MIB
            traffic[f"disk.{device}.out"] = self._since_first(f"out {device}", count.write_bytes) / _MIB
        return traffic

    def _memory(self, now_s: float) -> dict[str, float]:
        used, total = self._used_memory()
        return {
            "memory_percent": 100.0 * used / total,
            "proc.memory.availableMB": max(total - used, 0) / _MIB,
        }

    def _used_memory(self) -> tuple[int, int]:
        """What is used of what there is: the container's limit, if it has one, else the machine's memory."""
        limit = _number_in(self._cgroup, "memory.max")
        used = _number_in(self._cgroup, "memory.current")
        if limit and used is not None:
            return used, limit
        memory = self._psutil.virtual_memory()
        return memory.total - memory.available, memory.total

    # ── the process ──────────────────────────────────────────────────────────────────────────────────────────

    def _process(self, now_s: float) -> dict[str, float]:
        process = self._psutil.Process(self._pid)
        with process.oneshot():
            times, resident, threads = process.cpu_times(), process.memory_info().rss, process.num_threads()
        cpu_s = times.user + times.system
        sample: dict[str, float] = {
            "proc.cpu.threads": threads,
            "proc.memory.rssMB": resident / _MIB,
            "proc.memory.percent": 100.0 * resident / self._used_memory()[1],
        }
        if self._cpu_before is not None and now_s > self._cpu_before[0]:
            before_s, cpu_before_s = self._cpu_before
            sample["cpu"] = 100.0 * (cpu_s - cpu_before_s) / (now_s - before_s) / self._cpu_capacity
        self._cpu_before = now_s, cpu_s
        return sample

    def _count_cpus(self) -> float:
        """How many CPUs this process can use: 100 % `cpu` is all of them."""
        logical = os.cpu_count() or 1
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
        limits = [limit for limit in (_cpu_quota(self._cgroup), float(allowed)) if limit and limit < logical]
        return min(limits) if limits else float(self._psutil.cpu_count(logical=False) or logical)

    # ── the GPUs ─────────────────────────────────────────────────────────────────────────────────────────────

    def _gpus(self, now_s: float) -> dict[str, float]:
        sample: dict[str, float] = {}
        for i, gpu in _handles(self._nvml):
            measured = _measured(self._nvml, gpu)
            sample |= {f"gpu.{i}.{name}": value for name, value in measured.items()}
            if self._uses(gpu):
                of_process = _OF_PROCESS & measured.keys()
                sample |= {f"gpu.process.{i}.{name}": measured[name] for name in of_process}
        return sample

    def _uses(self, gpu: Any) -> bool:
        """Say whether this process, or one that it started, computes there."""
        running = _asked(self._nvml, "DeviceGetComputeRunningProcesses", gpu) or []
        running = running + (_asked(self._nvml, "DeviceGetGraphicsRunningProcesses", gpu) or [])
        return any(self._pid == each.pid or self._pid in self._ancestors(each.pid) for each in running)

    def _ancestors(self, pid: int) -> list[int]:
        try:
            return [parent.pid for parent in self._psutil.Process(pid).parents()]
        except self._psutil.Error:
            return []


def devices_of_root(partitions: Iterable[tuple[str, str]], counters: Iterable[str]) -> set[str]:
    """Return the names, among those counted, of the block devices on which `/` lies.

    Where no device says that it holds `/` (a container's overlay), it is every real one that is mounted, or else there.

    >>> sorted(devices_of_root([("/", "/dev/vda1"), ("/data", "/dev/vdb")], ["vda", "vda1", "vdb", "loop0"]))
    ['vda1']
    >>> sorted(devices_of_root([("/etc/hosts", "/dev/vda1")], ["vda", "vda1", "vdb", "loop0"]))
    ['vda1']
    >>> sorted(devices_of_root([], ["vda", "vda1", "vdb", "loop0"]))
    ['vda', 'vda1', 'vdb']
    """
    mounted = [(mount, device.removeprefix("/dev/")) for mount, device in partitions]
    counted = set(counters)
    real = {device for device in counted if not device.startswith(("loop", "ram", "zram"))}
    of_root = {device for mount, device in mounted if mount == "/"}
    return of_root & counted or {device for _, device in mounted} & real or real


# ── a container's limits ─────────────────────────────────────────────────────────────────────────────────────


def _cgroup() -> Path | None:
    try:
        return cgroup_dir(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    except OSError:
        return None


def cgroup_dir(cgroups: str, mounts: str) -> Path | None:
    """Return where the limits of the process stand whose /proc/<pid>/cgroup and mountinfo these are; v2 only.

    >>> mounts = "31 23 0:26 /pods/a /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
    >>> print(cgroup_dir("0::/pods/a/train", mounts))
    /sys/fs/cgroup/train
    """
    path = next((line[3:] for line in cgroups.splitlines() if line.startswith("0::")), None)
    for line in mounts.splitlines():
        mount, _, kind = line.partition(" - ")
        if path is not None and kind.startswith("cgroup2 "):
            # A container sees the part of the tree that is its own, mounted at the usual place.
            root, mounted_at = mount.split()[3:5]
            inside = PurePosixPath(path)
            return Path(mounted_at) / inside.relative_to(root if inside.is_relative_to(root) else "/")
    return None


def _number_in(cgroup: Path | None, name: str) -> int | None:
    """Return the number in a file of the cgroup; None if there is none, or it says "max"."""
    try:
        return int((cgroup / name).read_text()) if cgroup else None
    except (OSError, ValueError):
        return None


def _cpu_quota(cgroup: Path | None) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split() if cgroup else ("max", "1")
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


# ── NVML ─────────────────────────────────────────────────────────────────────────────────────────────────────


def gpu_facts() -> dict[str, Any]:
    """Return which NVIDIA GPUs this machine has, under the names of W&B's metadata; empty if it has none.

    Waking a driver can take seconds: not for the thread that trains.
    """
    nvml = _nvml()
    gpus = [_facts(nvml, gpu) for _, gpu in _handles(nvml)]
    if not gpus:
        return {}
    facts = {"gpu_count": len(gpus), "gpu_nvidia": gpus}
    if "name" in gpus[0]:
        facts["gpu"] = gpus[0]["name"]
    if cuda := _asked(nvml, "SystemGetCudaDriverVersion"):
        facts["cudaVersion"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
    return facts


def _nvml() -> Any:
    """Return NVML's binding, ready to be asked, or None where there is no binding or no driver."""
    import ctypes
    import importlib

    try:
        # Asked first: the binding takes 10 ms to import, in which nobody else has the interpreter.
        ctypes.CDLL("libnvidia-ml.so.1")
        nvml = importlib.import_module("pynvml")
    except (OSError, ImportError):
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _handles(nvml: Any) -> list[tuple[int, Any]]:
    count = _asked(nvml, "DeviceGetCount") or 0
    handles = ((i, _asked(nvml, "DeviceGetHandleByIndex", i)) for i in range(count))
    return [(i, handle) for i, handle in handles if handle is not None]


def _asked(nvml: Any, question: str, *arguments: Any) -> Any:
    """Return what `nvml<question>` answers; None where the driver has no answer."""
    if nvml is None:
        return None
    try:
        return getattr(nvml, f"nvml{question}")(*arguments)
    except nvml.NVMLError:
        return None


def _measured(nvml: Any, gpu: Any) -> dict[str, float]:
    utilization = _asked(nvml, "DeviceGetUtilizationRates", gpu)
    memory = _memory(nvml, gpu)
    power_mw = _asked(nvml, "DeviceGetPowerUsage", gpu)
    limit_mw = _asked(nvml, "DeviceGetEnforcedPowerLimit", gpu)
    # Since the driver was loaded: the lifetime's count stays up after a repair.
    where = (nvml.NVML_VOLATILE_ECC, nvml.NVML_MEMORY_LOCATION_DEVICE_MEMORY)
    corrected, uncorrected = (
        _asked(nvml, "DeviceGetMemoryErrorCounter", gpu, kind, *where)
        for kind in (nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
    )
    measured = {
        "gpu": utilization and utilization.gpu,
        "memory": utilization and utilization.memory,
        "memoryAllocated": memory and 100.0 * memory.used / memory.total,
        "memoryAllocatedBytes": memory and memory.used,
        "temp": _asked(nvml, "DeviceGetTemperature", gpu, nvml.NVML_TEMPERATURE_GPU),
        "powerWatts": power_mw and power_mw / 1000,
        "enforcedPowerLimitWatts": limit_mw and limit_mw / 1000,
        "powerPercent": power_mw and limit_mw and 100.0 * power_mw / limit_mw,
        "smClock": _asked(nvml, "DeviceGetClockInfo", gpu, nvml.NVML_CLOCK_SM),
        "memoryClock": _asked(nvml, "DeviceGetClockInfo", gpu, nvml.NVML_CLOCK_MEM),
        "correctedMemoryErrors": corrected,
        "uncorrectedMemoryErrors": uncorrected,
        "fanSpeed": _asked(nvml, "DeviceGetFanSpeed", gpu),
    }
    return {name: value for name, value in measured.items() if value is not None}


def _memory(nvml: Any, gpu: Any) -> Any:
    # As the SDK: the second version does not count what the driver keeps to itself as used; old drivers lack it.
    version_2 = _asked(nvml, "DeviceGetMemoryInfo", gpu, nvml.nvmlMemory_v2)
    return version_2 or _asked(nvml, "DeviceGetMemoryInfo", gpu)


def _facts(nvml: Any, gpu: Any) -> dict[str, Any]:
    memory = _memory(nvml, gpu)
    architecture = _asked(nvml, "DeviceGetArchitecture", gpu)
    prefix = "NVML_DEVICE_ARCH_"
    named = (name for name in dir(nvml) if name.startswith(prefix) and getattr(nvml, name) == architecture)
    facts = {
        "name": _asked(nvml, "DeviceGetName", gpu),
        "memoryTotal": memory and memory.total,
        "cudaCores": _asked(nvml, "DeviceGetNumGpuCores", gpu),
        "architecture": next((name.removeprefix(prefix).title() for name in named), None),
        "uuid": _asked(nvml, "DeviceGetUUID", gpu),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
