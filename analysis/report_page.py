"""A report as one HTML file that needs nothing else: no network, no second file, no library.

Invariants
----------
* Whatever was logged is shown as text: see `report_markup`. The page's own style and script are the only ones that its
  policy lets run, by their checksums, and the policy lets nothing be fetched.
* What a run logged is of no length that it chose: turns, arguments and settings are cut, and say so.
* A pure function of the report and of how it was made.

What is said of the runs is `report`'s to decide.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

import orjson

from analysis.naming import Run
from analysis.plots import written_time
from analysis.report import Episode, Episodes, Facts, Report
from analysis.report_charts import Chart, colour, drawn, notes, written
from analysis.report_markup import Html, Inner, joined, raw, tag
from analysis.report_ready import Ready
from eventlog import __version__
from eventlog.record import json_of

# Of one text in a transcript, and of one value in a table.
_TEXT_CHARS, _VALUE_CHARS = 4_000, 240
# Of a trajectory, of a turn, and of what is named beside it.
_TURNS, _CALLS, _CHIPS = 40, 20, 40
_OTHERS = "others"


def page(report: Report, made: str) -> Html:
    """Return the whole file; `made` says how and when it was."""
    style, script = _own("report.css"), _own("report.js")
    title = ", ".join(each.label for each in report.runs)
    policy = (
        f"default-src 'none'; style-src '{_checksum(style)}'; script-src '{_checksum(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = [
        ("Warnings", "warnings", _warnings(report) if report.warnings else None),
        ("Summary", "summary", _summary(report)),
        ("Settings", "settings", _settings(report)),
        ("Curves", "curves", _curves(report)),
        ("Trajectories", "trajectories", _trajectories(report)),
        ("Upload", "upload", _upload(report)),
    ]
    shown = [(name, anchor, content) for name, anchor, content in parts if content is not None]
    body = joined(
        tag("header", _head(report, made), _navigation(shown)),
        tag(
            "main",
            [tag("section", tag("h2", name), content, id=anchor) for name, anchor, content in shown],
        ),
        tag("script", raw(script)),
    )
    head = joined(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", http_equiv="x-dns-prefetch-control", content="off"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} – Tidelog"),
        tag("style", raw(style)),
    )
    return joined(
        raw("<!doctype html>\n"), tag("html", tag("head", head), tag("body", body), lang="en"), raw("\n")
    )


def made_by(report: Report, keys: Sequence[str], now: datetime) -> str:
    """Return how such a report is made again, by which version, and when this one was."""
    words = ["analysis report", *(shlex.quote(each.run.full) for each in report.runs)]
    words += [f"--keys {shlex.quote(key)}" for key in keys]
    words += [f"--smooth {report.smooth:g}"] if report.smooth else []
    return f"Made by `{' '.join(words)}`, Tidelog {__version__}, on {_moment(now)}."


def _own(name: str) -> str:
    return files("analysis").joinpath(name).read_text(encoding="utf-8")


def _checksum(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# ── head ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _head(report: Report, made: str) -> Html:
    projects = list(dict.fromkeys(each.run.project for each in report.runs))
    starts = [each.started for each in report.runs if each.started]
    ends = [each.last_time for each in report.runs if each.last_time]
    said = [f"{len(report.runs)} runs" if len(report.runs) > 1 else "1 run"]
    if starts and ends:
        said.append(_span(min(starts), max(ends)))
    title = ", ".join(each.label for each in report.runs) if len(report.runs) <= 3 else said.pop(0)
    return joined(
        tag("p", " · ".join(projects), class_="project"),
        tag("h1", title),
        tag("p", " · ".join(said), class_="quiet"),
        tag("div", [_run(each) for each in report.runs], class_="runs"),
        tag("p", made, class_="made quiet"),
    )


def _run(each: Facts) -> Html:
    counts = [
        written_time(each.duration_s) if each.duration_s else None,
        None if each.last_step is None else f"step {each.last_step:,}",
        _counted(each.records, "record"),
        _counted(each.trajectories, "trajectory") if each.trajectories else None,
        _counted(each.pieces, "piece") if each.pieces > 1 else None,
    ]
    return tag(
        "div",
        tag("div", _swatch(each.colour), tag("b", each.label), _state(each.state), class_="called"),
        tag("div", each.name) if each.name and each.name != each.label else None,
        tag("div", " · ".join(count for count in counts if count), class_="quiet"),
        tag("div", _moment(each.started), class_="quiet") if each.started else None,
        tag("div", [tag("span", each_tag, class_="chip") for each_tag in each.tags]) if each.tags else None,
        tag("div", _cut(each.notes, _VALUE_CHARS), class_="said") if each.notes else None,
        class_="card run",
    )


def _state(state: str) -> Html:
    return tag("span", state, class_=f"state {state}")


def _swatch(number: int) -> Html:
    return tag("i", class_=f"swatch {colour(number)}")


def _navigation(shown: Sequence[tuple[str, str, Html]]) -> Html:
    return tag("nav", [tag("a", name, href=f"#{anchor}") for name, anchor, _ in shown])


def _warnings(report: Report) -> Html:
    return tag(
        "ul",
        [
            tag(
                "li",
                tag("span", each.level, class_=f"state {'failed' if each.level == 'ERROR' else 'stale'}"),
                tag(
                    "div",
                    tag("b", _cut(each.title, _VALUE_CHARS)),
                    tag("span", f" {_cut(each.text, _TEXT_CHARS)}", class_="said") if each.text else None,
                    tag(
                        "div",
                        " · ".join(
                            part
                            for part in (
                                each.label,
                                None if each.step is None else f"step {each.step:,}",
                                _moment(each.time) if each.time else None,
                            )
                            if part
                        ),
                        class_="quiet",
                    ),
                ),
            )
            for each in report.warnings
        ],
        class_="card warnings",
    )


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────


def _summary(report: Report) -> Html:
    metrics = report.comparison.metrics
    if not metrics:
        return _nothing("No metric was logged.")
    rows: list[Html] = []
    runs = [each.run for each in report.runs]
    for section, keys in _sections(metrics):
        rows.append(tag("tr", tag("th", section, colspan=len(runs) + 1, scope="colgroup"), class_="part"))
        for key in keys:
            best = _best(report, key)
            rows.append(
                tag(
                    "tr",
                    tag("th", _key(key, report.directions.get(key, 0)), scope="row"),
                    [
                        tag(
                            "td",
                            _last(report, key, run),
                            class_="best" if run in best else None,
                            title="the best" if run in best else None,
                        )
                        for run in runs
                    ],
                )
            )
    explained = "Last values, as W&B's summary has them; below them the best of the run, where the metric says which way is good."
    return joined(_table(report, rows), tag("p", explained, class_="note"))


def _key(key: str, which: int) -> Html:
    sign = {1: " ↑", -1: " ↓"}.get(which)
    title = {1: "more is better", -1: "less is better"}.get(which)
    return joined(key, tag("span", sign, class_="quiet", title=title) if sign else None)


def _last(report: Report, key: str, run: Run) -> Inner:
    values = report.comparison.metrics[key]
    if run not in values:
        return tag("span", "–", class_="quiet")
    value = values[run]
    shown = _value(value)
    extreme = report.extremes.get((key, run))
    if extreme is None or extreme[0] == value:
        return shown
    return joined(shown, tag("div", f"best {written(extreme[0])} at {extreme[1]:,}", class_="quiet"))


def _best(report: Report, key: str) -> set[Run]:
    """Return the runs with the best last value, where one is better than another."""
    which = report.directions.get(key)
    numbers = {
        run: value
        for run, value in report.comparison.metrics[key].items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    if not which or len(set(numbers.values())) < 2:
        return set()
    best = (max if which > 0 else min)(numbers.values())
    return {run for run, value in numbers.items() if value == best}


def _settings(report: Report) -> Html:
    config = report.comparison.config
    if not config:
        return _nothing("Nothing was configured.")
    differing = report.comparison.differing if len(report.runs) > 1 else list(config)
    same = {key: values for key, values in config.items() if key not in set(differing)}
    shown: list[Inner] = []
    if differing:
        shown.append(_settings_table(report, differing))
    if same:
        what = "1 setting is" if len(same) == 1 else f"{len(same)} settings are"
        shown.append(
            tag(
                "details",
                tag("summary", f"{what} the same"),
                _settings_table(report, list(same), is_same=True),
                open=not differing and len(same) <= 12,
            )
        )
    return joined(shown)


def _settings_table(report: Report, keys: list[str], is_same: bool = False) -> Html:
    config = report.comparison.config
    runs = [each.run for each in report.runs]
    shown = runs[:1] if is_same else runs
    rows = [
        tag(
            "tr",
            tag("th", key, scope="row"),
            [
                tag(
                    "td", _value(config[key][run]) if run in config[key] else tag("span", "–", class_="quiet")
                )
                for run in shown
            ],
        )
        for key in keys
    ]
    return _table(report, rows, with_head=not is_same)


def _table(report: Report, rows: list[Html], with_head: bool = True) -> Html:
    head = tag(
        "tr",
        tag("td"),
        [tag("th", _swatch(each.colour), each.label, scope="col") for each in report.runs],
    )
    # A value far from its key is hard to read.
    is_narrow = len(report.runs) == 1 or not with_head
    return tag(
        "div",
        tag("table", tag("thead", head) if with_head else None, tag("tbody", rows)),
        class_="card wide narrow" if is_narrow else "card wide",
    )


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _cut(value if isinstance(value, str) else json_of(value), _VALUE_CHARS)
    return written(value)


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────


def _curves(report: Report) -> Html:
    if not report.charts.drawn and not report.ready:
        return joined(_nothing("There is no metric with two values or more to draw."), _not_drawn(report))
    legend = [
        tag(
            "button",
            _swatch(number),
            each.label,
            type="button",
            data_of=number,
            aria_pressed="true",
            title=", ".join(run.full for run in each.runs) if len(each.runs) > 1 else None,
        )
        for number, each in enumerate(report.drawn)
    ]
    sections = _sections([chart.title for chart in report.charts.drawn])
    charts = {chart.title: chart for chart in report.charts.drawn}
    return joined(
        _about_curves(report),
        tag("div", legend, class_="legend"),
        [_ready(each) for each in report.ready],
        [
            tag(
                "details",
                tag("summary", section, tag("span", f" {len(keys)}", class_="quiet")),
                tag("div", [_chart(charts[key], report) for key in keys], class_="charts"),
                open=True,
            )
            for section, keys in sections
        ],
        _not_drawn(report),
    )


def _about_curves(report: Report) -> Html | None:
    said = []
    if any(len(each.runs) > 1 for each in report.drawn):
        said.append(
            "Runs that differ in nothing but their seed are drawn as their mean, with its 95 % interval (Student's t) as a band."
        )
    if report.smooth:
        said.append(
            f"Smoothed by an exponential average of weight {report.smooth:g}; what was logged is drawn faintly."
        )
    return tag("p", " ".join(said), class_="note") if said else None


def _not_drawn(report: Report) -> list[Html]:
    """Return what is said of the metrics that have no chart."""
    said = []
    for keys, one, several in (
        (
            report.charts.single,
            "1 metric has one value, and no chart",
            "metrics have one value each, and no chart",
        ),
        (report.charts.placeless, "1 metric is never a finite number", "metrics are never a finite number"),
    ):
        if keys:
            what = one if len(keys) == 1 else f"{len(keys)} {several}"
            said.append(tag("p", f"{what}: {', '.join(keys)}.", class_="note"))
    return said


def _ready(ready: Ready) -> Html:
    return tag(
        "details",
        tag("summary", ready.title),
        tag("div", [joined(_chart(chart), _beside(chart)) for chart in ready.charts], class_="charts"),
        open=True,
    )


def _chart(chart: Chart, report: Report | None = None) -> Html:
    styles = {line.style: line.label for line in chart.lines if line.label}
    told: list[Inner] = [
        tag("span", tag("i", class_=f"sample {style}"), label)
        for style, label in styles.items()
        if len(styles) > 1
    ]
    if report is not None:
        told = [
            tag(
                "span",
                _swatch(line.of),
                written(line.values[-1]),
                data_of=line.of,
                title=report.drawn[line.of].label,
            )
            for line in chart.lines
        ]
    return tag(
        "figure",
        tag("figcaption", tag("b", chart.title), tag("span", told, class_="lasts") if told else None),
        drawn(chart),
        [tag("p", said, class_="note") for said in notes(chart)],
        class_="card",
    )


def _beside(chart: Chart) -> Html | None:
    if chart.table is None:
        return None
    names, rows = chart.table
    return tag(
        "figure",
        tag("figcaption", tag("b", f"{chart.title}: the best steps")),
        _rows(names, [[_value(cell) for cell in row] for row in rows]),
        class_="card",
    )


def _rows(names: Sequence[str], rows: Sequence[Sequence[Inner]]) -> Html:
    return tag(
        "table",
        tag("thead", tag("tr", [tag("th", name, scope="col") for name in names])),
        tag("tbody", [tag("tr", [tag("td", cell) for cell in row]) for row in rows]),
    )


# ── trajectories ─────────────────────────────────────────────────────────────────────────────────────────────


def _trajectories(report: Report) -> Html:
    if not any(each.of.trajectories for each in report.trajectories):
        return _nothing("No trajectory was logged.")
    return joined([_of_run(each) for each in report.trajectories if each.of.trajectories])


def _of_run(episodes: Episodes) -> Html:
    of = episodes.of
    counts = _counted(of.trajectories, "trajectory")
    if not episodes.rewarded:
        said = f"{counts}, none of which has a reward."
    elif not episodes.shown:
        said = f"{counts}."
    else:
        said = f"{counts}, {episodes.rewarded:,} with a reward; the best and the worst of them."
    best = [each for each in episodes.shown if each.is_best]
    worst = [each for each in episodes.shown if not each.is_best]
    return joined(
        tag("h3", _swatch(of.colour), of.label),
        tag("p", said, class_="note"),
        [
            joined(tag("h4", name), [_episode(each, is_open=n == 0) for n, each in enumerate(group)])
            for name, group in (("Best", best), ("Worst", worst))
            if group
        ],
    )


def _episode(episode: Episode, is_open: bool) -> Html:
    data = episode.data
    info = _loaded(data["info"])
    split = info.get("split")
    turns = data["turns"] or []
    tokens = data["completion_tokens"]
    facts = [
        None if episode.step is None else f"step {episode.step:,}",
        _cut(split, _VALUE_CHARS) if isinstance(split, str) else None,
        _counted(len(turns), "turn"),
        None if tokens is None else f"{tokens:,} tokens",
        None if data["advantage"] is None else f"advantage {written(data['advantage'])}",
        None if data["stop_reason"] is None else f"stopped: {_cut(data['stop_reason'], _VALUE_CHARS)}",
    ]
    is_cut = len(turns) > _TURNS
    half = _TURNS // 2
    shown = turns[:half] + turns[-half:] if is_cut else turns
    transcript: list[Inner] = [_turn(turn) for turn in shown]
    if is_cut:
        transcript.insert(
            half,
            tag("p", f"{_counted(len(turns) - _TURNS, 'turn')} between them are left out.", class_="note"),
        )
    return tag(
        "details",
        tag(
            "summary",
            tag("span", written(data["reward"]), class_="reward"),
            tag("span", " · ".join(fact for fact in facts if fact)),
            tag("span", "failed", class_="state failed") if data["exception"] else None,
        ),
        tag(
            "div",
            _named("reward", data["rewards"]),
            _named("", data["metrics"]),
            _about(data, info),
            class_="facts",
        ),
        tag("pre", _cut(data["exception"], _TEXT_CHARS), class_="error") if data["exception"] else None,
        tag("div", transcript, class_="chat"),
        class_="card episode",
        open=is_open,
    )


def _named(what: str, text: str | None) -> list[Html]:
    prefix = f"{what} " if what else ""
    return _chips([(prefix + name, _value(value)) for name, value in _loaded(text).items()], "chip")


def _chips(pairs: list[tuple[str, str]], kind: str) -> list[Html]:
    return [
        tag("span", _cut(name, _VALUE_CHARS), " ", tag("b", value), class_=kind)
        for name, value in pairs[:_CHIPS]
    ]


def _loaded(text: str | None) -> dict[str, Any]:
    """Return the object that a column has as JSON; what is no object has nothing to show by name."""
    found = orjson.loads(text or "{}")
    return found if isinstance(found, dict) else {}


def _about(data: dict[str, Any], info: dict[str, Any]) -> list[Html]:
    known = {
        "id": data["id"],
        "group": data["group"],
        "prompt tokens": data["prompt_tokens"],
        "policy version": data["policy_version"],
        "duration": None if data["duration_s"] is None else written_time(data["duration_s"]),
    }
    pairs = [(name, _value(value)) for name, value in [*known.items(), *info.items()] if value is not None]
    return _chips(pairs, "chip quiet")


def _turn(turn: dict[str, Any]) -> Html:
    role = turn["role"] or "?"
    tokens, duration = turn["completion_tokens"], turn["duration_s"]
    calls = turn["tool_calls"] or []
    about = [
        None if tokens is None else f"{tokens:,} tokens",
        None if duration is None else written_time(duration),
    ]
    known = role if role in ("system", "user", "assistant", "tool") else "other"
    return tag(
        "div",
        tag(
            "div",
            tag("b", role),
            tag("span", " · ".join(each for each in about if each), class_="quiet"),
            class_="role",
        ),
        tag("div", _cut(turn["content"], _TEXT_CHARS), class_="said") if turn["content"] else None,
        [_call(call) for call in calls[:_CALLS]],
        tag("p", f"And {_counted(len(calls) - _CALLS, 'call')} more.", class_="note")
        if len(calls) > _CALLS
        else None,
        class_=f"turn {known}",
    )


def _call(call: dict[str, Any]) -> Html:
    arguments, result, error = call["arguments"], call["result"], call["error"]
    return tag(
        "div",
        tag("div", "calls ", tag("b", call["name"] or "?"), class_="quiet"),
        tag("pre", _cut(_pretty(arguments), _TEXT_CHARS)) if arguments is not None else None,
        tag("pre", _cut(result, _TEXT_CHARS), class_="result") if result is not None else None,
        tag("pre", _cut(error, _TEXT_CHARS), class_="error") if error is not None else None,
        class_="call",
    )


def _pretty(text: str) -> str:
    """
    >>> _pretty('{"a":1}'), _pretty('"plain"')
    ('{"a": 1}', 'plain')
    """
    value = orjson.loads(text)
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        short = ", ".join(f"{json_of(name)}: {json_of(inner)}" for name, inner in value.items())
        if len(short) < 80:
            return f"{{{short}}}"
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


# ── upload ───────────────────────────────────────────────────────────────────────────────────────────────────


def _upload(report: Report) -> Html:
    if not report.sync:
        return _nothing(
            "No destination has been agreed with yet: `syncd start` uploads, and nothing here needs it."
        )
    names = ["run", "where to", "state", "acknowledged", "backlog", "not shown there", "error"]
    rows: list[list[Inner]] = []
    for each in report.sync:
        reasons: dict[str, int] = each["not_shown"]
        rows.append(
            [
                each["label"],
                _where(each["url"], each["base_url"]),
                each["state"],
                f"{each['acked']:,} of {each['records']:,} records",
                f"{each['backlog']:,}",
                [tag("div", f"{count:,}: {reason}") for reason, count in reasons.items()] or "–",
                _cut(each["error"], _VALUE_CHARS) if each["error"] else "–",
            ]
        )
    return tag("div", _rows(names, rows), class_="card wide text")


def _where(url: str | None, base_url: str | None) -> Inner:
    # Only such a link is one: `javascript:` runs.
    if url and url.startswith(("https://", "http://")):
        return tag("a", url, href=url, rel="noreferrer noopener")
    return url or base_url or "–"


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────


def _sections(keys: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return the keys by what is before their first `/`; those without one come last.

    >>> _sections(["loss", "train/b", "eval/x", "train/a/b"])
    [('eval', ['eval/x']), ('train', ['train/b', 'train/a/b']), ('others', ['loss'])]
    """
    found: dict[str, list[str]] = {}
    for key in keys:
        before, slash, _ = key.partition("/")
        found.setdefault(before if slash and before else "", []).append(key)
    alone = found.pop("", None)
    return [*sorted(found.items()), *([(_OTHERS, alone)] if alone else [])]


def _cut(text: str | None, chars: int) -> str:
    """
    >>> _cut("a" * 20, 5), _cut("short", 5), _cut(None, 5)
    ('aaaaa … and 15 more characters', 'short', '')
    """
    said = text or ""
    return said if len(said) <= chars else f"{said[:chars]} … and {len(said) - chars:,} more characters"


def _counted(count: int, what: str) -> str:
    """
    >>> _counted(1, "turn"), _counted(2000, "trajectory")
    ('1 turn', '2,000 trajectories')
    """
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"


def _moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z").rstrip()


def _span(start: datetime, end: datetime) -> str:
    until = end.strftime("%H:%M %Z" if start.date() == end.date() else "%Y-%m-%d %H:%M %Z").rstrip()
    return f"{start.strftime('%Y-%m-%d %H:%M')} – {until} · {written_time((end - start).total_seconds())}"


def _nothing(sentence: str) -> Html:
    return tag("p", sentence, class_="nothing quiet")
