"""W&B's public API over the files that are here: a notebook of `wandb.Api()` works offline, with one import changed.

    import analysis as wandb

    api = wandb.Api()
    for run in api.runs("demo", {"config.lr": {"$gt": 1e-6}}, order="-summary_metrics.train/reward"):
        print(run.name, run.summary["train/reward"], run.history(keys=["train/reward"]))

Invariants
----------
* Names, arguments and answers are W&B's, as of its SDK 0.31; what only its servers can answer is refused in words.
* What is asked is answered from the disk as it is then: `runs` looks again, and so does `run` for a run that is new.
* Any number of runs is one query, and one run is read from its own files alone.
* Nothing is written or sent, and no key is needed.

A path is `entity/project/run`; whoever has one project or one run of that id may leave the rest out.  A run whose log says
nothing of an entity is anybody's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, overload
from urllib.parse import unquote, urlsplit

import orjson

from analysis import connect, refresh
from analysis.artifacts import Artifact, Logged, versions
from analysis.asking import execute
from analysis.errors import CommError
from analysis.mongo import check, matches, place
from analysis.naming import nearest
from analysis.run import Facts, Run, check_field, frame, refusal
from analysis.shown import STEP, TIMESTAMP, ages
from eventlog.nested import as_config, as_sent

# What is W&B's, and its servers' alone.
_THEIRS = frozenset(
    {
        *(
            "artifact_collection",
            "artifact_collection_exists",
            "artifact_collections",
            "artifact_type",
            "artifact_types",
        ),
        *("automation", "automations", "create_automation", "create_custom_chart", "create_project"),
        *("create_registry", "create_run", "create_run_queue", "create_team", "create_user"),
        *("delete_automation", "integrations", "job", "list_jobs", "organization"),
        *("queued_run", "registries", "registry", "reports", "run_queue"),
        *("slack_integrations", "sweep", "sync_tensorboard", "team", "update_automation"),
        *("upsert_run_queue", "user", "users", "viewer", "webhook_integrations"),
    }
)
_FORMATS = ("default", "pandas", "polars")
# What in a run's columns may be something that JSON has no word for, which they have as text: then the log is asked.
_DOUBTFUL = r'"(NaN|-?Infinity|-?\d{19,}|-?0x[0-9a-f]+)"'
_LISTED = f"""
SELECT run_dir, name, state, tags, "group", job_type, notes, host, epoch_us(started), epoch_us(last_time), config, summary,
    last_step, duration_s, epoch_us(newest_time),
    has_said OR newest_step < last_step OR regexp_matches(config, '{_DOUBTFUL}') OR regexp_matches(summary, '{_DOUBTFUL}')
        OR list_bool_or(list_transform(json_keys(summary), lambda key: contains(key, '.') OR key = '_runtime')) AS is_odd
