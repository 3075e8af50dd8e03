"""`analysis report`: what the one HTML file says, and what it never does: run what was logged, or ask the network."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import stat
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import analysis
import eventlog
from analysis.cli import main
from analysis.naming import find_runs
from analysis.report import Report, read_report
from eventlog import cursor as cursors
from eventlog.cursor import Cursor, Sink
from eventlog.trajectory import ToolCall, Trajectory, Turn
from tests.browser import Browser, needs_chromium
from tests.logs import TIME_US, handmade_run

HOSTILE = "</script></style><script>document.title='owned'</script><img src=http://evil.test/a onerror=\"document.title='owned'\">"


class Seen(HTMLParser):
    """What a page is made of: its tags, its text, and the text of each part."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: dict[str, str] = {"": ""}
        self._part = ""
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._part = dict(attrs)["id"] or ""
            self.parts[self._part] = ""
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()
        elif tag in ("td", "th", "tr", "p", "li", "div", "summary"):
            self.parts[self._part] += "\n"

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.parts[self._part] += data

    def rows(self, part: str) -> list[list[str]]:
        """The rows of the tables of a part, cells without their blanks."""
        found = re.split(r"\n\n+", self.parts[part])
        return [[cell.strip() for cell in row.split("\n") if cell.strip()] for row in found]


def call(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["report", *arguments, "--root", str(root)], catch_exceptions=False)


def page_of(root: Path, *arguments: str) -> str:
    result = call(root, *arguments, "-o", "-")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def seen(root: Path, *arguments: str) -> Seen:
    return Seen(page_of(root, *arguments))


