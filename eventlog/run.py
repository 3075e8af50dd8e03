"""How a run begins: from what `init` is asked for to a `Run` whose first record is on the disk.

    init ──▶ wishes ──▶ the run that is active already
                   └──▶ config of all layers ──▶ entry ──▶ Run ──▶ capture, announcement

Invariants
----------
* A mistake in the call raises before anything has happened; so does a config that cannot be read.
* The world failing raises here and only here: later a run never raises for it.

What is asked for is decided in `wishes`, which run it is in `entry`, and of what its config is made in `configs`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eventlog import auto_resume, ending, roots
from eventlog.alerts import AlertLevel
from eventlog.capture import Wanted
from eventlog.configs import as_config, chosen, layered
from eventlog.definitions import Metric
from eventlog.entry import Entry, enter, random_id
from eventlog.errors import RootNotWritable
from eventlog.not_yet import say, say_once
from eventlog.piece import RunIdentity
from eventlog.process import default_project, rank_of
from eventlog.running import VERSION, Run, step_rule
from eventlog.settings import Settings
from eventlog.wishes import Wishes, wishes

__all__ = ["VERSION", "AlertLevel", "Metric", "Run", "active", "init", "step_rule"]


def init(
    entity: str | None = None,
    project: str | None = None,
    dir: str | os.PathLike[str] | None = None,
    id: str | None = None,
    name: str | None = None,
    notes: str | None = None,
    tags: Iterable[str] | None = None,
    config: Any = None,
    config_exclude_keys: Iterable[str] | None = None,
    config_include_keys: Iterable[str] | None = None,
    allow_val_change: bool | None = None,
    group: str | None = None,
    job_type: str | None = None,
    mode: str | None = None,
    force: bool | None = None,
    reinit: bool | str | None = None,
    resume: bool | str | None = None,
    resume_from: str | None = None,
    fork_from: str | None = None,
    save_code: bool | None = None,
    tensorboard: bool | str | os.PathLike[str] | None = None,
    sync_tensorboard: bool | None = None,
    monitor_gym: bool | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    anonymous: str | None = None,
    *,
    magic: Any = None,
    root: str | os.PathLike[str] | None = None,
    durability: str = "interval",
    upload_ranks: str | None = None,
    quiet: bool | None = None,
) -> Run:
    """Begin a run, or continue one, and return it.

    What is not given comes from W&B's environment variables. An id that exists begins a new run beside it, unless
    `resume` says otherwise; while a run is active, a call that names no other id returns that run, unless `reinit`
    says otherwise. With `tensorboard`, all that is logged is also written for TensorBoard, into that directory, or
    into the run's. `durability` is "interval" (on the disk within a second), "always" or "none". With
    `upload_ranks="all"` W&B gets each rank as a run of its own, in one group; without, rank 0 alone.
    """
    arguments = {key: value for key, value in locals().items() if key not in ("config", "settings")}
    wished = wishes(arguments, Settings.of(settings), os.environ)
    given = chosen(as_config(config), config_include_keys, config_exclude_keys)
    for wish, sentence in wished.not_done.items():
        say_once(wish, sentence)

    previous = _previous(wished)
    if previous is not None:
        previous.config.setdefaults(given)
        return previous

    if wished.tensorboard is not None:
        from eventlog.integrations.tensorboard import TensorboardMirror, require_tensorboard

        require_tensorboard()
    config, locked = layered(given, wished.config_paths, wished.sweep_param_path)
    project = wished.project or default_project()
    if wished.about["mode"] == "disabled":
        identity = RunIdentity.new(project, wished.run_id or random_id(), wished.entity)
        run = Run(
            identity,
            identity.directory(wished.root),
            name=wished.name,
            wished=wished,
            config=config,
            locked=locked,
            disabled=True,
        )
    else:
        entry = _enter(wished, project)
        run = _run_of(entry, wished, config, locked)
        try:
            _note_for_auto_resume(run, wished)
            # Of the code, W&B's client keeps the program, and what of the repository is not committed.
            keeps_patch = wished.save_code and wished.with_git
            wanted = Wanted.of({**Settings.of(settings).given, "save_code": keeps_patch}, os.environ)
            run._start_capture(wanted)
            if wished.tensorboard is not None:
                run._mirror_to(TensorboardMirror(wished.tensorboard or run.dir / "tensorboard"))
            if wished.save_code:
                run._save_program()
            if entry.notice:
                say(entry.notice)
            _announce(run, wished.root)
        except BaseException as error:
            # Nobody has it, so nobody else would finish it.
            run.finish(ending.exit_code_of(error), error=ending.in_words(error))
            raise
    ending.began(run, is_beside=wished.reinit == "create_new")
    return run


def active() -> Run | None:
    """Return the run that `eventlog.log` logs to: the one begun last and not finished."""
    return ending.current()


def _previous(wished: Wishes) -> Run | None:
    """Return the run that a second `init` stands for, if it does not begin one."""
    if wished.reinit == "finish_previous":
        for run in ending.active():
            run.finish()
    runs: list[Run] = ending.active()
    if wished.reinit in ("finish_previous", "create_new") or not runs:
        return None
    if wished.is_id_in_the_call:
        same = (run for run in runs if run.id == wished.run_id and wished.project in (None, run.project))
        return next(same, None)
    runs[-1]._say_once(
        "init again",
        f"init() is called while {runs[-1].path} is active, and returns that run. For another one, finish it first, "
        'or use reinit="finish_previous" or "create_new".',
    )
    return runs[-1]


def _enter(wished: Wishes, project: str) -> Entry:
    rank, run_id = rank_of(os.environ), wished.run_id
    if rank > 0 and run_id is None:
        rank = 0
        if not wished.is_quiet:
            say(
                "this is not rank 0, and no id says which run it belongs to: it begins a run of its own. "
                "Set WANDB_RUN_ID to the same id on all ranks to have them in one."
            )
    if run_id is None and wished.resume == "auto":
        run_id = auto_resume.remembered(wished.root, project)
    run_id = run_id or random_id()
    resume = "allow" if wished.resume == "auto" else wished.resume
    try:
        return enter(wished.root, project, wished.entity, run_id, resume, rank, say)
    except OSError as error:
        raise _not_writable(wished.root, error) from error


def _note_for_auto_resume(run: Run, wished: Wishes) -> None:
    if wished.resume == "auto":
        auto_resume.remember(wished.root, run.project, run.id)
    elif wished.resume is None and (rank_of(os.environ) == 0 or wished.run_id is None):
        auto_resume.forget(wished.root, run.project)


def _run_of(entry: Entry, wished: Wishes, config: dict[str, Any], locked: list[str]) -> Run:
    earlier = entry.earlier
    name = wished.name
    if name is None:
        name = earlier.name if earlier else entry.asked_id
    try:
        run = Run(
            entry.identity,
            entry.run_dir,
            name=name,
            wished=wished,
            config={**(earlier.config if earlier else {}), **config},
            locked=locked,
            earlier=earlier,
        )
        run._begin(entry.piece)
    except BaseException as error:
        entry.piece.abandon()
        if isinstance(error, OSError):
            raise _not_writable(wished.root, error) from error
        raise
    return run


def _not_writable(root: Path, error: OSError) -> RootNotWritable:
    return RootNotWritable(
        f"the root {str(root)!r} cannot be written: {error.strerror or error}. "
        "Give another one (root=…, or EVENTLOG_ROOT), or make space or permission there."
    )


def _announce(run: Run, root: Path) -> None:
    roots.link_latest(root, run.dir)
    try:
        roots.register(root)
    except OSError as error:
        say(
            f"the root cannot be entered in {str(roots.state_dir())!r} ({error.strerror}): start the daemon with "
            f"`syncd start --root {root}`."
        )
    if roots.daemon_is_watching(root):
        daemon = "syncd uploads it"
    elif roots.daemon_is_watching():
        daemon = f"the syncd that runs here was started for other roots: `syncd sync {shlex.quote(str(run.dir))}` uploads it"
    else:
        daemon = "no syncd is running: `syncd start` uploads it"
    run._say(f"{run.path} is logged in {run.dir} ({daemon}).")