FROM internal.facts_of(NULL) JOIN internal.objects_of(NULL) USING (run_dir)
"""
_KNOWN = """
SELECT r.run_dir, r.project, r.run_id, r.path, r.entity, c.url
FROM internal.runs r LEFT JOIN (
    SELECT run_dir, arg_max(url, time_us) AS url
    FROM internal.cursors WHERE sink_run_id = (SELECT u.run_id FROM internal.runs u WHERE u.run_dir = cursors.run_dir)
    GROUP BY run_dir
) c USING (run_dir)
ORDER BY r.project, r.run_id, r.run_dir
"""


class Api:
    """The runs below a root: `$EVENTLOG_ROOT`, else `./runs`, if not given."""

    def __init__(
        self,
        overrides: Mapping[str, Any] | None = None,
        timeout: int | None = None,
        api_key: str | None = None,
        root: Path | str | None = None,
    ) -> None:
        """`overrides` may set the `entity` and the `project` that are meant where a path names none.

        `timeout` and `api_key` are W&B's: there is no server here.
        """
        self.settings: dict[str, Any] = {
            "entity": os.environ.get("WANDB_ENTITY"),
            "project": os.environ.get("WANDB_PROJECT"),
            **(overrides or {}),
        }
        self.api_key = None
        # Notebooks have threads, and a connection answers one at a time.
        self._lock = threading.RLock()
        self._con = connect(root)
        self._con.execute("SET enable_progress_bar = false")
        self._runs = self._known()

    @property
    def default_entity(self) -> str | None:
        """Whose runs these are: as it was set, else that of all runs, if they have one."""
        if self.settings["entity"]:
            return str(self.settings["entity"])
        entities = {known.owner for known in self._runs.values()} - {None}
        return entities.pop() if len(entities) == 1 else None

    def flush(self) -> None:
        """Look again at what is there."""
        with self._lock:
            refresh(self._con)
            self._runs = self._known()

    def runs(
        self,
        path: str | None = None,
        filters: Mapping[str, Any] | None = None,
        order: str = "+created_at",
        per_page: int = 50,
        include_sweeps: bool = False,
        lazy: bool = True,
    ) -> Runs:
        """Return the runs of a project that match, in this order; of all projects, if none is given or set.

        `per_page`, `include_sweeps` and `lazy` are W&B's: all is here.
        """
        check(filters or {}, check_field)
        key = (order or "+created_at").lstrip("+-")
        check_field(key)
        with self._lock:
            self.flush()
            entity, project = self._project_path(path)
            listed, known = self._listed(project), self._runs
        found = [
            self._made(run, listed.get(run_dir))
            for run_dir, run in known.items()
            if (project is None or run.project == project) and self._is_of(run, entity)
        ]
        found = [run for run in found if matches(filters or {}, run.value_of)]
        is_down = (order or "").startswith("-")
        # Twice, since sorting is stable: what is equal, and be it in seconds, is in the order of its beginnings.
        found.sort(key=lambda run: ((run.started_us or 0) * (-1 if is_down else 1), run.project, run.id))
        found.sort(key=lambda run: place(run.value_of(key), is_down))
        return Runs(found, "/".join(filter(None, [entity, project])))

    def run(self, path: str = "") -> Run:
        """Return one run: `entity/project/run_id`, `project/run_id`, or `run_id`."""
        found = self._find(path)
        if not found:
            # It may be new.
            self.flush()
            found = self._find(path)
        if len(found) > 1:
            names = ", ".join(f"{run.project}/{run.id}" for run in found)
            raise CommError(f"several runs are called {path!r}. Say which: {names}.")
        if found:
            # Anew: what was read of it before may be over.
            return self._made(found[0], None)
        *_, run_id = _parts(path)
        known = [run.id for run in self._runs.values()]
        raise CommError(f"there is no run {path!r}. {nearest(run_id, known)} `api.runs()` lists them.")

    def projects(self, entity: str | None = None, per_page: int = 200) -> list[Project]:
        """Return the projects below the root."""
        self.flush()
        entity = entity or self.default_entity
        names = {run.project for run in self._runs.values() if self._is_of(run, entity)}
        return [Project(name, entity) for name in sorted(names)]

    def project(self, name: str, entity: str | None = None) -> Project:
        found = {project.name: project for project in self.projects(entity)}
        if name not in found:
            raise CommError(f"there is no project {name!r}. {nearest(name, found)}")
        return found[name]

    def from_path(self, path: str) -> Run | Project:
        """Return the run (`entity/project/runs/run_id`) or the project (`entity/project`) of that path."""
        parts = _parts(path)
        return (
            self.run(path)
            if len(parts) > 2
            else self.project(parts[-1], parts[0] if len(parts) == 2 else None)
        )

    def artifact(self, name: str, type: str | None = None) -> Artifact:
        """Return one version of an artifact: `entity/project/name:alias`, by a version (`v2`) or an alias; else `latest`."""
        self.flush()
        name, _, alias = name.partition(":")
        *_, project, bare = [None, *_parts(name)]
        projects = [project or self.settings["project"]]
        if projects == [None]:
            projects = sorted({run.project for run in self._runs.values()})
        found = [
            each
            for one in projects
            for each in self.artifacts_in(one)
            if each.source_name.startswith(f"{bare}:")
        ]
        if not found:
            names = [each.name for one in projects for each in self.artifacts_in(one)]
            raise CommError(
                f"no run below this root logged an artifact {bare!r}. {nearest(bare, names)} What other machines logged is on "
                "W&B's server only: W&B's own `wandb.Api()` knows it."
            )
        meant = [each for each in found if (alias or "latest") in (each.version, *each.aliases)]
        if not meant:
            known = [word for each in found for word in (each.version, *each.aliases)]
            raise CommError(f"artifact {bare!r} has no version {alias!r} here. {nearest(alias, known)}")
        if len({each.project for each in meant}) > 1:
            raise CommError(
                f"several projects have an artifact {bare!r}. Say which, as in {meant[0].project}/{bare}."
            )
        if type is not None and meant[0].type != type:
            raise CommError(f"artifact {meant[0].source_name!r} is of type {meant[0].type!r}, not {type!r}.")
        # Called as it was asked for, as W&B does.
        meant[0].name = f"{bare}:{alias or 'latest'}"
        return meant[0]

    def artifacts(
        self,
        type_name: str,
        name: str,
        order: str | None = None,
        per_page: int = 50,
        tags: list[str] | None = None,
        start: str | None = None,
    ) -> list[Artifact]:
        """Return the versions of an artifact, the newest first."""
        newest = self.artifact(name.partition(":")[0], type_name)
        bare = newest.source_name.partition(":")[0]
        return [
            each
            for each in reversed(self.artifacts_in(newest.project))
            if each.source_name.startswith(f"{bare}:") and set(tags or ()) <= set(each.tags)
        ]

    artifact_versions = artifacts

    def artifact_exists(self, name: str, type: str | None = None) -> bool:
        try:
            self.artifact(name, type)
        except CommError:
            return False
        return True

    def __getattr__(self, name: str) -> Any:
        if name in _THEIRS:
            return refusal(f"api.{name}", "ask W&B's own `wandb.Api()`: it is on its server")
        raise AttributeError(f"{self!r} has no attribute {name!r}")

    def __repr__(self) -> str:
        [(root,)] = self._ask("SELECT path FROM internal.root")
        return f"<Api of {len(self._runs):,} runs below {root!r}>"

    # -- for the runs ----------------------------------------------------------------------------------------------

    def known_run(self, project: str, run_id: str) -> Run | None:
        return next((run for run in self._runs.values() if (run.project, run.id) == (project, run_id)), None)

    def files_of(self, run: Run) -> list[tuple[str, int, str, str, int]]:
        """Return what a run logged as files: name, size, content, SHA-256 and time; of one name the last."""
        rows = self._ask(
            """SELECT name, size, content, sha256, epoch_us(time) FROM files
            WHERE project = $project AND run_id = $run_id AND kind = 'file' AND writer LIKE 'main-%' ORDER BY writer, seq""",
            {"project": run.project, "run_id": run.id},
        )
        return list({row[0]: row for row in rows}.values())

    def artifacts_in(self, project: str) -> list[Artifact]:
        """Return the artifacts of a project, all versions, the oldest first."""
        rows = self._ask(
            """SELECT f.run_id, f.name, f.type, f.digest, coalesce(f.size, 0), f.description, f.metadata,
                coalesce(f.aliases, []), coalesce(f.tags, []), f.step, epoch_us(f.time), r.path, f.sha256
            FROM files f JOIN internal.runs r USING (project, run_id)
            WHERE project = $project AND kind = 'artifact' ORDER BY f.time, f.writer, f.seq""",
            {"project": project},
        )
        records = [Logged(*row) for row in rows]
        of_names = versions(records).values()
        found = [Artifact(self, project, version) for of_name in of_names for version in of_name]
        return sorted(found, key=lambda artifact: str(artifact.created_at))

    # -- what is there ---------------------------------------------------------------------------------------------

    def _ask(self, query: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        with self._lock:
            execute(self._con, query, values)
            rows: list[tuple[Any, ...]] = self._con.fetchall()
        return rows

    def _known(self) -> dict[str, Run]:
        """Return the runs by their directories, of which no log was read yet."""
        return {
            run_dir: Run(self, run_dir, project, run_id, path, _entity_in(url) or entity, url, None)
            for run_dir, project, run_id, path, entity, url in self._ask(_KNOWN)
        }

    def _listed(self, project: str | None) -> dict[str, Facts | None]:
        """Return what the views say of each run; None of one that only its log tells exactly."""
        where = "" if project is None else "WHERE internal.project_of(run_dir) = $project"
        rows = self._ask(_LISTED + where, None if project is None else {"project": project})
        return {run_dir: None if is_odd else _facts(*facts) for run_dir, *facts, is_odd in rows}

    def _made(self, known: Run, facts: Facts | None) -> Run:
        return Run(self, known.run_dir, known.project, known.id, known.dir, known.owner, known.url, facts)

    def _is_of(self, run: Run, entity: str | None) -> bool:
        return entity is None or run.owner in (None, entity)

    def _project_path(self, path: str | None) -> tuple[str | None, str | None]:
        *entity, project = _parts(path) if path else [None]
        project = project or self.settings["project"]
        known = {run.project for run in self._runs.values()}
        if project is not None and project not in known:
            raise CommError(
                f"there is no project {project!r} below this root. {nearest(project, sorted(known))}"
            )
        return (entity[0] if entity else self.settings["entity"]), project

    def _find(self, path: str) -> list[Run]:
        *before, run_id = _parts(path)
        entity, project = [None, None, *before][-2:]
        found = [run for run in self._runs.values() if run.id == run_id]
        if project is not None:
            return [run for run in found if run.project == project and self._is_of(run, entity)]
        # That of the set project first; else whichever there is.
        return [run for run in found if run.project == self.settings["project"]] or found


class Runs(Iterator[Run]):
    """Runs that were asked for; as W&B's, they are their own iterator, which begins anew in each loop."""

    def __init__(self, runs: list[Run], path: str) -> None:
        self._runs = runs
        self._path = path
        self.index = -1

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> list[Run]: ...
    def __getitem__(self, index: int | slice) -> Run | list[Run]:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        self.index = -1
        return self

    def __next__(self) -> Run:
        self.index += 1
        if self.index >= len(self._runs):
            raise StopIteration
        return self._runs[self.index]

    next = __next__

    def histories(
        self,
        samples: int = 500,
        keys: list[str] | None = None,
        x_axis: str = "_step",
        format: str = "default",
        stream: str = "default",
    ) -> Any:
        """Return the sampled histories of all these runs, one after the other, with their `run_id`."""
        if format not in _FORMATS:
            raise CommError(f"there is no format {format!r}. There are: {', '.join(_FORMATS)}.")
        rows = []
        for run in self._runs:
            found = run.history(samples, keys, x_axis, pandas=False, stream=stream)
            rows += [{**row, "run_id": run.id} for row in found]
        if format == "default":
            return rows
        columns = sorted({key for row in rows for key in row})
        if format == "pandas":
            return frame(rows, columns)
        polars: Any = import_module("polars")
        filled = [{column: row.get(column) for column in columns} for row in rows]
        return polars.from_dicts(filled, infer_schema_length=None) if filled else polars.DataFrame()

    def upgrade_to_full(self) -> None:
        """Do nothing: all is here."""

    def __repr__(self) -> str:
        return f"<Runs {self._path} ({len(self._runs):,})>"


