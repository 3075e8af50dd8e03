"""What a call of `init` asks for: its arguments, then its settings, then W&B's environment variables.

    init(project=…), Settings(run_name=…), WANDB_TAGS=… ──▶ Wishes(project, name, tags, …)

Invariants
----------
* A mistake raises `TypeError` or `ValueError`, and nothing has happened yet.
* Each wish means what it means to W&B's client.  One that is not fulfilled here gets a sentence that says so, and what
  to do instead.
* In a sweep, project, entity and id are the sweep's: a script cannot leave it by accident.

There is no clock, file or socket here: the environment is a parameter.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eventlog.settings import ARGUMENTS, Settings
from eventlog.writer import DURABILITIES

STEP_MAX = 2**63 - 1
_MODES = {"online": "online", "offline": "offline", "disabled": "disabled", "shared": "online"}
_MODES |= {"run": "online", "dryrun": "offline"}
_RESUMES: dict[Any, str | None] = {
    None: None,
    False: None,
    "": None,
    "false": None,
    True: "auto",
    "true": "auto",
}
_RESUMES |= {"auto": "auto", "allow": "allow", "must": "must", "never": "never"}
_UPLOAD_RANKS = {"primary": "primary", "all": "all"}
_REINITS: dict[Any, str] = {None: "return_previous", "default": "return_previous", False: "return_previous"}
_REINITS |= {"false": "return_previous", "return_previous": "return_previous", "create_new": "create_new"}
_REINITS |= {True: "finish_previous", "true": "finish_previous", "finish_previous": "finish_previous"}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")

# Arguments of `wandb.init` that nothing comes of, and what to do instead.
_NOT_DONE = {
    "anonymous": "does nothing here: logging needs no account, and syncd uploads with a key.",
    "fork_from": "is not done: this run begins empty. Fork the run on W&B's pages, or log on in the old run with "
    'resume="must".',
    "magic": "does nothing here: log what should be kept.",
    "monitor_gym": "does nothing here: log videos with run.log({'video': eventlog.Video(path)}).",
    "resume_from": "is not done: nothing is rewound, and this is a run of its own. To go on at its end, use "
    'id=… and resume="must".',
    "sync_tensorboard": "does nothing here: what is written for TensorBoard is not logged.",
}
# The variable of each argument, where it has one.
_VARIABLES = {
    "project": ("WANDB_PROJECT",),
    "entity": ("WANDB_ENTITY",),
    "id": ("WANDB_RUN_ID", "RUN_ID"),
    "name": ("WANDB_NAME", "WANDB_RUN_NAME"),
    "notes": ("WANDB_NOTES", "WANDB_RUN_NOTES"),
    "tags": ("WANDB_TAGS", "WANDB_RUN_TAGS"),
    "group": ("WANDB_RUN_GROUP",),
    "job_type": ("WANDB_JOB_TYPE", "WANDB_RUN_JOB_TYPE"),
    "mode": ("WANDB_MODE",),
    "resume": ("WANDB_RESUME",),
    "reinit": ("WANDB_REINIT",),
    "dir": ("WANDB_DIR",),
    "allow_val_change": ("WANDB_ALLOW_VAL_CHANGE",),
    "fork_from": ("WANDB_FORK_FROM",),
    "resume_from": ("WANDB_RESUME_FROM",),
    "sync_tensorboard": ("WANDB_SYNC_TENSORBOARD",),
    "upload_ranks": ("EVENTLOG_UPLOAD_RANKS",),
}
# Of these, a blank is no wish: it is what the flag of a script is that nobody gave.
_TEXTS = frozenset({"project", "entity", "name", "notes", "group", "job_type"})
# What W&B's service takes, as its client checks it.
_NOT_IN_A_PROJECT, _PROJECT_MAX_CHARS = "/\\#?%:", 128
_NOT_IN_AN_ID = ":;,#?/'"
_TAG_MAX_CHARS = 64


class Wishes(NamedTuple):
    """One run, as it was asked for."""

    project: str | None
    """None: by the repository, as W&B has it."""
    entity: str | None
    run_id: str | None
    is_id_in_the_call: bool
    """Whether the call itself names the id, and not the environment."""
    name: str | None
    about: dict[str, Any]
    """Facts of the `start` record: notes, tags, group, job_type, mode, upload_ranks, and sweep_id in a sweep."""
    resume: str | None
    """`allow`, `must`, `never`, or `auto`: the run that ended badly here, if there is one."""
    reinit: str
    root: Path
    durability: str
    is_quiet: bool
    allow_val_change: bool | None
    config_paths: tuple[str, ...]
    sweep_param_path: str | None
    save_code: bool
    tensorboard: str | None
    """Where TensorBoard's files are mirrored to; empty: into the run's directory."""
    with_git: bool
    facts: dict[str, Any]
    """Facts of the process that are other than they look: `host`, `program`, `email`, `git`."""
    not_done: dict[str, str]
    """What was asked for and is not done: a sentence for each."""


def wishes(arguments: Mapping[str, Any], settings: Settings, environ: Mapping[str, str]) -> Wishes:
    """Return what `init(**arguments)` asks for."""
    asked = _Asked(arguments, settings.given, environ)
    sweep_id = _text("sweep_id", asked.setting("sweep_id"))
    not_done = _not_done(asked)
    if sweep_id:
        not_done |= asked.leave_to_the_sweep()
    run_id = asked.argument("id")
    if isinstance(run_id, str) and not run_id.strip():
        raise ValueError(f"id is blank: {run_id!r}. Leave it out, or give one.")
    run_id = _text("id", run_id)
    resume = _one_of("resume", asked.argument("resume"), _RESUMES)
    if resume == "must" and run_id is None:
        raise ValueError('resume="must" needs to know which run: give its id, or set WANDB_RUN_ID.')
    if sum(map(bool, (resume, asked.argument("fork_from"), asked.argument("resume_from")))) > 1:
        raise ValueError("resume, fork_from and resume_from exclude each other: give one of them.")
    durability = asked.argument("durability")
    if durability not in DURABILITIES:
        raise ValueError(f"durability is one of {', '.join(DURABILITIES)}, not {durability!r}.")
    with_git = not _is_true("disable_git", asked.setting("disable_git"))
    project, about = _text("project", asked.argument("project")), _about(asked, sweep_id)
    if about["mode"] != "disabled":
        not_done |= _refused_by_wandb(project, run_id, about["tags"] or ())
    return Wishes(
        project=project,
        entity=_text("entity", asked.argument("entity")),
        run_id=run_id,
        is_id_in_the_call=asked.is_in_the_call("id"),
        name=_text("name", asked.argument("name")),
        about=about,
        resume=resume,
        reinit=_one_of("reinit", asked.argument("reinit"), _REINITS),
        root=_root(asked),
        durability=durability,
        is_quiet=_is_quiet(asked),
        allow_val_change=_flag("allow_val_change", asked.argument("allow_val_change")),
        config_paths=tuple(_listed(asked.setting("config_paths"))),
        sweep_param_path=asked.setting("sweep_param_path"),
        save_code=_saves_code(asked),
        tensorboard=_mirror(asked.argument("tensorboard")),
        with_git=with_git,
        facts=_facts(asked, with_git),
        not_done=not_done,
    )


class _Asked:
    """Arguments, settings and variables, in the order in which they count."""

    def __init__(
        self, arguments: Mapping[str, Any], settings: Mapping[str, Any], environ: Mapping[str, str]
    ) -> None:
        self._arguments = dict(arguments)
        self._settings = settings
        self._environ = environ
        self._setting_of = {argument: setting for setting, argument in ARGUMENTS.items()}

    def argument(self, name: str) -> Any:
        """Return the wish of that name, if there is one."""
        found = self._in_the_call(name)
        if found is None:
            found = next((self._environ[v] for v in _VARIABLES.get(name, ()) if self._environ.get(v)), None)
        return found

    def setting(self, name: str) -> Any:
        """Return the setting of that name, or its variable's text."""
        found = self._settings.get(name)
        return self._environ.get(f"WANDB_{name.upper()}") or None if found is None else found

    def is_in_the_call(self, name: str) -> bool:
        return self._in_the_call(name) is not None

    def variable(self, name: str) -> str | None:
        return self._environ.get(name) or None

    def leave_to_the_sweep(self) -> dict[str, str]:
        """Let go of what only the sweep decides; return a sentence for each such wish."""
        said = {}
        for name in ("project", "entity", "id"):
            if (given := self._in_the_call(name)) is not None:
                said[f"init({name}={given!r})"] = "does nothing in a sweep: its runs are where the sweep is."
                self._arguments[name] = None
                self._settings = {
                    key: value for key, value in self._settings.items() if ARGUMENTS.get(key) != name
                }
        return said

    def _in_the_call(self, name: str) -> Any:
        for found in (self._arguments.get(name), self._settings.get(self._setting_of.get(name, ""))):
            if found is not None and not (name in _TEXTS and isinstance(found, str) and not found.strip()):
                return found
        return None


