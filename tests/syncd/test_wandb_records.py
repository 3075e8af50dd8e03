"""W&B's records become ours: what a row, a summary, a definition or a file of theirs is in our words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.record import Record
from syncd import wandb_records
from syncd.dotwandb import Damage, Deframer
from syncd.fold import COMPLETE_ROWS, EVENTS, HISTORY, STUB, Bases, Fold
from syncd.wandb_records import Artifact, Event, File, RunFacts, Translator, messages

GOLDEN = Path(__file__).parents[1] / "golden" / "wandb"
BEGAN_S = 1_763_712_000
Thing = Event | File | Artifact


def record(num: int = 0, **fields: Any) -> bytes:
    """A record of W&B's; `fields` as protobuf's own constructor takes them."""
    return messages().Record(num=num, **fields).SerializeToString()


def run_record(**fields: Any) -> bytes:
    return record(
        run={"run_id": "r", "project": "p", "host": "h", "start_time": {"seconds": BEGAN_S}, **fields}
    )


def items(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"nested_key": key.split("/"), "value_json": json.dumps(value)} for key, value in values.items()]


def row(step: int, at_s: float = 1.0, **values: Any) -> bytes:
    times = {"_step": step, "_timestamp": BEGAN_S + at_s, "_runtime": at_s}
    return record(history={"item": items(values | times), "step": {"num": step}})


def summary(**values: Any) -> bytes:
    return record(summary={"update": items(values)})


EXIT = record(exit={"exit_code": 3})


def translated(*payloads: bytes, is_over: bool = True, translator: Translator | None = None) -> list[Thing]:
    translator = translator or Translator()
    found = [thing for payload in payloads for thing in translator.feed(payload)]
    return found + (list(translator.end()) if is_over else [])


def of_kind(found: list[Thing], kind: str) -> list[dict[str, Any]]:
    return [thing.data for thing in found if isinstance(thing, Event) and thing.kind == kind]


# -- who, and how ----------------------------------------------------------------------------------------------


def test_a_run_begins_with_what_it_was_started_with():
    found = translated(
        run_record(
            display_name="a name",
            notes="notes",
            tags=["a"],
            run_group="g",
            job_type="train",
            sweep_id="s",
            git={"commit": "c0ffee", "remote_url": "https://example.com/r.git"},
            config={"update": [{"key": "lr", "value_json": "0.1"}, {"key": "_wandb", "value_json": "{}"}]},
            telemetry={"cli_version": "0.31.0", "python_version": "3.11.7", "feature": {"offline": True}},
        ),
        record(
            environment={
                "os": "Linux",
                "program": "train.py",
                "cpu_count": 2,
                "disk": {"/": {"total": 2**40}},
            }
        ),
        row(0, x=1),
    )

    (start,) = of_kind(found, "start")
    expected = {
        "name": "a name",
        "notes": "notes",
        "tags": ["a"],
        "group": "g",
        "job_type": "train",
        "sweep_id": "s",
    }
    assert {key: start[key] for key in expected} == expected
    assert start["config"] == {"lr": 0.1}
    assert start["git"] == {"commit": "c0ffee", "remote": "https://example.com/r.git"}
    assert start["program"] == "train.py"
    assert start["machine"] == {
        "os": "Linux",
        "program": "train.py",
        "cpu_count": 2,
        "disk": {"/": {"total": str(2**40)}},
    }
    assert start["mode"] == "offline"
    assert start["wandb"]["t"]["5"] == start["wandb"]["t"]["12"] == "0.31.0"
    # `offline` is feature 4 of W&B's telemetry.
    assert start["wandb"]["t"]["3"] == [4]
    assert isinstance(found[0], Event)
    assert found[0].kind == "start"


def test_whose_file_it_is_is_known_from_its_beginning():
    translator = Translator()
    translated(run_record(entity="e"), is_over=False, translator=translator)

    assert translator.run == RunFacts("r", "p", "e", "h")
    assert translator.began_us == BEGAN_S * 1_000_000


def test_without_a_record_of_the_machine_what_is_known_from_elsewhere_counts():
    translator = Translator(metadata={"program": "old.py", "writerId": "w"})

    (start,) = of_kind(translated(run_record(), translator=translator), "start")

    assert start["machine"] == {"program": "old.py"}


def test_a_run_that_says_itself_again_has_new_facts():
    found = translated(run_record(), row(0, x=1), run_record(display_name="renamed", tags=["b"]))

    assert of_kind(found, "facts") == [{"name": "renamed", "tags": ["b"]}]


def test_telemetry_and_config_that_come_later_are_told_later():
    found = translated(
        run_record(config={"update": [{"key": "nested", "value_json": '{"a": 1}'}]}),
        row(0, x=1),
        record(telemetry={"cli_version": "0.31.0", "feature": {"finish": True}}),
        record(config={"update": [{"nested_key": ["nested", "b"], "value_json": "2"}]}),
        record(config={"update": [{"nested_key": ["_wandb", "visualize", "c"], "value_json": "{}"}]}),
    )

    assert of_kind(found, "config") == [{"nested": {"a": 1, "b": 2}}]
    assert [sorted(facts["wandb"]) for facts in of_kind(found, "facts")] == [
        ["cli_version", "t"],
        ["cli_version", "t", "visualize"],
    ]


def test_config_grows_by_its_leaves():
    found = translated(
        run_record(config={"update": [{"key": "a", "value_json": '{"b": 1, "c": {"d": 2}}'}]}),
        row(0, x=1),
        record(config={"update": [{"key": "a", "value_json": '{"b": 9, "c": {}}'}]}),
        record(config={"update": [{"key": "a", "value_json": "7"}]}),
    )

    assert of_kind(found, "config") == [{"a": {"b": 9, "c": {"d": 2}}}, {"a": 7}]


def test_wandbs_own_block_is_kept_but_for_what_is_told_otherwise():
    def said(path: list[str], value: str) -> bytes:
        return record(config={"update": [{"nested_key": ["_wandb", *path], "value_json": value}]})

    found = translated(
        run_record(config={"update": [{"key": "_wandb", "value_json": '{"code_path": "code/a.py"}'}]}),
        row(0, x=1),
        said(["visualize", "one"], "1"),
        said(["visualize", "two"], "2"),
        said(["bounding_box/class_labels"], '{"1": "cat"}'),
        said(["t"], '{"3": [1]}'),
    )

    assert of_kind(found, "start")[0]["wandb"] == {"code_path": "code/a.py"}
    assert of_kind(found, "facts")[-1]["wandb"] == {
        "code_path": "code/a.py",
        "visualize": {"one": 1, "two": 2},
        "bounding_box/class_labels": {"1": "cat"},
    }


def test_without_a_run_record_there_is_a_start_all_the_same():
    translator = Translator()
    translator.note_damage("the checksum is wrong")

    found = translated(
        record(num=3, environment={"os": "Linux"}),
        record(num=6, stats={"timestamp": {"seconds": BEGAN_S + 5}}),
        row(7, at_s=6.0, x=1),
        translator=translator,
    )

    assert [thing.kind for thing in found if isinstance(thing, Event)][:3] == ["start", "gap", "system"]
    (start,) = of_kind(found, "start")
    assert (start["rows"], start["machine"], start["config"]) == (COMPLETE_ROWS, {"os": "Linux"}, {})
    assert of_kind(found, "gap") == [{"dropped": 4, "reason": "the checksum is wrong"}]
    assert isinstance(found[0], Event)
    assert found[0].time_us == (BEGAN_S + 5) * 1_000_000


def test_what_the_sdk_found_out_after_the_first_row_is_known_too():
    found = translated(
        record(num=2, stats={"timestamp": {"seconds": BEGAN_S + 5}}),
        record(num=3, environment={"os": "Linux", "program": "train.py"}),
    )

    assert of_kind(found, "machine") == [{"os": "Linux", "program": "train.py"}]
    assert {"program": "train.py"} in of_kind(found, "facts")


def test_rows_say_when_a_run_began_whose_own_record_is_lost():
    sample = record(stats={"timestamp": {"seconds": BEGAN_S + 9}})

    found = translated(row(7, at_s=6.0, x=1), sample)

    assert isinstance(found[0], Event)
    assert found[0].time_us == BEGAN_S * 1_000_000
    assert of_kind(found, "system")[0]["_runtime"] == 9.0


def test_a_run_record_that_comes_late_says_whose_file_it_is():
    translator = Translator()

    found = translated(row(0, x=1), run_record(display_name="a name"), translator=translator)

    assert translator.run == RunFacts("r", "p", "", "h")
    assert of_kind(found, "facts")[0]["name"] == "a name"


def test_going_back_is_told_and_counted():
    branch = {"run": "r", "metric": "_step", "value": 2}
    offline, online, fork = Translator(), Translator(is_offline=False), Translator()

    (start,) = of_kind(translated(run_record(branch_point=branch), translator=offline), "start")
    assert (start["rewound_to"], offline.not_understood) == (2, {"going back to step 2": 1})

    (start,) = of_kind(translated(run_record(branch_point=branch), translator=online), "start")
    assert ("rewound_to" in start, online.not_understood) == (False, {})

    of_another = run_record(branch_point={**branch, "run": "another"})
    (start,) = of_kind(translated(of_another, translator=fork), "start")
    assert ("rewound_to" in start, fork.not_understood) == (False, {})


def test_that_a_run_may_be_preempted_is_understood():
    translator = Translator()

    translated(run_record(), record(preempting={}), translator=translator)

    assert translator.not_understood == {}


def test_definitions_are_ours_but_for_those_that_ours_imply():
    found = translated(
        run_record(),
        record(metric={"name": "epoch"}),
        record(metric={"name": "loss", "options": {"defined": True}, "summary": {"min": True, "last": True}}),
        record(metric={"glob_name": "eval/*", "step_metric": "epoch", "options": {"step_sync": True}}),
        record(metric={"name": "eval/a", "step_metric": "epoch", "expanded_from_glob": True}),
        record(metric={"name": "acc", "options": {"defined": True, "hidden": True}, "goal": 2}),
    )

    assert of_kind(found, "define_metric") == [
        {"name": "loss", "step_sync": False, "hidden": False, "summary": ["min", "last"]},
        {"name": "eval/*", "step_metric": "epoch", "step_sync": True, "hidden": False},
        {"name": "acc", "step_sync": False, "hidden": True, "goal": "maximize"},
    ]


# -- what was logged -------------------------------------------------------------------------------------------


def test_a_row_is_as_it_was_closed():
    (found,) = [
        t
        for t in translated(run_record(), row(7, 2.5, x=1.5))
        if isinstance(t, Event) and t.kind == "metrics"
    ]

    assert found.data == {"x": 1.5, "_step": 7, "_timestamp": BEGAN_S + 2.5, "_runtime": 2.5}
    assert (found.step, found.time_us) == (7, BEGAN_S * 1_000_000 + 2_500_000)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e300", 1e300),
        ('"é\\n"', "é\n"),
        ("null", None),
        ('[1,{"a":2}]', [1, {"a": 2}]),
        ("-Infinity", -math.inf),
    ],
)
def test_a_value_is_what_its_text_says(text: str, value: Any):
    payload = record(history={"item": [{"nested_key": ["v"], "value_json": text}], "step": {"num": 0}})

    assert of_kind(translated(run_record(), payload), "metrics") == [{"v": value, "_step": 0}]


def test_nan_costs_no_other_value():
    payload = record(history={"item": [*items({"a": 1}), {"nested_key": ["n"], "value_json": "NaN"}]})

    (found,) = of_kind(translated(run_record(), payload), "metrics")

    assert found["a"] == 1
    assert math.isnan(found["n"])


def test_nested_keys_are_nested_and_those_of_old_sdks_are_keys():
    nested = record(history={"item": items({"a/b": 1, "a/c": 2, "d": 3}), "step": {"num": 0}})
    old = record(history={"item": [{"key": "a/b", "value_json": "1"}], "step": {"num": 4}})

    assert of_kind(translated(run_record(), nested, old), "metrics") == [
        {"a": {"b": 1, "c": 2}, "d": 3, "_step": 0},
        {"a/b": 1, "_step": 4},
    ]


def test_a_value_that_is_no_json_becomes_a_text():
    payload = record(
        history={"item": [{"nested_key": ["v"], "value_json": '1,"_step":9'}], "step": {"num": 2}}
    )

    assert of_kind(translated(run_record(), payload), "metrics") == [{"v": '1,"_step":9', "_step": 2}]


def test_the_summary_is_said_at_most_once_a_second_of_the_files_own_clock():
    rows = [payload for i in range(30) for payload in (summary(x=i), row(i, at_s=i / 10, x=i))]

    found = of_kind(translated(run_record(), *rows, is_over=False), "summary")

    assert len(found) == 2
    assert found[-1]["set"][0] == [["x"], 20]


def test_the_end_says_the_summary_that_is_left():
    found = of_kind(translated(run_record(), summary(x=1), row(0, x=1), summary(y=2)), "summary")

    assert [said for one in found for said in one["set"]] == [[["x"], 1], [["y"], 2]]


def test_what_is_removed_is_removed_after_what_was_said_before():
    removal = record(summary={"update": items({"b": 2}), "remove": [{"key": "a"}]})

    found = of_kind(translated(run_record(), summary(a=1), removal, summary(c=3)), "summary")

    assert found == [{"set": [[["a"], 1], [["b"], 2]]}, {"delete": [["a"]]}, {"set": [[["c"], 3]]}]


def test_values_that_are_too_large_for_a_record_are_left_out_and_no_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wandb_records, "VALUES_MAX_BYTES", 1000)
    times = {"_step": 0, "_timestamp": BEGAN_S + 1.0, "_runtime": 1.0}
    repeated = record(summary={"update": items({"a": 1, "b": "x" * 2000, **times})})

    found = translated(run_record(), repeated, row(0, a=1, b="x" * 2000), summary(c="y" * 3000, d=2))

    (sent,) = of_kind(found, "metrics")
    assert (sent["a"], sent["_step"]) == (1, 0)
    assert sent["b"] == "2,002 bytes, too many for a record; they are in W&B's own file"
    assert STUB in sent
    said = {path[0]: value for one in found_sets(found) for path, value in one}
    assert (said["a"], said["d"]) == (1, 2)
    assert said["b"] == sent["b"]
    assert said["c"].startswith("3,002 bytes")
    assert STUB not in said


def found_sets(found: list[Thing]) -> list[Any]:
    return [one["set"] for one in of_kind(found, "summary")]


def test_a_summary_grows_no_larger_than_a_record(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wandb_records, "VALUES_MAX_BYTES", 1000)

    found = translated(run_record(), *(summary(**{f"k{i}": "x" * 700}) for i in range(4)))

    sizes = [len(json.dumps(one)) for one in found_sets(found)]
    assert len(sizes) == 2
    assert max(sizes) < 2000


def test_half_of_a_pair_is_no_character():
    payload = record(summary={"update": [{"key": "s", "value_json": '"\\udfff x \\ud83d\\ude00"'}]})

    assert found_sets(translated(run_record(), payload)) == [[[["s"], "\ufffd x 😀"]]]


def test_a_summary_that_repeats_its_row_is_the_row_and_any_other_is_itself():
    repeated = record(
        summary={"update": items({"x": 1, "_step": 0, "_timestamp": BEGAN_S + 1.0, "_runtime": 1.0})}
    )
    other = record(summary={"update": items({"x": {"max": 5}})})

    found = of_kind(translated(run_record(), repeated, row(0, x=1), other, row(1, x=2)), "summary")

    assert {path[0]: value for one in found for path, value in one["set"]}["x"] == {"max": 5}


def test_a_value_and_what_it_lies_in_keep_their_order():
    nested = record(summary={"update": items({"a/b": 1})})

    found = of_kind(translated(run_record(), nested, summary(a=2), nested), "summary")

    assert [said for one in found for said in one["set"]] == [[["a"], 2], [["a", "b"], 1]]


def test_a_sample_keeps_its_times_to_the_last_bit():
    taken = {"seconds": BEGAN_S + 35, "nanos": 411_158_145}
    found = translated(
        run_record(), record(stats={"timestamp": taken, "item": [{"key": "cpu", "value_json": "1.5"}]})
    )

    assert of_kind(found, "system") == [
        {"cpu": 1.5, "_timestamp": BEGAN_S + 35 + 411_158_145 / 1e9, "_runtime": 35 + 411_158_145 / 1e9}
    ]


def test_console_and_alerts_are_ours():
    found = translated(
        run_record(),
        record(
            output_raw={
                "output_type": "STDOUT",
                "timestamp": {"seconds": BEGAN_S, "nanos": 1000},
                "line": "a\r",
            }
        ),
        record(output_raw={"output_type": "STDERR", "timestamp": {"seconds": BEGAN_S}, "line": "b"}),
        record(alert={"title": "t", "text": "x", "level": "WARN", "wait_duration": 1500}),
    )

    assert of_kind(found, "console") == [
        {"source": "stdout", "text": "a\r"},
        {"source": "stderr", "text": "b"},
    ]
    assert of_kind(found, "alert") == [{"title": "t", "text": "x", "level": "WARN", "wait_s": 1.5}]
    assert {thing.stream for thing in found if isinstance(thing, Event) and thing.kind == "console"} == {
        "console"
    }


def test_the_exit_is_said_when_the_file_is_over_whatever_stands_behind_it():
    before = translated(run_record(), EXIT, summary(x=1), row(0, x=1), is_over=False)
    after = translated(run_record(), EXIT, summary(x=1), row(0, x=1))

    assert of_kind(before, "exit") == []
    assert isinstance(after[-1], Event)
    assert (after[-1].kind, after[-1].data) == ("exit", {"exitcode": 3})


def test_files_and_artifacts_are_named_for_others_to_look_for():
    found = translated(
        run_record(),
        record(files={"files": [{"path": "a.txt", "policy": "END"}, {"path": "media/b.png"}]}),
        record(
            artifact={
                "name": "n",
                "type": "t",
                "digest": "d",
                "metadata": '{"e": 1}',
                "aliases": ["latest"],
                "client_id": "c",
                "sequence_client_id": "s",
                "manifest": {"contents": [{"path": "p", "digest": "x", "size": 3, "local_path": "/l"}]},
            }
        ),
    )

    files = [(thing.path, thing.policy) for thing in found if isinstance(thing, File)]
    assert files == [("a.txt", "end"), ("media/b.png", "now")]
    (artifact,) = [thing for thing in found if isinstance(thing, Artifact)]
    assert artifact.data["metadata"] == {"e": 1}
    assert artifact.entries == [{"path": "p", "digest": "x", "ref": "", "size": 3, "local_path": "/l"}]


def test_what_was_lost_is_a_gap_of_known_size():
    translator = Translator()
    list(translator.feed(record(num=1, run={"run_id": "r"})))
    list(translator.feed(record(num=2, exit={})))
    translator.note_damage("the checksum is wrong")

    found = translated(record(num=6, history={"step": {"num": 0}}), translator=translator)

    assert of_kind(found, "gap") == [{"dropped": 3, "reason": "the checksum is wrong"}]


def test_what_is_not_understood_is_counted_and_costs_nothing_else():
    translator = Translator()
    found = translated(
        run_record(), record(tbrecord={"log_dir": "x"}), b"\xff\xff", row(0, x=1), translator=translator
    )

    assert sum(translator.not_understood.values()) == 2
    assert translator.not_understood["tbrecord"] == 1
    assert len(of_kind(found, "metrics")) == 1


# -- always ----------------------------------------------------------------------------------------------------

some = st.sampled_from(
    [
        run_record(),
        row(0, x=1),
        row(1, 1.9, x=2, y=3),
        summary(x=1),
        summary(x=1, y=2),
        EXIT,
        record(telemetry={"cli_version": "0.31.0"}),
        record(files={"files": [{"path": "a"}]}),
        b"\xff",
        record(summary={"update": items({"x/y": 1}), "remove": [{"key": "x"}]}),
    ]
)


@given(payloads=st.lists(some, max_size=25), data=st.data())
def test_a_file_that_has_grown_gives_the_same_and_more(payloads: list[bytes], data: st.DataObject):
    grown = data.draw(st.integers(0, len(payloads)))

    before = translated(*payloads[:grown], is_over=False)
    after = translated(*payloads, is_over=False)

    assert after[: len(before)] == before


@given(payloads=st.lists(some, max_size=25))
def test_the_first_event_is_a_start_that_says_that_rows_are_whole(payloads: list[bytes]):
    events = [thing for thing in translated(*payloads) if isinstance(thing, Event)]

    if events:
        assert (events[0].kind, events[0].data["rows"]) == ("start", COMPLETE_ROWS)
    assert sum(event.kind == "start" for event in events) <= 1


@given(payloads=st.lists(st.binary(max_size=60), max_size=20))
def test_no_bytes_raise(payloads: list[bytes]):
    for thing in translated(run_record(), *payloads):
        assert isinstance(thing, Event | File | Artifact)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.wandb")), ids=lambda path: path.stem)
def test_files_of_other_versions_are_understood_whole(path: Path):
    translator, deframer = Translator(), Deframer()
    fold, lines = Fold(Bases()), []
    payloads = [found.data for found in deframer.feed(path.read_bytes()) if not isinstance(found, Damage)]
    rows = []
    for payload in payloads:
        message = messages().Record.FromString(payload)
        if message.WhichOneof("record_type") == "history":
            told = {tuple(i.nested_key) or (i.key,): json.loads(i.value_json) for i in message.history.item}
            rows.append({key[0]: value for key, value in told.items() if len(key) == 1})
    events = [thing for thing in translated(*payloads, translator=translator) if isinstance(thing, Event)]
    for seq, event in enumerate(event for event in events if event.stream == "events"):
        lines += fold.feed(
            Record(seq, event.time_us, event.kind, event.data, event.step, event.kind == "metrics")
        )

    sent = [json.loads(line.text) for line in lines if line.file == HISTORY]
    assert translator.not_understood == {}
    assert translator.has_ended
    assert len(sent) == len(rows) == translator.rows > 0
    for line, logged in zip(sent, rows, strict=True):
        assert {key: line[key] for key in logged} == logged
    # The last row is what the summary shows, but for what was set otherwise.
    assert fold.summary()["_step"] == sent[-1]["_step"]
    assert len([line for line in lines if line.file == EVENTS]) == len(of_kind(list(events), "system"))