class Project:
    def __init__(self, name: str, entity: str | None) -> None:
        self.name = self.id = name
        self.entity = entity
        self.path = [entity or "", name]

    def __repr__(self) -> str:
        return f"<Project {'/'.join(filter(None, self.path))}>"


def _entity_in(url: str | None) -> str | None:
    """Return whose run it became where it was uploaded: who logged in decides, if nobody said.

    >>> _entity_in("https://wandb.ai/my%20team/demo/runs/one"), _entity_in(None)
    ('my team', None)
    """
    parts = urlsplit(url or "").path.split("/")
    return unquote(parts[-4]) if len(parts) > 4 and parts[-2] == "runs" else None


def _parts(path: str) -> list[str]:
    """Return what a path names: the last is the run, or whatever else is asked for.

    >>> _parts("ent/demo/runs/one"), _parts("/demo/one"), _parts("demo:one"), _parts("one")
    (['ent', 'demo', 'one'], ['demo', 'one'], ['demo', 'one'], ['one'])
    """
    parts = path.replace("/runs/", "/").strip("/ ").split("/")
    if len(parts) < 3 and ":" in parts[-1]:
        parts[-1:] = parts[-1].split(":", 1)
    if len(parts) > 3 or not all(part.strip() for part in parts):
        raise CommError(f"{path!r} is no path. A run is entity/project/run_id, a project is entity/project.")
    return [part.strip() for part in parts]


def _facts(
    name: str | None,
    state: str,
    tags: list[str] | None,
    group: str | None,
    job_type: str | None,
    notes: str | None,
    host: str | None,
    started_us: int | None,
    newest_us: int | None,
    config: str,
    summary: str,
    last_step: int | None,
    duration_s: float | None,
    last_us: int | None,
) -> Facts:
    came_to = dict(sorted(as_sent(orjson.loads(summary)).items())) | ages(duration_s or 0.0)
    if last_step is not None and last_us is not None:
        came_to |= {STEP: last_step, TIMESTAMP: last_us / 1e6}
    return Facts(
        name,
        state,
        tags or [],
        group,
        job_type,
        notes,
        host,
        started_us,
        newest_us,
        as_config(orjson.loads(config)),
        came_to,
        -1 if last_step is None else last_step,
    )