def _about(asked: _Asked, sweep_id: str | None) -> dict[str, Any]:
    tags = asked.argument("tags")
    about = {
        "notes": _text("notes", asked.argument("notes")),
        "tags": as_tags(tags if asked.is_in_the_call("tags") else _listed(tags)),
        "group": _text("group", asked.argument("group")),
        "job_type": _text("job_type", asked.argument("job_type")),
        "mode": _one_of("mode", asked.argument("mode") or "online", _MODES),
        "upload_ranks": _one_of("upload_ranks", asked.argument("upload_ranks") or "primary", _UPLOAD_RANKS),
    }
    return about if sweep_id is None else {**about, "sweep_id": sweep_id}


def _not_done(asked: _Asked) -> dict[str, str]:
    # False, and the default of an option that is not wanted, ask for nothing.
    wanted = {name: asked.argument(name) for name in _NOT_DONE}
    said = {
        f"init({name}=…)": _NOT_DONE[name]
        for name, value in wanted.items()
        if value and value != "never" and str(value).lower() not in _FALSE
    }
    if asked.argument("mode") == "shared":
        said['init(mode="shared")'] = (
            "is not done: the process that began the run writes its history, and any other "
            "writes beside it. Its records are kept and can be queried."
        )
    return said


def _refused_by_wandb(project: str | None, run_id: str | None, tags: Sequence[str]) -> dict[str, str]:
    """Return a sentence for each name that the log takes and W&B does not.

    >>> list(_refused_by_wandb("a/b", "r1", ["ok", "x" * 65]))
    ["init(project='a/b')", "init(tags=['xxxxxxxxxxxx…'])"]
    """
    said = {}
    if project and (len(project) > _PROJECT_MAX_CHARS or set(_NOT_IN_A_PROJECT) & set(project)):
        said[f"init(project={project!r})"] = (
            f"is logged, and W&B will refuse it: a project there has up to {_PROJECT_MAX_CHARS} characters, "
            f"and none of {' '.join(_NOT_IN_A_PROJECT)}."
        )
    if run_id and (run_id != run_id.strip() or set(_NOT_IN_AN_ID) & set(run_id)):
        said[f"init(id={run_id!r})"] = (
            f"is logged, and W&B will refuse it: an id there has none of {' '.join(_NOT_IN_AN_ID)}, "
            "and no blank at its ends."
        )
    for tag in tags:
        if len(tag) > _TAG_MAX_CHARS:
            said[f"init(tags=['{tag[:12]}…'])"] = (
                f"is logged, and W&B will refuse it: a tag there has up to {_TAG_MAX_CHARS} characters."
            )
    return said


