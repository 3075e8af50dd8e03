"""One run as W&B's public API shows it, out of its log: what it is, its history, its files.

Invariants
----------
* A run costs what its own files do, whatever else is below the root; a list of runs costs no look into one of them.
* What it says is what the server says of the same log: its names, its states, its nesting, its numbers.
* Nothing is written but what `download` is asked for, and that only below the directory that it is given.
* What would change a run is refused, in words that say where to do it.
"""

from __future__ import annotations

import fnmatch
import json
import mimetypes
import os
import re
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from hashlib import md5
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from analysis.errors import CommError, UnsupportedError
from analysis.mongo import ABSENT
from analysis.naming import nearest
from analysis.shown import Row, Told, at, having, history, sampled, system, told
from eventlog.overview import overview_of
from eventlog.piece import primaries
from eventlog.reader import read
from eventlog.record import Record
from eventlog.surroundings import environment_of

if TYPE_CHECKING:
    from analysis.api import Api
    from analysis.artifacts import Artifact

# Ours → W&B's. Both take a writer that is not heard any more for crashed, until it is heard again.
STATES = {
    "live": "running",
    "stale": "crashed",
    "crashed": "crashed",
    "finished": "finished",
    "failed": "failed",
}
_STREAMS = ("default", "system")
# What changes a run on W&B's server, or is there alone, and what to do instead.
_UPLOADED = "edit the run on W&B's pages, or through W&B's own `wandb.Api()`, once it is uploaded"
_RESUMED = 'resume it with `eventlog.init(id=…, resume="must")` and say it there'
_NOT_HERE = {
    "update": _UPLOADED,
    "save": _UPLOADED,
    "update_state": "the state is what the run's process did; W&B's pages have a stop button",
    "stop": "end the process, or press Stop on W&B's page of the run",
    "delete": "remove the run's directory, which is `run.dir`",
    "upload_file": f"{_RESUMED}: `run.save(path)`",
    "log_artifact": f"{_RESUMED}: `run.log_artifact(artifact)`",
    "use_artifact": f"{_RESUMED}: `run.use_artifact(…)`",
    "create": "`eventlog.init(project=…)` begins a run",
    "wait_until_finished": "ask `run.state` after `run.load(force=True)`",
    "console_logs": "ask the view `console` of `analysis.connect()`",
    "download_history_exports": "`eventlog seal` makes Parquet of a run that is over",
    "to_html": "open `run.url`, where it is uploaded to",
}
# Where W&B's files are made when a run is uploaded, and what has the same here.
_MADE_ON_UPLOAD = {
    "config.yaml": "run.config",
    "wandb-metadata.json": "run.metadata",
    "wandb-summary.json": "run.summary",
    "output.log": "the view `console`",
}
# What a filter or an order may name beside `config.…` and `summary_metrics.…`, and the attribute that has it.
_FIELDS = {
    "name": "id",
    "display_name": "name",
    "group": "group",
    "job_type": "job_type",
    "state": "state",
    "tags": "tags",
    "notes": "notes",
    "host": "host",
    "entity": "entity",
    "project": "project",
    "created_at": "created_at",
    "heartbeat_at": "heartbeat_at",
    "duration": "duration",
    "username": "user",
    "sweep": "sweep_name",
}
_TREES = {"config": "config", "summary_metrics": "summary_metrics", "summary": "summary_metrics"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run without a look at its rows."""

    name: str | None = None
    state: str = "live"
    """Ours, as `runs` has it."""
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    host: str | None = None
    started_us: int | None = None
    newest_us: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    last_step: int = -1


class Run:
    """A run.  Its attributes are those of W&B's, and can be read only."""

    def __init__(
        self,
        api: Api,
        run_dir: str,
        project: str,
        run_id: str,
        path: str,
        entity: str | None,
        url: str | None,
        facts: Facts | None,
    ) -> None:
        """Without `facts`, what the log says is read when it is asked for."""
        # By the back door: to everybody else an attribute cannot be set.
        self.__dict__.update(
            _api=api,
            run_dir=run_dir,
            project=project,
            id=run_id,
            dir=path,
            owner=entity,
            url=url,
            _listed=facts,
        )

    _api: Api
    owner: str | None
    """Whose run it is, as its log or its upload says."""
    _listed: Facts | None
    run_dir: str
    project: str
    id: str
    dir: str
    url: str | None

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def _facts(self) -> Facts:
        return self._from_log if self._listed is None else self._listed

    @cached_property
    def _told(self) -> Told:
        return told(self._pieces())

    @cached_property
    def _from_log(self) -> Facts:
        said, start = self._told, self._told.start
        return Facts(
            name=start.get("name"),
            state=overview_of(Path(self.dir)).state,
            tags=list(start.get("tags") or []),
            group=start.get("group"),
            job_type=start.get("job_type"),
            notes=start.get("notes"),
            host=start.get("host"),
            started_us=said.started_us,
            newest_us=said.newest_us,
            config=said.config,
            summary=said.summary,
            last_step=said.last_step,
        )

    def _pieces(self) -> Iterator[Iterator[Record]]:
        for name in primaries(Path(self.dir)):
            yield read(self.dir, writer=name)

    @property
    def name(self) -> str:
        """The display name; the id, where none was given."""
        return self._facts.name or self.id

    @property
    def state(self) -> str:
        return STATES[self._facts.state]

    @property
    def tags(self) -> list[str]:
        return self._facts.tags

    @property
    def group(self) -> str | None:
        return self._facts.group

    @property
    def job_type(self) -> str | None:
        return self._facts.job_type

    @property
    def notes(self) -> str | None:
        return self._facts.notes

    @property
    def host(self) -> str | None:
        return self._facts.host

    @property
    def entity(self) -> str | None:
        """Whose run it is, as far as `init` or its upload says; else the API's default."""
        return self.owner or self._api.default_entity

    username = entity

    @property
    def user(self) -> None:
        """Nobody: who is logged in at W&B is not in a log."""

    sweep = sweep_name = user

    @property
    def path(self) -> list[str]:
        """Entity (empty where none is known), project and id."""
        return [self.entity or "", self.project, self.id]

    @property
    def started_us(self) -> int | None:
        """When it began, to the microsecond."""
        return self._facts.started_us

    @property
    def created_at(self) -> str | None:
        return iso(self._facts.started_us)

    @property
    def heartbeat_at(self) -> str | None:
        """When its newest record was written."""
        return iso(self._facts.newest_us)

    @property
    def duration(self) -> float:
        """How long it ran, in seconds."""
        return float(self.summary_metrics.get("_runtime", 0))

    @property
    def config(self) -> dict[str, Any]:
        return self._facts.config

    rawconfig = config

    @property
    def json_config(self) -> str:
        return json.dumps({key: {"value": value, "desc": None} for key, value in self.config.items()})

    @property
    def summary_metrics(self) -> dict[str, Any]:
        return self._facts.summary

    @property
    def summary(self) -> Summary:
        return Summary(self.summary_metrics, self.id)

    @property
    def last_history_step(self) -> int:
        """The step of its last row; -1 if it has none."""
        return self._facts.last_step

    lastHistoryStep = last_history_step

    @property
    def system_metrics(self) -> dict[str, Any]:
        """The newest sample of what the machine was busy with."""
        return self._told.system

    @property
    def metadata(self) -> dict[str, Any]:
        """Where it ran and how it was started, as W&B's `wandb-metadata.json` has it."""
        start = self._told.start
        found = {
            **environment_of(start),
            "python": " ".join(filter(None, [start.get("implementation"), start.get("python")])),
            **(start.get("machine") or {}),
        }
        return {name: value for name, value in found.items() if value}

    def load(self, force: bool = False) -> dict[str, Any]:
        """Return the run's attributes; with `force`, as they are on the disk by now."""
        if force:
            for known in ("_told", "_from_log"):
                self.__dict__.pop(known, None)
            self.__dict__["_listed"] = None
        names = ("id", "name", "state", "config", "tags", "group", "notes", "created_at", "heartbeat_at")
        return {name: getattr(self, name) for name in names} | {"summary_metrics": self.summary_metrics}

    def load_full_data(self, force: bool = False) -> dict[str, Any]:
        return self.load(force)

    def value_of(self, key: str) -> Any:
        """Return what a filter or an order means by a key: `ABSENT` if this run has no such thing."""
        column, dot, rest = _snake(key).partition(".")
        if dot and column in _TREES:
            # The key as it was given: those of a config or a summary are the user's own.
            rest = key.partition(".")[2]
            tree = getattr(self, _TREES[column])
            found = at(tree, rest, ABSENT)
            if found is ABSENT and column == "config" and rest.endswith(".value"):
                # As W&B stores it.
                found = at(tree, rest.removesuffix(".value"), ABSENT)
            return found
        return getattr(self, _FIELDS[_snake(key)])

    # -- its history -----------------------------------------------------------------------------------------------

    def history(
        self,
        samples: int = 500,
        keys: list[str] | None = None,
        x_axis: str = "_step",
        pandas: bool = True,
        stream: str = "default",
    ) -> Any:
        """Return at most `samples` rows, spread over all: all of them, where there are no more.

        With `keys` those rows that have all of them, with `x_axis` before them and nothing else.
        """
        _check_keys(keys)
        if stream not in _STREAMS:
            raise CommError(f"there is no stream {stream!r}. There are: {', '.join(_STREAMS)}.")
        if keys and stream == "system":
            raise CommError('keys are asked of the stream "default"; "system" gives all that it has.')
        rows: Iterable[Row] = system(self._pieces()) if stream == "system" else history(self._pieces())
        if keys:
            rows = having(rows, list(dict.fromkeys([x_axis, *keys])))
        found = sampled(rows, samples)
        return frame(found) if pandas else found

    def scan_history(
        self,
        keys: list[str] | None = None,
        page_size: int = 1000,
        min_step: int | None = 0,
        max_step: int | None = None,
        use_cache: bool = True,
    ) -> HistoryScan:
        """Return all rows from `min_step` to before `max_step`, one after the other as they are read.

        With `keys` those that have all of them, with `_step` beside these.  `page_size` and `use_cache` are W&B's: nothing is
        fetched here.
        """
        _check_keys(keys)
        return HistoryScan(lambda: history(self._pieces()), keys, min_step or 0, max_step)

    beta_scan_history = scan_history

    # -- its files -------------------------------------------------------------------------------------------------

    def files(
        self, names: list[str] | None = None, pattern: str | None = None, per_page: int = 50
    ) -> list[File]:
        """Return the files that it logged; those with these names, or whose name is like `pattern`, with SQL's `%` and `_`."""
        if names and pattern:
            raise CommError("give names or a pattern, not both.")
        found = [File(self, *row) for row in self._api.files_of(self)]
        if names:
            return [file for file in found if file.name in names]
        if pattern:
            # fnmatch's own signs mean themselves here.
            like = re.sub(r"[*?\[]", r"[\g<0>]", pattern).replace("%", "*").replace("_", "?")
            return [file for file in found if fnmatch.fnmatchcase(file.name, like)]
        return found

    def file(self, name: str) -> File:
        """Return the file of that name."""
        known = {file.name: file for file in self.files()}
        if name in known:
            return known[name]
        if name in _MADE_ON_UPLOAD:
            raise CommError(
                f"{name!r} of run {self.id!r} is made when the run is uploaded. Here, {_MADE_ON_UPLOAD[name]} has it."
            )
        raise CommError(f"run {self.id!r} logged no file {name!r}. {nearest(name, known)}")

    def logged_artifacts(self, per_page: int = 100) -> list[Artifact]:
        """Return the artifacts that it logged, the oldest first."""
        return [artifact for artifact in self._api.artifacts_in(self.project) if self.id in artifact.run_ids]

    def used_artifacts(self, per_page: int = 100) -> list[Artifact]:
        raise UnsupportedError(
            "which artifacts a run used is not in its log. W&B's own `wandb.Api()` knows it."
        )

    # -- the rest of W&B's -----------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name in _NOT_HERE:
            return refusal(f"run.{name}", _NOT_HERE[name])
        # W&B has its attributes under the names of its GraphQL too.
        snake = _snake(name)
        if snake != name and isinstance(getattr(type(self), snake, None), property):
            return getattr(self, snake)
        if name == "displayName":
            return self.name
        raise AttributeError(f"{self!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsupportedError(_refused(f"run.{name} = …", _UPLOADED))

    def __repr__(self) -> str:
        return f"<Run {'/'.join(filter(None, self.path))} ({self.state})>"


class HistoryScan(Iterator[Row]):
    """The rows of a history, from the first one each time that `iter` begins."""

    def __init__(
        self,
        rows: Callable[[], Iterator[Row]],
        keys: Sequence[str] | None,
        min_step: int,
        max_step: int | None,
    ) -> None:
        self.keys = keys
        self._rows = rows
        self._min_step, self._max_step = min_step, max_step
        self._left: Iterator[Row] | None = None

    def __iter__(self) -> HistoryScan:
        within = self._within()
        self._left = having(within, list(dict.fromkeys([*self.keys, "_step"]))) if self.keys else within
        return self

    def __next__(self) -> Row:
        if self._left is None:
            iter(self)
        assert self._left is not None
        return next(self._left)

    def _within(self) -> Iterator[Row]:
        for row in self._rows():
            # Steps go up only.
            if self._max_step is not None and row["_step"] >= self._max_step:
                return
            if row["_step"] >= self._min_step:
                yield row


class _NoKey(KeyError, AttributeError):
    """W&B's summary raises a KeyError for an attribute that is not there; Python's `hasattr` wants the other."""


class Summary(Mapping[str, Any]):
    """A summary, or a dict in one: `summary["eval"]["loss"]` is `summary.eval.loss`."""

    _json_dict: dict[str, Any]
    _run_id: str

    def __init__(self, values: dict[str, Any], run_id: str) -> None:
        self.__dict__.update(_json_dict=values, _run_id=run_id)

    def __getitem__(self, key: str) -> Any:
        value = self._json_dict[key]
        return Summary(value, self._run_id) if isinstance(value, dict) else value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._json_dict:
            raise _NoKey(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._json_dict)

    def __len__(self) -> int:
        return len(self._json_dict)

    def __repr__(self) -> str:
        return repr(self._json_dict)

    def _refuse(self, *_: Any, **__: Any) -> None:
        what = f"the summary of run {self._run_id!r}"
        raise UnsupportedError(_refused(what, f'{_RESUMED}: `run.summary["key"] = value`'))

    __setitem__ = __setattr__ = __delitem__ = update = _refuse


class File:
    """A file that a run logged, or that is in an artifact."""

    def __init__(self, of: Any, name: str, size: int, content: str, sha256: str, updated_us: int) -> None:
        self.run = of
        self.name = name
        self.size = size
        self.sha256 = sha256
        self.updated_at = iso(updated_us)
        self.mimetype = mimetypes.guess_type(name)[0]
        self._content = Path(content)

    @property
    def url(self) -> str:
        return self._content.absolute().as_uri()

    direct_url = path_uri = url

    @property
    def md5(self) -> str:
        """The MD5 of its content in base64, as W&B has it."""
        self._check_there()
        digest = md5(usedforsecurity=False)
        with open(self._content, "rb") as content:
            while part := content.read(1024 * 1024):
                digest.update(part)
        return b64encode(digest.digest()).decode()

    def download(
        self,
        root: str | os.PathLike[str] = ".",
        replace: bool = False,
        exist_ok: bool = False,
        api: Any = None,
    ) -> TextIO:
        """Copy it below `root` and return it opened; a file that is there is left alone unless told."""
        path = below(root, self.name)
        if path.exists() and not replace:
            if exist_ok:
                return open(path)
            raise CommError(
                f"{str(path)!r} is there already. Say replace=True to overwrite it, exist_ok=True to keep it."
            )
        self.copy_to(path)
        return open(path)

    def copy_to(self, path: Path) -> None:
        self._check_there()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, and never through a link that somebody else left there.
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copyfile(self._content, unfinished)
        os.replace(unfinished, path)

    def _check_there(self) -> None:
        if not self._content.is_file():
            raise CommError(
                f"the content of {self.name!r} is not on this machine any more ({str(self._content)!r}): once it is uploaded, "
                "it may be given up. W&B's own `wandb.Api()` downloads it."
            )

    def __getattr__(self, name: str) -> Any:
        if name == "delete":
            return refusal("file.delete", "remove the run's directory, or delete the file on W&B's pages")
        raise AttributeError(f"{self!r} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<File {self.name} ({self.mimetype}) {self.size:,} bytes>"


def below(root: str | os.PathLike[str], name: str) -> Path:
    """Return the path of that name below `root`, or refuse one that leads out of it."""
    top = Path(root).resolve()
    path = (top / name).resolve()
    if path == top or not path.is_relative_to(top):
        raise CommError(f"{name!r} leads out of {str(root)!r}, so it is not written.")
    return path


def check_field(key: str) -> None:
    """Refuse a key that no run has for a reason: it is neither a field of W&B's nor in a config or a summary."""
    column, dot, rest = _snake(key).partition(".")
    if not (dot and rest and column in _TREES) and _snake(key) not in _FIELDS:
        known = [*_FIELDS, *(f"{tree}.KEY" for tree in _TREES)]
        raise CommError(f"runs cannot be asked for {key!r}. {nearest(key, known)}")


def refusal(what: str, way_out: str) -> Callable[..., Any]:
    """Return a function that refuses to do what it is called for, whatever it is given."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise UnsupportedError(_refused(what, way_out))

    return refuse


def _refused(what: str, way_out: str) -> str:
    return f"{what} is refused: this reads local files and changes nothing. Instead: {way_out}."


def _check_keys(keys: object) -> None:
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise CommError(f"keys is a list of names, as in keys=['loss'], not {keys!r}.")


def frame(rows: list[Row], columns: list[str] | None = None) -> Any:
    """Return rows as a table."""
    try:
        pandas: Any = import_module("pandas")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "pandas is not installed. `pip install pandas`, or ask for plain rows: history(pandas=False)."
        ) from None
    return pandas.DataFrame.from_records(rows, columns=columns)


def _snake(name: str) -> str:
    """
    >>> _snake("createdAt"), _snake("summaryMetrics.evalLoss"), _snake("job_type")
    ('created_at', 'summary_metrics.eval_loss', 'job_type')
    """
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: "_" + found[1].lower(), name)


def iso(us: int | None) -> str | None:
    """Return a moment as W&B writes one.

    >>> iso(1_763_712_000_500_000)
    '2025-11-21T08:00:00Z'
    """
    return (
        None
        if us is None
        else datetime.fromtimestamp(us // 1_000_000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    )
