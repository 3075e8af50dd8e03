"""`eventlog.redact`: what is a secret goes, wherever a script puts it, and what only looks like one stays."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.redact import REDACTED, looks_secret, redacted, redacted_argv, without_secrets

KEY = "0123456789abcdef0123456789abcdef01234567"


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "config",
    [
        {"secret": ["LEAK"]},
        {"passwords": ["LEAK"], "api_keys": {"LEAK"}},
        {"credentials": {"user": "LEAK", "roles": ["LEAK"]}},
        {"pairs": ({"password": "LEAK"}, [({"api_key": "LEAK"},)])},
        nested({"password": "LEAK"}, 150),
        {"https://me:LEAK@host": 1},
        {"db": "postgres://me:LEAK@LEAK@host/db"},
        {"url": "https://host/v1?n=5&api_key=LEAK#end"},
        {"hf_token": "LEAK with blanks"},
        {"tokens": {"hub": "LEAK0123456789abcdef"}},
        {"auth": "LEAK", "creds": "LEAK", "db_pass": "LEAK", "wandb_key": "LEAK"},
        {"cmd": 'curl -H "Authorization: Bearer LEAK0123456789"'},
        {"openai": "sk-proj-LEAK0123456789abcdefgh"},
    ],
    ids=str,
)
def test_a_secret_goes_by_its_name_wherever_it_stands(config: dict[str, Any]):
    assert "LEAK" not in str(redacted(config))
    assert REDACTED in str(redacted(config)) or "://" in str(config)


@pytest.mark.parametrize(
    "config",
    [
        {
            "max_tokens": 4096,
            "tokens": [1, 2],
            "tokenizer": "gpt2",
            "pad_token": "<|endoftext|>",
            "token": "[PAD]",
        },
        {
            "tokens": {"pad": "<pad>", "seen": 10**12},
            "openai_tokens": {"prompt": 5},
            "hub_token": "<HUB_TOKEN>",
        },
        {"auth": False, "pass": 2, "passes": ["forward"], "pass_at_1": 0.5, "key": "value", "keys": ["a"]},
        {"url": "https://host/v1?n=5&model=x", "mail": "me@host", "model": "hf_model/sk-learn"},
        {"text": "bearer of news", "secret": None, "password": ""},
    ],
    ids=str,
)
def test_what_only_sounds_like_a_secret_stays(config: dict[str, Any]):
    assert redacted(config) == config


def test_what_holds_itself_is_passed_on():
    config: dict[str, Any] = {"password": "LEAK"}
    config["all"] = [config, config]

    clean = redacted(config)

    assert clean["password"] == REDACTED
    assert clean["all"] == [config, config]


@pytest.mark.parametrize(
    "argv",
    [
        ["--cfg", '{"api_key": "LEAK", "deep": [{"secrets": ["LEAK"]}]}'],
        ['--cfg={"api_key": "LEAK"}'],
        ["--header", "Authorization: Bearer LEAK0123456789"],
        ["--api_key", "-LEAK"],
        ["--url=https://me:LEAK@host"],
        ["--url", "https://host/?access_token=LEAK"],
    ],
    ids=str,
)
def test_a_command_line_loses_its_secrets(argv: list[str]):
    assert "LEAK" not in " ".join(redacted_argv(argv))


@pytest.mark.parametrize(
    "argv",
    [
        ["--cfg", '{"lr":  1e-3}', "--layers", "[1, 2]", "--text={not json"],
        ["--use_auth_token", "--lr", "1", "-n", "5"],
        ["--api-key", "-v", "--password=", "-x=1"],
    ],
    ids=str,
)
def test_the_rest_of_a_command_line_stays_as_it_was(argv: list[str]):
    assert redacted_argv(argv) == argv


def test_a_number_is_no_secret():
    assert not looks_secret("password_length", 12)
    assert without_secrets("https://host:8080/a@b") == "https://host:8080/a@b"


def test_the_key_of_this_process_is_in_nothing_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = eventlog.init(
        project="demo", root=tmp_path, quiet=True, notes=f"my {KEY}", config={"x": [KEY]}, name=KEY
    )

    run.log({"cmd": f"wandb login {KEY}", KEY: float("nan")})
    run.log({KEY: 1.0})
    run.summary["cmd"] = {"in": KEY}
    run.alert(f"title {KEY}", f"text {KEY}")
    run.define_metric(KEY, summary="min")
    run.log({"table": eventlog.Table(columns=["a"], data=[[KEY]]), "page": eventlog.Html(f"<b>{KEY}</b>")})
    run.log_artifact(eventlog.Artifact("a", "t", description=KEY, metadata={"k": KEY}))
    run.log_trajectory(eventlog.Trajectory(id="1", turns=[eventlog.Turn("user", KEY)]))
    run.write_logs(KEY)
    logging.getLogger("test").warning("%s", KEY)
    run.config.update({"late": KEY})
    run.finish(1, error=f"failed with {KEY}")

    written = [path for path in run.dir.rglob("*") if path.is_file()]
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    rows = [record.data for record in eventlog.read(run.dir) if record.kind == "metrics"]
    assert rows[0]["cmd"] == "wandb login [redacted]"
    assert rows[1] == {REDACTED: 1.0}
    assert run.summary["cmd"] == {"in": KEY}


def test_what_people_read_of_a_run_has_no_password(tmp_path: Path):
    run = eventlog.init(project="demo", root=tmp_path, quiet=True)
    url = "https://me:LEAK@host/x"

    run.alert("title", f"see {url}")
    metadata = {"api_key": "LEAK", "source": url, "deep": [{"password": "LEAK"}]}
    run.log_artifact(eventlog.Artifact("a", "t", description=url, metadata=metadata))
    run.write_logs(url)
    run.finish(1, error=f"cannot fetch {url}")

    written = [path for path in run.dir.rglob("*.jsonl") if path.is_file()]
    assert len(written) == 3
    assert [path for path in written if b"LEAK" in path.read_bytes()] == []


def test_a_short_key_is_a_placeholder_and_garbles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "WANDB_API_KEY", "x")
    run = eventlog.init(project="demo", root=tmp_path, quiet=True)

    run.log({"text": "xyz"})
    run.finish()

    (row,) = (record.data for record in eventlog.read(run.dir) if record.kind == "metrics")
    assert row == {"text": "xyz"}