def read(root: Path, *runs: str, **options: Any) -> Report:
    con = analysis.connect(root)
    return read_report(con, find_runs(con, runs), **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for run_id, lr, seed in (("s1", 1e-6, 1), ("s2", 1e-6, 2), ("s3", 1e-6, 3), ("hot", 3e-6, 1)):
        config = {"lr": lr, "seed": seed, "model": "Qwen", "optimizer": {"name": "adamw"}}
        with eventlog.init(
            project="demo", id=run_id, config=config, tags=["grpo"], root=root, quiet=True
        ) as run:
            for step in range(30):
                reward = step * lr * 1e5 + math.sin(seed * 7 + step)
                run.log({"train/reward": reward, "train/loss": seed / (step + 1), "train/lr": lr}, step=step)
            run.log({"final/total_steps": 30, "größe": 1.5, "note": "the end"}, step=30)
    return root


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_parts_come_in_the_order_in_which_they_are_read(root: Path) -> None:
    page = seen(root, "s1", "hot")

    assert [name for name in page.parts if name] == [
        "summary",
        "settings",
        "curves",
        "trajectories",
        "upload",
    ]
    assert "s1, hot" in page.parts[""]
    assert "demo" in page.parts[""]
    assert page.parts[""].count("finished") == 2
    assert "Made by `analysis report demo/s1 demo/hot`, Tidelog" in page.parts[""]


def test_nothing_in_the_file_leads_out_of_it(root: Path) -> None:
    text = page_of(root, "s1", "hot")
    page = Seen(text)

    names = {name for name, _ in page.tags}
    assert names.isdisjoint({"link", "img", "iframe", "object", "base", "form", "video", "audio"})
    attributes = [(name, value) for _, attrs in page.tags for name, value in attrs.items()]
    assert {value for name, value in attributes if name == "href"} == {
        f"#{part}" for part in page.parts if part
    }
    assert not [
        pair for pair in attributes if pair[0] in ("src", "style", "srcset") or pair[0].startswith("on")
    ]
    assert "url(" not in text
    assert "@import" not in text


def test_the_policy_allows_the_page_its_own_style_and_script_and_nothing_else(root: Path) -> None:
    text = page_of(root, "s1")

    policies = [
        attrs["content"]
        for name, attrs in Seen(text).tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    checksums = {
        name: base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        for name, inner in re.findall(r"<(style|script)>(.*?)</\1>", text, re.DOTALL)
    }
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{checksums['style']}'; script-src 'sha256-{checksums['script']}'; "
        "base-uri 'none'; form-action 'none'"
    ]


def test_a_file_is_replaced_whole_and_a_failed_report_leaves_it(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("before")

    unknown = call(root, "s1", "-o", str(file), "--keys", "nothing")
    kept = file.read_text()
    made = call(root, "s1", "-o", str(file))

    assert (unknown.exit_code, kept) == (2, "before")
    assert "demo/s1 logged no metric 'nothing'" in unknown.stderr
    assert (made.exit_code, made.output) == (0, "")
    assert file.read_text().startswith("<!doctype html>")
    assert file.read_text().endswith("</html>\n")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_without_a_name_it_is_report_html_here(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    call(root, "s1")

    assert stat.S_ISREG((tmp_path / "report.html").stat().st_mode)


def test_an_unknown_run_names_the_nearest(root: Path, tmp_path: Path) -> None:
    result = call(root, "s1", "hott", "-o", str(tmp_path / "x.html"))

    assert result.exit_code == 2
    assert "there is no run 'hott'. The nearest: hot" in result.stderr
    assert list(tmp_path.iterdir()) == []


# ── warnings ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_warnings_are_what_went_wrong_and_nothing_else(tmp_path: Path) -> None:
    run = handmade_run(tmp_path, "bad")
    run.log(step=0, x=0.5)
    run.log("alert", level="ERROR", title="collapsed", text="the reward is gone", wait_s=0)
    run.log("alert", level="INFO", title="for your information", text="", wait_s=0)
    run.log("gap", dropped=3, reason="No space left on device")
    run.log(step=1, x=1.5)
    run.segment.write_bytes(run.segment.read_bytes().replace(b'"x":0.5', b'"x:0.5}'))
    run.die()

    result = call(tmp_path, "bad", "-o", "-")

    said = Seen(result.stdout).parts["warnings"]
    assert "The run crashed." in said
    assert "collapsed the reward is gone" in said
    assert "3 records were dropped: No space left on device." in said
    assert "1 damaged record is left out. `eventlog verify demo/bad` says where." in said
    assert "for your information" not in said


def test_a_damaged_trajectory_is_a_warning_too(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="hurt", root=tmp_path, quiet=True) as run:
        for step in range(3):
            run.log_trajectory(Trajectory([Turn("user", f"task {step}")], reward=step), step=step)
    (segment,) = (tmp_path / "demo" / "hurt" / "main-0001").glob("trajectories-*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'"task 1"', b'"task 1'))

    page = seen(tmp_path, "hurt")

    assert "1 damaged record is left out." in page.parts["warnings"]


def test_of_very_many_alerts_there_are_the_newest_and_how_many_more(tmp_path: Path) -> None:
    run = handmade_run(tmp_path, "loud")
    for number in range(25):
        run.log("alert", level="WARN", title=f"alert number {number:02}", text="", wait_s=0)

    said = seen(tmp_path, "loud").parts["warnings"]

    assert said.count("alert number") == 20
    assert "alert number 24" in said
    assert "alert number 04" not in said
    assert "And 5 older alerts." in said


# ── summary and settings ─────────────────────────────────────────────────────────────────────────────────────


def test_the_best_is_marked_where_a_metric_says_which_way_is_good(tmp_path: Path) -> None:
    for run_id, value in (("low", 0.25), ("high", 0.75)):
        with eventlog.init(project="demo", id=run_id, root=tmp_path, quiet=True) as run:
            run.define_metric("mine/turns", goal="maximize")
            run.define_metric("mine/size*", summary="min")
            run.log({"eval/reward": value, "train/loss": value + 1, "train/lr": value + 2})
            run.log({"mine/turns": value + 3, "mine/sizes": value + 4})

    text = page_of(tmp_path, "low", "high")

    assert re.findall(r'<td class="best" title="the best">([^<]*)', text) == ["0.75", "4.25", "3.75", "1.25"]


def test_below_a_last_value_is_the_best_of_the_run_where_that_is_another(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="a", root=tmp_path, quiet=True) as run:
        for step, (reward, loss) in enumerate([(0.5, 3.0), (2.5, 2.0), (1.5, 1.0)]):
            run.log({"reward": reward, "loss": loss, "x": reward}, step=step)

    rows = seen(tmp_path, "a").rows("summary")

    assert ["reward ↑", "1.5best 2.5 at 1"] in rows
    assert ["loss ↓", "1"] in rows
    assert ["x", "1.5"] in rows


def test_settings_that_differ_are_shown_and_those_that_are_the_same_are_folded_away(root: Path) -> None:
    page = seen(root, "s1", "hot")

    shown, folded = page.parts["settings"].split("3 settings are the same")
    assert re.findall("lr\n1e-06\n3e-06\n", shown) != []
    assert "seed" not in shown
    assert folded.split() == ["model", "Qwen", "optimizer.name", "adamw", "seed", "1"]
    details = [attrs for name, attrs in page.tags if name == "details"]
    assert "open" not in details[0]


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_that_differ_in_their_seed_alone_are_drawn_as_seeds_ci_has_them(root: Path) -> None:
    report = read(root, "s1", "s2", "s3", "hot")

    rows = (
        analysis.connect(root)
        .execute("SELECT step, mean, low, high FROM seeds_ci('train/reward') WHERE n = 3 ORDER BY step")
        .fetchall()
    )
    (chart,) = [chart for chart in report.charts.drawn if chart.title == "train/reward"]
    band, alone = chart.lines
    assert band.band is not None
    assert list(zip(band.steps, band.values, *band.band, strict=True)) == [pytest.approx(row) for row in rows]
    assert alone.band is None
    assert [each.label for each in report.drawn] == ["lr=1e-06 · 3 seeds", "hot"]


def test_two_runs_of_one_seed_or_of_none_stay_two_lines(tmp_path: Path) -> None:
    for run_id, config in (("a", {"seed": 1}), ("b", {"seed": 1}), ("c", {}), ("d", {})):
        with eventlog.init(project="demo", id=run_id, config=config, root=tmp_path, quiet=True) as run:
            run.log({"x": 1}, step=0)
            run.log({"x": 2}, step=1)

    report = read(tmp_path, "a", "b", "c", "d")

    assert [each.label for each in report.drawn] == ["a", "b", "c", "d"]
    assert [len(chart.lines) for chart in report.charts.drawn] == [4]


def test_smoothing_is_that_of_the_macro_ema(root: Path) -> None:
    report = read(root, "s1", smooth=0.9)

    rows = analysis.connect(root).execute("SELECT value, ema FROM ema('s1', 'train/reward', 0.9)").fetchall()
    (line,) = next(chart.lines for chart in report.charts.drawn if chart.title == "train/reward")
    assert line.behind is not None
    assert [*line.behind[1]] == [value for value, _ in rows]
    assert line.values == pytest.approx([ema for _, ema in rows])


def test_only_the_keys_that_are_asked_for_are_drawn_by_sections(root: Path) -> None:
    everything = seen(root, "s1").parts["curves"]
    asked = seen(root, "s1", "--keys", "train/l*").parts["curves"]

    assert "train 3" in everything
    assert "2 metrics have one value each, and no chart: final/total_steps, größe." in everything
    assert "train 2" in asked
    assert "train/reward" not in asked


def test_a_curve_of_a_hundred_thousand_points_is_small_and_has_its_spike(tmp_path: Path) -> None:
    run = handmade_run(tmp_path, "long")
    for step in range(100_000):
        run.lines.clear()
        run.log(step=step, x=1e6 if step == 54_321 else step / 7, y=float("nan"))

    text = page_of(tmp_path, "long")

    assert len(text) < 100_000
    assert ",1e+06," in text
    assert "1 metric is never a finite number: y." in text


def test_values_without_a_place_are_counted_below_the_chart(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="a", root=tmp_path, quiet=True) as run:
        for step, value in enumerate([1.0, math.nan, math.inf, 2.0]):
            run.log({"x": value}, step=step)

    assert "2 values are NaN or infinite" in seen(tmp_path, "a").parts["curves"]


def test_a_run_that_logged_nothing_says_so(tmp_path: Path) -> None:
    eventlog.init(project="demo", id="empty", root=tmp_path, quiet=True).finish()

    page = seen(tmp_path, "empty")

    assert "No metric was logged." in page.parts["summary"]
    assert "Nothing was configured." in page.parts["settings"]
    assert "There is no metric with two values or more to draw." in page.parts["curves"]
    assert "No trajectory was logged." in page.parts["trajectories"]
    assert "No destination has been agreed with yet" in page.parts["upload"]


# ── charts that are ready ────────────────────────────────────────────────────────────────────────────────────


def mixture(root: Path, run_id: str, math: float = 40.0, **config: Any) -> None:
    with eventlog.init(project="demo", id=run_id, config=config, root=root, quiet=True) as run:
        for step in range(4):
            run.log(
                {
                    "dataset/gsm8k/accuracy": 80.0,
                    "dataset/math/accuracy": math + step,
                    "judge/success_rate": 0.9 - step / 10,
                    "cost/avg_cost_per_sample": 0.01,
                    "train/accuracy": [0.0, 50.0, 80.0, 40.0][step],
                },
                step=step,
            )


def test_the_mixture_charts_say_what_the_commands_say(tmp_path: Path) -> None:
    mixture(tmp_path, "mix")

    said = seen(tmp_path, "mix").parts["curves"]

    assert "Mixture, judge and cost" in said
    assert "MATH is 37 percentage points behind GSM8K at step 3" in said
    assert "The judge answers too seldom at 2 of 4 steps, first at step 2" in said
    assert "first below 0.8: step 2" in said
    assert "A right answer is cheapest at step 2: $0.0125" in said
    assert "best: step 2, $0.0125" in said
    assert [line for line in said.splitlines() if line == "0.0125"] == ["0.0125"]


def test_the_mixture_of_several_seeds_is_one_line_with_a_band(tmp_path: Path) -> None:
    mixture(tmp_path, "m1", math=40.0, seed=1)
    mixture(tmp_path, "m2", math=42.0, seed=2)

    mixture(tmp_path, "other", math=50.0, seed=1, lr=0.1)

    (ready,) = read(tmp_path, "m1", "m2", "other").ready

    gap = ready.charts[0]
    line, alone = gap.lines
    assert (alone.values, alone.band) == ([30.0, 29.0, 28.0, 27.0], None)
    assert line.values == [39.0, 38.0, 37.0, 36.0]
    assert line.band is not None
    # Student's t of one degree of freedom, on a deviation of √2.
    assert line.band[1] == pytest.approx([mean + 12.706205 for mean in line.values])
    assert [note.split(":")[0] for note in gap.notes] == ["m1", "m2", "other"]


def test_ready_charts_are_there_only_with_their_keys(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="a", root=tmp_path, quiet=True) as run:
        for step in range(3):
            run.log(
                {
                    "rollouts/returns_mean": 0.5,
                    "rollouts/returns_best_mean": 0.5,
                    "rollouts/returns_min": 0.25,
                    "rollouts/returns_max": 0.75,
                    "eval/reward": 1.0,
                },
                step=step,
            )

    (ready,) = read(tmp_path, "a").ready
    none = read(tmp_path, "a", keys=["rollouts/returns_mean"]).ready

    assert ready.title == "GRPO"
    (chart,) = ready.charts
    assert [line.label for line in chart.lines] == ["rollouts/returns_mean", "rollouts/returns_best_mean"]
    assert chart.lines[0].band == ([0.25] * 3, [0.75] * 3)
    assert none == []


# ── trajectories and upload ──────────────────────────────────────────────────────────────────────────────────


def test_trajectories_are_the_best_and_the_worst_with_all_that_was_said_of_them(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="a", root=tmp_path, quiet=True) as run:
        for step, reward in enumerate([0.5, 0.125, None, math.nan, 0.875, 0.25, 0.75]):
            made = ToolCall(
                "calculator", {"expression": f"{step}/0"}, "c", result="none", error="division by zero"
            )
            turns = [
                Turn("user", f"task {step}"),
                Turn("assistant", f"answer {step}", [made], completion_tokens=31),
            ]
            run.log_trajectory(
                Trajectory(
                    turns,
                    reward=reward,
                    advantage=-0.5,
                    group="g",
                    rewards={"format": 0.1},
                    completion_tokens=31,
                    stop_reason="done",
                ),
                step=step,
            )

    report = read(tmp_path, "a", trajectories=2)
    said = seen(tmp_path, "a", "--trajectories", "1").parts["trajectories"]

    assert [(each.is_best, each.step) for each in report.trajectories[0].shown] == [
        (True, 4),
        (True, 6),
        (False, 1),
        (False, 5),
    ]
    assert "7 trajectories, 5 with a reward; the best and the worst of them." in said
    assert "0.875step 4 · 2 turns · 31 tokens · advantage -0.5 · stopped: done" in said
    assert "reward format 0.1" in said
    for text in ("task 4", "answer 4", "calculator", '{"expression": "4/0"}', "division by zero", "task 1"):
        assert text in said
    assert "task 6" not in said


def test_few_trajectories_are_shown_once_and_long_ones_are_cut(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="a", root=tmp_path, quiet=True) as run:
        run.log_trajectory(Trajectory([Turn("user", "x" * 5000)] + [Turn("tool", "y")] * 60, reward=1.0))
        run.log_trajectory(Trajectory([Turn("user", "once")]))

    page = page_of(tmp_path, "a")
    said = Seen(page).parts["trajectories"]

    assert "… and 1,000 more characters" in said
    assert "21 turns between them are left out." in said
    assert "Worst" not in said
    assert "2 trajectories, 1 with a reward" in said


def test_the_upload_says_what_is_not_shown_there_and_links_only_to_pages(tmp_path: Path) -> None:
    for run_id, url in (("a", "https://wandb.ai/x"), ("b", "javascript:alert(1)")):
        run = handmade_run(tmp_path, run_id)
        run.log(step=0, x=1)
        cursor = Cursor(
            Sink("https://api.wandb.ai", None, "demo", run_id), attach={"url": url}, next={"writer": "main-0001", "seq": 1},
            state="parked", error="refused", not_shown={"repeated step": 2},
        )  # fmt: skip
        cursors.save(run.piece.dir.parent, cursor, TIME_US)
        run.die()

    page = seen(tmp_path, "a", "b")

    said = page.parts["upload"]
    for text in ("parked", "1 of 2 records", "2: repeated step", "refused", "javascript:alert(1)"):
        assert text in said
    links = [attrs["href"] for name, attrs in page.tags if name == "a" and "#" not in (attrs["href"] or "")]
    assert links == ["https://wandb.ai/x"]


# ── in a real browser ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def written(root: Path, file: Path, *arguments: str) -> Path:
    call(root, *arguments, "-o", str(file))
    return file


def hostile_run(root: Path) -> None:
    x = HOSTILE
    with eventlog.init(
        project="a<b>", id="h", name=x, notes=x, tags=[x[:64]], config={x: x}, root=root, quiet=True
    ) as run:
        for step in range(2):
            run.log({x: step, f"train/{x}": step, "text": x}, step=step)
        run.alert(x, x, level="ERROR")
        call = ToolCall(x, {x: x}, x, result=x, error=x)
        run.log_trajectory(
            Trajectory(
                [Turn(x, x, [call])], reward=1.0, group=x, id=x, rewards={x: 1.0}, metrics={x: 1.0}, stop_reason=x,
                exception=x, info={x: x, "split": x},
            )
        )  # fmt: skip


@needs_chromium
def test_what_was_logged_is_shown_as_text_and_never_runs(browser: Browser, tmp_path: Path) -> None:
    hostile_run(tmp_path)
    file = written(tmp_path, tmp_path / "report.html", "h")

    browser.open(file)

    assert browser.ask("document.title") == "h – Tidelog"
    assert browser.ask("document.querySelectorAll('img, body script ~ script, [onerror]').length") == 0
    assert browser.ask("document.querySelectorAll('script').length") == 1
    shown = browser.ask("document.body.textContent")
    # A name, notes, settings, keys, an alert, and all of a trajectory.
    assert shown.count(HOSTILE) >= 20
    assert (browser.requests, browser.complaints) == ([file.as_uri()], [])


@needs_chromium
def test_it_asks_the_network_for_nothing_and_its_policy_would_not_let_it(
    browser: Browser, root: Path, tmp_path: Path
) -> None:
    file = written(root, tmp_path / "report.html", "s1", "hot")
    browser.open(file)
    before = (browser.requests, browser.complaints)

    browser.ask(
        "new Promise((done) => Object.assign(new Image(), {onerror: () => done(1), src: 'http://evil.test/a'}))"
    )
    browser.ask("fetch('http://evil.test/b').catch(() => 0)")

    assert before == ([file.as_uri()], [])
    forbidden = " ".join(text for text in browser.complaints if "violates" in text)
    assert "http://evil.test/a" in forbidden
    assert "http://evil.test/b" in forbidden


@needs_chromium
def test_the_pointer_reads_the_values_and_the_legend_hides_a_run(
    browser: Browser, root: Path, tmp_path: Path
) -> None:
    browser.open(written(root, tmp_path / "report.html", "s1", "s2", "s3", "hot"))
    browser.ask("document.querySelector('[aria-label^=\"train/lr\"]').scrollIntoView({block: 'center'})")
    middle = browser.ask(
        "(() => { const box = document.querySelector('[aria-label^=\"train/lr\"]').getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2] })()"
    )

    browser.point(*middle)
    read_out = browser.ask("document.querySelector('.readout').innerText")
    browser.ask("document.querySelector('.legend [data-of=\"0\"]').click()")
    browser.point(middle[0] + 1, middle[1])
    without = browser.ask("document.querySelector('.readout').innerText")
    hidden = browser.ask("getComputedStyle(document.querySelector('.l[data-of=\"0\"]')).display")

    assert (
        re.sub(r"\s+", " ", read_out)
        == "step 13 lr=1e-06 · 3 seeds 0.000001 (0.000001 – 0.000001) hot 0.000003"
    )
    assert re.sub(r"\s+", " ", without) == "step 13 hot 0.000003"
    assert hidden == "none"
    assert browser.complaints == []


@needs_chromium
def test_it_is_readable_by_day_by_night_on_a_phone_and_on_paper(
    browser: Browser, root: Path, tmp_path: Path
) -> None:
    file = written(root, tmp_path / "report.html", "s1", "hot")
    colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"

    browser.open(file, "light")
    by_day = browser.ask(colours)
    browser.open(file, "dark")
    by_night = browser.ask(colours)
    browser.ask(
        "addEventListener('beforeprint', () => { window.open_on_paper = !document.querySelector('details:not([open])') })"
    )
    paper = browser.pdf()
    is_open, is_open_after = browser.ask(
        "[window.open_on_paper, !document.querySelector('details:not([open])')]"
    )
    browser.open(file, width=360)
    too_wide = browser.ask("document.documentElement.scrollWidth > innerWidth")

    assert by_day == ["rgb(28, 29, 31)", "rgb(247, 247, 245)"]
    assert by_night == ["rgb(231, 232, 234)", "rgb(19, 20, 22)"]
    assert paper.startswith(b"%PDF")
    assert (is_open, is_open_after) == (True, False)
    assert not too_wide
