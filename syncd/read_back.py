"""Reads a run back from W&B, through `wandb.Api()` in a process of its own.

    ReadBack ──a question a line──▶ python -m syncd.read_back (wandb.Api) ──▶ W&B
             ◀──answers, up to an empty line──┘

Invariants
----------
* The SDK lives in the other process: what it prints, leaks or leaves behind is not ours, and ends with it.
* Nothing is changed on W&B, and nothing is left on this disk.
* The key is in that process's environment, and in no argument, file or message.
* Whatever goes wrong is one error, `CannotRead`.

Values come back a little other than they went: a null may be left out, a nested value may stand under a dotted key,
and NaN as the text "NaN".  `changes_between` knows it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from eventlog.child import command, environment

# A black hole must end.
API_TIMEOUT_S = 60
# What the process that has answered may take to end.
LEAVE_S = 5.0
# W&B's API gives this many rows, or files, at once.
PAGE_ROWS = 1000
# So much of a value is shown.
VALUE_MAX_CHARS = 60
ABSENT = "(absent)"
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class CannotRead(Exception):
    """The server could not be asked, or its answer not be read."""


# -- the process that asks --------------------------------------------------------------------------------------


class ReadBack:
    """`wandb.Api()` in another process: a question a line, and its answers up to an empty line."""

    def __init__(self, process: subprocess.Popen[str], key: str) -> None:
        self._process = process
        self._key = key

    def description(self) -> dict[str, Any] | None:
        """Return the run's config, summary, state and number of history lines; None if there is no such run."""
        found = list(self._ask({"ask": "run"}))
        return found[0] if found else None

    def rows(self, from_step: int, to_step: int | None) -> Iterator[dict[str, Any]]:
        """Yield the rows of these steps; without `to_step`, of all from there on."""
        return self._ask({"ask": "rows", "from": from_step, "to": to_step})

    def files(self) -> Iterator[dict[str, Any]]:
        return self._ask({"ask": "files"})

    def _ask(self, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        questions.write(json.dumps(question) + "\n")
        questions.flush()
        for line in answers:
            if line == "\n":
                return
            answer = json.loads(line)
            if "error" in answer:
                raise CannotRead(
                    f"W&B could not be read: {answer['error'].replace(self._key, '…')}. Nothing is known to be wrong. "
                    "If it is about the key, `wandb login` sets one."
                )
            yield answer["value"]
        raise CannotRead(
            "the process that reads from W&B ended early. Nothing is known to be wrong; try again."
        )


@contextmanager
def read_back(base_url: str, key: str, run: str) -> Iterator[ReadBack]:
    """`run` is `entity/project/run_id`."""
    # A helper of wandb's may outlive its parent for a moment, and write: that is no reason to fail.
    with tempfile.TemporaryDirectory(prefix="syncd-read-back-", ignore_cleanup_errors=True) as directory:
        theirs = {name: value for name, value in environment().items() if not name.startswith("WANDB_")}
        # Whatever wandb writes, a cache of old history included, is in the directory; it reports to nobody.
        ours = {f"WANDB_{name}_DIR": directory for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
        ours |= {"WANDB_DIR": directory, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
        ours |= {"WANDB_BASE_URL": base_url, "WANDB_API_KEY": key}
        process = subprocess.Popen(
            command("syncd.read_back", run, str(API_TIMEOUT_S)),
            env=theirs | ours,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield ReadBack(process, key)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            # It has answered, and keeps nothing; wandb's own leave-taking may hang when its helper does.
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answer() -> None:
    """Be the process that reads: questions on stdin, answers on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    # What wandb prints must not land among the answers.
    os.dup2(2, 1)
    try:
        for found in _answers(sys.argv[1], int(sys.argv[2]), map(json.loads, sys.stdin)):
            print("" if found is None else json.dumps({"value": found}), file=answers, flush=found is None)
    except Exception as error:  # noqa: BLE001 - the top of a process; whatever it is, the other process says it
        print(json.dumps({"error": " ".join(str(error).split()) or repr(error)}), file=answers, flush=True)


def _answers(
    path: str, timeout_s: int, questions: Iterator[dict[str, Any]]
) -> Iterator[dict[str, Any] | None]:
    """Yield what is asked for; None ends an answer."""
    import wandb

    api = wandb.Api(timeout=timeout_s)
    run: Any = None
    for question in questions:
        if question["ask"] == "run":
            try:
                run = api.run(path)
            except (ValueError, wandb.errors.CommError) as error:
                if "Could not find run" not in str(error):
                    raise
            else:
                yield {
                    "config": run.rawconfig,
                    "summary": run.summary_metrics,
                    "state": run.state,
                    "lines": getattr(run, "historyLineCount", None),
                }
        elif question["ask"] == "rows":
            first, stop = question["from"], question["to"]
            if stop is None:
                stop = run.lastHistoryStep + 1
            # A page is so many steps: a window of ours is one; what lies behind the log may be far apart.
            page = max(PAGE_ROWS, (stop - first) // 100) if question["to"] is None else stop - first
            if first < stop:
                yield from run.scan_history(min_step=first, max_step=stop, page_size=page)
        else:
            for file in run.files(per_page=PAGE_ROWS):
                yield {"name": file.name, "size": file.size, "md5": file.md5}
        yield None


# -- values -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A value that is not the same: the log's and W&B's.  `ABSENT` stands for none."""

    key: str
    here: Any
    there: Any

    def __str__(self) -> str:
        return f"{self.key} is {_short(self.here)} here and {_short(self.there)} there"


def changes_between(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Change]:
    """Return the values that are not the same, by dotted key.

    >>> changes_between({"a": {"b": 1, "c": 2}, "n": float("nan")}, {"a": {"b": 1.0}, "a.c": 3, "n": "NaN"})
    [Change(key='a.c', here=2, there=3)]
    """
    if _same_tree(here, there):
        # Also where a dotted key and a nested one have the same name.
        return []
    mine, theirs = dict(_leaves(here)), dict(_leaves(there))
    return [
        Change(key, mine.get(key, ABSENT), theirs.get(key, ABSENT))
        for key in {**mine, **theirs}
        if key not in mine or key not in theirs or not _same(mine[key], theirs[key])
    ]


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        elif value is not None:
            yield above + key, value


def _same_tree(here: Any, there: Any) -> bool:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        return here.keys() == there.keys() and all(_same_tree(here[key], there[key]) for key in here)
    return _same(here, there)


def _same(here: Any, there: Any) -> bool:
    if isinstance(here, float) and not math.isfinite(here):
        there = _NON_FINITE.get(there, there) if isinstance(there, str) else there
        return isinstance(there, float) and (here == there or (math.isnan(here) and math.isnan(there)))
    if isinstance(here, list) and isinstance(there, list):
        return len(here) == len(there) and all(map(_same, here, there))
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        return not changes_between(here, there)
    if isinstance(here, bool) or isinstance(there, bool):
        return here is there
    if isinstance(here, float) and isinstance(there, int):
        return here == float(there)
    if isinstance(here, int) and isinstance(there, float):
        # A column of floats holds an integer as its nearest float.
        return float(here) == there
    return bool(here == there)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value != ABSENT else ABSENT
    return text if len(text) <= VALUE_MAX_CHARS else text[:VALUE_MAX_CHARS] + "…"


if __name__ == "__main__":
    answer()