def _root(asked: _Asked) -> Path:
    root = asked.argument("root") or asked.variable("EVENTLOG_ROOT")
    # W&B keeps its own in `wandb` there.
    return Path(os.path.abspath(root or Path(asked.argument("dir") or ".") / "runs"))


def _is_quiet(asked: _Asked) -> bool:
    quiet = asked.argument("quiet")
    if quiet is not None:
        return bool(quiet)
    return any(_is_true(name, asked.setting(name)) for name in ("silent", "quiet"))


def _saves_code(asked: _Asked) -> bool:
    if _is_true("disable_code", asked.setting("disable_code")):
        return False
    given = asked.argument("save_code")
    return _is_true("save_code", asked.setting("save_code") if given is None else given)


def _mirror(wanted: Any) -> str | None:
    """Return where the mirror for TensorBoard is wanted.

    >>> _mirror(True), _mirror("tb/run1"), _mirror(False)
    ('', 'tb/run1', None)
    """
    if wanted in (None, False):
        return None
    return "" if wanted is True else os.fspath(wanted)


def _facts(asked: _Asked, with_git: bool) -> dict[str, Any]:
    facts = {name: asked.setting(name) for name in ("host", "program")}
    facts["email"] = asked.setting("email") or asked.variable("WANDB_USER_EMAIL")
    commit, remote = asked.setting("git_commit"), asked.setting("git_remote_url")
    if with_git and (commit or remote):
        facts["git"] = {"commit": commit, "remote": remote}
    return {name: fact for name, fact in facts.items() if fact}


