"""The files that syncd makes itself, beside those that W&B's SDK makes of the same config."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from syncd.metadata import config_json
from syncd.run_files import config_yaml, metadata_json
from tests.wandb_server import WandbServer

HARD_TEXTS = [
    "", " lead", "trail ", "a: b", "a:", ":a", "a #b", "#a", "a#b", "- a", "-a", "-", "?", "? a", "*a", "&a", "!a",
    "%a", "@a", "`a", "[a", "{a", "a]", "a,b", ",a", ">a", "|a", "'", "it's", '"', 'say "x"', "a\tb", "a\nb\n",
    "a\x07b", "a\x85b", "é", "😀", "\u2028", "\ufeff", "---", "...", "--- a", "~", "null", "Null", "true", "Yes",
    "on", "y", "N", "123", "1_000", "-1", "+1", ".5", "5.", "1e3", "1.e3", ".", "..", "_", "0x1F", "012", "0o17",
    "0b11", "1:30", ".inf", "-.INF", ".nan", "2020-01-01", "2020-01-01T00:00:00Z", "3.11.7", "/", "C:\\x", "a\\n",
    "https://x.y/?a=b&c=d#e", "<none>", "x " * 200, "word " * 40,
]  # fmt: skip
NUMBERS = [
    0,
    1,
    -1,
    2**62,
    0.1,
    1.0,
    100000.0,
    1234567.0,
    1e6,
    3.5e10,
    123456.789,
    1e-5,
    1e-4,
    1e20,
    5e-324,
]
CONFIG_OF_A_TRAINING: dict[str, Any] = {
    "texts": HARD_TEXTS,
    "numbers": NUMBERS,
    "keys": {text: i for i, text in enumerate(HARD_TEXTS)},
    "order": dict.fromkeys(
        ("a10", "a9", "A", "_b", "b-c", "b c", "é", "10", "9", "bc", "b_c", "a", "1.5"), 1
    ),
    "nested": {"a": [1, [2, [3, 4]], {"k": {"z": 1, "a": [5, {"x": 1, "y": [6]}]}}], "b": {"c": {"d": True}}},
    "empty": [{}, [], {"e": {}, "l": []}, None, False],
}


@pytest.fixture(scope="module")
def files_of_the_sdk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the SDK uploads for that config, and the config as it sent it."""
    directory = tmp_path_factory.mktemp("sdk")
    code = (
        "import json, sys, wandb\nwandb.init(project='demo', id='run', config=json.load(sys.stdin)).finish()"
    )
    with WandbServer(entity="ent") as server:
        env = {**os.environ, **server.env(directory)}
        text = json.dumps(CONFIG_OF_A_TRAINING)
        subprocess.run(
            [sys.executable, "-c", code],
            input=text,
            env=env,
            cwd=directory,
            check=True,
            text=True,
            timeout=120,
        )
        run = server.run("ent", "demo", "run")
        return {**run.files, "the config as sent": run.config_text.encode()}


def test_the_config_file_reads_as_the_sdks(files_of_the_sdk: dict[str, bytes]):
    sent = json.loads(files_of_the_sdk["the config as sent"])

    ours = config_yaml(sent)

    assert yaml.safe_load(ours) == yaml.safe_load(files_of_the_sdk["config.yaml"])


@pytest.mark.parametrize("key", ["numbers", "order", "nested", "empty"])
def test_the_config_file_is_laid_out_as_the_sdks(files_of_the_sdk: dict[str, bytes], key: str):
    sent = json.loads(files_of_the_sdk["the config as sent"])

    ours = config_yaml({key: sent[key]})

    # What begins at the margin and what is indented below it.
    (theirs,) = re.findall(rf"(?m)^{key}:\n(?: .*\n)+", files_of_the_sdk["config.yaml"].decode())
    assert ours == theirs


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=12,
)


@given(config=st.dictionaries(st.text(), json_values, max_size=4))
def test_any_config_comes_back(config: dict[str, Any]):
    text = config_yaml(config)

    back = yaml.safe_load(text)

    assert back == config


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_comes_back(number: float):
    (line,) = config_yaml({"x": number}).splitlines()

    assert float(line.removeprefix("x: ")) == number


def test_the_files_say_what_the_server_was_sent(files_of_the_sdk: dict[str, bytes]):
    start = {
        "os": "Linux", "python": "3.11.7", "started_at": "2026-01-02T03:04:05Z", "argv": ["train.py", "--lr", "1"],
        "program": "train.py", "git": {"remote": "git@x:y.git", "commit": "c0ffee"}, "cwd": "/w", "host": "node",
        "executable": "/bin/python", "cpu_count": 8,
    }  # fmt: skip
    config = json.loads(config_json({"lr": 0.1}, {}, start, {"log_id": "abc"}, {}))

    environment = json.loads(metadata_json(config))

    assert environment["args"] == ["--lr", "1"]
    assert set(json.loads(files_of_the_sdk["wandb-metadata.json"])) - set(environment) <= {
        "cpu", "cpu_count_logical", "disk", "memory", "gpu",
    }  # fmt: skip
    assert yaml.safe_load(config_yaml(config))["lr"] == {"value": 0.1}


def test_a_file_can_be_read_by_the_sdk(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml({"wandb_version": 1, "lr": {"value": 0.1}}))

    from wandb.sdk.lib import config_util

    assert config_util.dict_from_config_file(str(path)) == {"lr": 0.1}
