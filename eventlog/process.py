"""The facts of a `start` record: which process this is, on which machine, from which commit.

Invariants
----------
* A fact that cannot be found out is null; none costs more than a moment, and none fails a run.
* No fact holds a credential.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventlog.piece import this_boot_id, this_host
from eventlog.redact import redacted_argv, without_credentials

if TYPE_CHECKING:
    import subprocess

# Set by torchrun and accelerate, Slurm, Open MPI, MPICH and Intel MPI, MVAPICH, Cray's PALS and Flux, in the order in
# which they are believed.
_RANK = (
    "RANK",
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "MV2_COMM_WORLD_RANK",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
)
_WORLD_SIZE = (
    "WORLD_SIZE",
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "PALS_NRANKS",
    "FLUX_JOB_SIZE",
)
# A repository on a slow file system costs a run's start at most this.
_GIT_TIMEOUT_S = 2.0


def rank_of(environ: Mapping[str, str]) -> int:
    """Return this process's rank in its job; 0 if it has none.

    >>> rank_of({"SLURM_PROCID": "3"}), rank_of({"RANK": "", "OMPI_COMM_WORLD_RANK": "x"})
    (3, 0)
    """
    return _first_number(environ, _RANK) or 0


def facts(version: str, given: Mapping[str, Any] | None = None, with_git: bool = True) -> dict[str, Any]:
    """Return the process's part of a `start` record.

    Of `given` come `host`, `program`, `email` and `git`, where a person wants them other than they look.
    """
    given = given or {}
    cwd, program = _cwd(), given.get("program") or _program()
    repository = _repository() if with_git else None
    return {
        "host": given.get("host") or this_host(),
        "boot_id": this_boot_id(),
        "pid": os.getpid(),
        "rank": rank_of(os.environ),
        "world_size": _first_number(os.environ, _WORLD_SIZE),
        "program": program,
        "argv": redacted_argv(sys.argv),
        "cwd": cwd,
        "code_path": relative_code_path(program, repository or Path(cwd)) if cwd else None,
        "code_path_local": relative_code_path(program, Path(cwd)) if cwd else None,
        "executable": sys.executable,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "os": _operating_system(),
        "cpu_count": os.cpu_count(),
        "machine": machine(os.environ),
        "email": given.get("email") or os.environ.get("WANDB_USER_EMAIL") or None,
        "git": _git(repository, given.get("git") or {}) if with_git else None,
        "version": version,
    }


def machine(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what is known at once of this machine, under the names of W&B's metadata; sizes are in bytes."""
    facts: dict[str, Any] = {"cpu_count_logical": os.cpu_count(), "slurm": _slurm(environ), **_cpu()}
    with suppress(OSError, ValueError):
        facts["memory"] = {"total": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}
    with suppress(OSError):
        disk = os.statvfs("/")
        used = disk.f_blocks - disk.f_bfree
        facts["disk"] = {"/": {"total": disk.f_blocks * disk.f_frsize, "used": used * disk.f_frsize}}
    return {name: fact for name, fact in facts.items() if fact}


def default_project() -> str:
    """Return the project of a run that names none: the repository and the program's place in it, as W&B has it."""
    repository = _repository()
    if repository is None:
        return "uncategorized"
    try:
        place = str(Path(_program()).parent.resolve().relative_to(repository.resolve()))
    except (OSError, ValueError):
        place = "."
    return repository.name if place == "." else f"{repository.name}-{place}".replace("/", "_")


def relative_code_path(program: str, root: Path) -> str | None:
    """Return where the program's file stands under `root`; None if it is no file, or not under it."""
    file = Path(program)
    try:
        return str(file.resolve().relative_to(root.resolve())) if file.is_file() else None
    except (OSError, ValueError):
        return None


def _first_number(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    values = (environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isascii() and value.isdigit()), None)


def _program() -> str:
    """Return what runs: a file, or `-m module`; WANDB_PROGRAM goes first, as with W&B's client."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    running = f"-m {spec.name}" if spec is not None else getattr(main, "__file__", None)
    # W&B's words for `python -c`, for the prompt and for a notebook.
    return os.environ.get("WANDB_PROGRAM") or running or "<python with no main file>"


def _cpu() -> dict[str, Any]:
    """Return how many cores there are, and of which kind; nothing where /proc does not say."""
    cores: set[tuple[str, str]] = set()
    said: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            said[name.strip()] = value.strip()
            if name.startswith("core id"):
                cores.add((said.get("physical id", ""), value.strip()))
    model = said.get("model name")
    return {"cpu_count": len(cores), "cpu": {"model": model} if model else None}


def _slurm(environ: Mapping[str, str]) -> dict[str, str]:
    # Slurm's own token is the one of its variables that opens anything.
    names = (name for name in environ if name.startswith("SLURM_") and name != "SLURM_JWT")
    return {name.removeprefix("SLURM_").lower(): without_credentials(environ[name]) for name in sorted(names)}


def _operating_system() -> str:
    """Return what `platform.platform()` says, which starts a process for a part that it leaves out then."""
    system = os.uname()
    if system.sysname != "Linux":
        return platform.platform()
    return f"Linux-{system.release}-{system.machine}-with-{''.join(platform.libc_ver())}"


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _repository() -> Path | None:
    """Return the root of the repository around the working directory."""
    cwd = _cwd()
    around = (Path(cwd), *Path(cwd).parents) if cwd else ()
    return next((parent for parent in around if (parent / ".git").exists()), None)


def _git(repository: Path | None, given: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Return the commit and remote that were given, or those of the repository; None outside of one."""
    if repository is None and not given:
        return None
    remote, commit = given.get("remote"), given.get("commit")
    if repository is not None and not (remote and commit):
        found = _git_says(("config", "--get", "remote.origin.url"), ("rev-parse", "--verify", "HEAD"))
        remote, commit = remote or found[0], commit or found[1]
    return {
        "commit": commit,
        "remote": without_credentials(remote) if remote else None,
    }


def _git_says(*questions: tuple[str, ...]) -> list[str | None]:
    """Return git's answers, None where it has none.  It is asked all at once: each takes some milliseconds."""
    import subprocess

    asked: list[subprocess.Popen[bytes]] = []
    with suppress(OSError):
        for question in questions:
            git = subprocess.Popen(
                ["git", *question],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            asked.append(git)
    answers = [_answer(git) for git in asked]
    return [*answers, *[None] * (len(questions) - len(asked))]


def _answer(git: subprocess.Popen[bytes]) -> str | None:
    import subprocess

    with git:
        try:
            answer, _ = git.communicate(timeout=_GIT_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError):
            git.kill()
            return None
    return answer.decode("utf-8", "replace").strip() or None if git.returncode == 0 else None