# ── one value ────────────────────────────────────────────────────────────────────────────────────────────────


def as_step(step: Any) -> int:
    """Return a step, or raise `TypeError` or `ValueError` if it is none."""
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(f"step is an int, not {step!r}.") from None
    if isinstance(step, bool):
        raise TypeError(f"step is an int, not {step!r}.")
    if not -STEP_MAX <= number <= STEP_MAX:
        raise ValueError(f"step {step!r} does not fit into 64 bits.")
    return number


def as_tags(tags: Any) -> list[str] | None:
    """Return the tags of a run or artifact, or None if there are none.

    >>> as_tags("baseline"), as_tags(["a ", ""])
    (['baseline'], ['a'])
    """
    listed = [tags] if isinstance(tags, str) else list(tags or ())
    if not all(isinstance(tag, str) for tag in listed):
        raise TypeError(f"tags are strings, not {tags!r}.")
    return [tag.strip() for tag in listed if tag.strip()] or None


def _listed(value: Any) -> list[Any]:
    """Return a list that a variable gives as a text with commas, or as JSON.

    >>> _listed("a,b"), _listed('["a", "b"]'), _listed(("a", "b"))
    (['a', 'b'], ['a', 'b'], ['a', 'b'])
    """
    if isinstance(value, str):
        if value.startswith("["):
            try:
                found = json.loads(value)
            except ValueError:
                found = None
            if isinstance(found, list):
                return found
        return value.split(",")
    return list(value or ())


def _text(what: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{what} is a string, not {value!r}.")
    if not value.strip():
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {value!r} has a character that UTF-8 cannot hold.") from None
    return value


def _one_of(what: str, value: Any, words: Mapping[Any, Any]) -> Any:
    """Return what a word stands for; a variable's may be written in capitals."""
    try:
        return words[value.strip().lower() if isinstance(value, str) else value]
    except (KeyError, TypeError):
        known = ", ".join(repr(word) for word in words)
        raise ValueError(f"{what} is one of {known}, not {value!r}.") from None


def _is_true(what: str, value: Any) -> bool:
    return bool(_flag(what, value))


def _flag(what: str, value: Any) -> bool | None:
    """Return a yes or no, which a variable gives as a text."""
    if value is None or isinstance(value, bool):
        return value
    word = str(value).lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError(f"{what} is true or false, not {value!r}.")
