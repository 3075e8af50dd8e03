"""What W&B is told besides lines: the config's blocks, and names only when the log has newer ones."""

from __future__ import annotations

import json
import math
from typing import Any

from syncd.attach import mark_of
from syncd.fold import Bases, Definition
from syncd.metadata import MARK, config_json, definitions_list, marked, newer, params

MARK_VALUE = mark_of("a" * 32, ["p1"], Bases())


def config_of(config: dict[str, Any], others: dict[str, Any] | None = None) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(
        config_json(config, {}, {"python": "3.11.7"}, MARK_VALUE, others or {})
    )
    return parsed


def test_only_top_level_keys_are_wrapped_and_the_telemetry_is_always_there():
    config = config_of({"lr": 0.1, "n": {"x": 1}})

    assert config["lr"] == {"value": 0.1}
    assert config["n"] == {"value": {"x": 1}}
    assert "t" in config["_wandb"]["value"]
    assert config[MARK] == {"value": MARK_VALUE}


def test_keys_of_another_client_stay_unless_the_log_sets_them():
    others = {"theirs": {"value": 1}, "lr": {"value": 9}, "_wandb": {"value": {"t": 1}}}

    config = config_of({"lr": 0.1}, others)

    assert config["theirs"] == {"value": 1}
    assert config["lr"] == {"value": 0.1}


def test_nan_is_null_in_the_config_and_an_infinity_is_itself():
    config = config_of({"a": math.nan, "b": [math.inf, math.nan], "c": {"d": -math.inf}})

    assert config["a"] == {"value": None}
    assert config["b"] == {"value": [math.inf, None]}
    assert config["c"] == {"value": {"d": -math.inf}}


def test_an_empty_dict_is_nothing_in_the_config():
    config = config_of({"a": {}, "b": {"c": {}, "d": 1}, "e": {"f": {}}, "g": []})

    assert "a" not in config
    assert config["b"] == {"value": {"d": 1}}
    assert "e" not in config
    assert config["g"] == {"value": []}


def test_a_mark_is_put_into_a_config_that_stays_as_it_is():
    theirs = {"lr": {"value": 1}, "_wandb": {"value": {"t": {}}}, MARK: {"value": {"log_id": "old"}}}

    assert json.loads(marked(theirs, MARK_VALUE)) == {**theirs, MARK: {"value": MARK_VALUE}}


def test_a_name_that_was_told_is_not_told_again():
    wanted = params({"name": "baseline", "tags": ["a"], "notes": None})

    assert newer(wanted, told={}) == {"displayName": "baseline", "tags": ["a"]}
    assert newer(wanted, told=wanted) == {}
    assert newer(params({"name": "baseline", "tags": ["a", "b"]}), told=wanted) == {"tags": ["a", "b"]}


def test_definitions_have_protobuf_numbers_and_point_at_their_step_metric():
    definitions = {
        "loss": Definition("loss", summary=["last", "min"]),
        "eval/*": Definition("eval/*", "global_step", step_sync=True),
        "eval/a": Definition("eval/a", "global_step", step_sync=True, from_glob=True),
        "hidden": Definition("hidden", hidden=True, goal="maximize"),
    }

    assert definitions_list(definitions) == [
        {"1": "loss", "6": [3], "7": [1, 5]},
        {"2": "eval/*", "5": 4, "6": [1], "7": []},
        {"1": "hidden", "6": [2, 3], "7": [], "8": 2},
        {"1": "global_step", "6": [], "7": []},
    ]
