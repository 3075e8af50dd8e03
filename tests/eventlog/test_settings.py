"""`eventlog.wishes`, `settings` and `configs`: what a call of `init` asks for, and from where."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.configs import as_config, chosen, config_file, layered
from eventlog.errors import ConfigError, UsageError
from eventlog.settings import Settings
from eventlog.wishes import Wishes, wishes


def wished(environ: dict[str, str] | None = None, settings: Any = None, **arguments: Any) -> Wishes:
    return wishes({"durability": "interval", **arguments}, Settings.of(settings), environ or {})


def start(run: eventlog.Run) -> dict[str, Any]:
    return next(iter(eventlog.read(run.dir))).data


# ── arguments, settings, variables ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("variable", "text", "wish"),
    [
        ("WANDB_PROJECT", "p", lambda w: w.project == "p"),
        ("WANDB_ENTITY", "e", lambda w: w.entity == "e"),
        ("WANDB_NAME", "n", lambda w: w.name == "n"),
        ("WANDB_RUN_ID", "i", lambda w: w.run_id == "i" and not w.is_id_in_the_call),
        ("RUN_ID", "i", lambda w: w.run_id == "i"),
        ("WANDB_RUN_GROUP", "g", lambda w: w.about["group"] == "g"),
        ("WANDB_JOB_TYPE", "j", lambda w: w.about["job_type"] == "j"),
        ("WANDB_TAGS", "a, b,", lambda w: w.about["tags"] == ["a", "b"]),
        ("WANDB_NOTES", "n", lambda w: w.about["notes"] == "n"),
        ("WANDB_RESUME", "allow", lambda w: w.resume == "allow"),
        ("WANDB_RESUME", "auto", lambda w: w.resume == "auto"),
        ("WANDB_MODE", "offline", lambda w: w.about["mode"] == "offline"),
        ("WANDB_MODE", "dryrun", lambda w: w.about["mode"] == "offline"),
        ("WANDB_DIR", "/d", lambda w: w.root == Path("/d/runs")),
        ("EVENTLOG_ROOT", "/r", lambda w: w.root == Path("/r")),
        ("WANDB_SILENT", "true", lambda w: w.is_quiet),
        ("WANDB_QUIET", "true", lambda w: w.is_quiet),
        ("WANDB_SAVE_CODE", "true", lambda w: w.save_code),
        ("WANDB_DISABLE_GIT", "true", lambda w: not w.with_git),
        ("WANDB_HOST", "node7", lambda w: w.facts == {"host": "node7"}),
        ("WANDB_PROGRAM", "other.py", lambda w: w.facts == {"program": "other.py"}),
        ("WANDB_USER_EMAIL", "me@here", lambda w: w.facts == {"email": "me@here"}),
        ("WANDB_GIT_COMMIT", "c0ffee", lambda w: w.facts == {"git": {"commit": "c0ffee", "remote": None}}),
        ("WANDB_SWEEP_ID", "s", lambda w: w.about.get("sweep_id") == "s"),
        ("WANDB_SWEEP_PARAM_PATH", "s.yaml", lambda w: w.sweep_param_path == "s.yaml"),
        ("WANDB_CONFIG_PATHS", "a.yaml,b.yaml", lambda w: w.config_paths == ("a.yaml", "b.yaml")),
        ("WANDB_REINIT", "create_new", lambda w: w.reinit == "create_new"),
        ("WANDB_ALLOW_VAL_CHANGE", "true", lambda w: w.allow_val_change is True),
        ("EVENTLOG_UPLOAD_RANKS", "all", lambda w: w.about["upload_ranks"] == "all"),
    ],
)
def test_a_variable_is_a_wish_that_nobody_has_without_it(variable: str, text: str, wish: Any):
    assert wish(wished({variable: text}))
    assert not wish(wished())


def test_an_argument_counts_more_than_a_setting_and_that_more_than_a_variable():
    environ = {"WANDB_NAME": "variable", "WANDB_NOTES": "variable", "WANDB_PROJECT": "variable"}

    asked = wished(environ, {"run_name": "setting", "run_notes": "setting"}, name="argument")

    assert (asked.name, asked.about["notes"], asked.project) == ("argument", "setting", "variable")


@pytest.mark.parametrize("name", ["project", "entity", "name", "notes", "group", "job_type"])
def test_a_blank_is_no_wish(name: str):
    asked = wished(**{name: ""})
    in_the_environment = wished({"WANDB_NAME": " ", "WANDB_NOTES": " ", "WANDB_RUN_GROUP": " "})

    assert asked == wished() == in_the_environment


def test_the_flag_that_nobody_gave_leaves_the_variable():
    assert wished({"WANDB_NAME": "of the job"}, name="").name == "of the job"


def test_the_words_of_a_variable_may_be_in_capitals():
    asked = wished({"WANDB_REINIT": "True", "WANDB_MODE": "OFFLINE", "WANDB_RESUME": "Allow"})

    assert (asked.reinit, asked.about["mode"], asked.resume) == ("finish_previous", "offline", "allow")


@pytest.mark.parametrize(
    "arguments",
    [{"tags": ["x" * 65]}, {"id": "a/b"}, {"id": "a "}, {"project": "a/b"}, {"project": "p" * 129}],
)
def test_what_wandb_will_refuse_is_said(arguments: dict[str, Any]):
    ((wish, sentence),) = wished(**arguments).not_done.items()

    assert next(iter(arguments)) in wish
    assert "W&B will refuse it" in sentence
    assert wished(**arguments, mode="disabled").not_done == {}


def test_disable_code_counts_more_than_save_code():
    assert wished({"WANDB_DISABLE_CODE": "true"}, save_code=True).save_code is False


def test_a_sweep_decides_project_entity_and_id():
    environ = {"WANDB_SWEEP_ID": "s", "WANDB_PROJECT": "of-the-sweep", "WANDB_RUN_ID": "its-id"}

    asked = wished(environ, {"entity": "mine"}, project="mine", id="mine")

    assert (asked.project, asked.entity, asked.run_id) == ("of-the-sweep", None, "its-id")
    assert sorted(asked.not_done) == ["init(entity='mine')", "init(id='mine')", "init(project='mine')"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"fork_from": "a?_step=3"},
        {"resume_from": "a?_step=3"},
        {"sync_tensorboard": True},
        {"monitor_gym": True},
        {"magic": True},
        {"anonymous": "allow"},
        {"mode": "shared"},
    ],
    ids=repr,
)
def test_what_is_not_done_has_a_sentence_that_says_what_to_do(arguments: dict[str, Any]):
    (said,) = wished(**arguments).not_done.items()

    assert next(iter(arguments)) in said[0]
    assert len(said[1]) > 30


@pytest.mark.parametrize(
    "arguments",
    [
        {"sync_tensorboard": False},
        {"anonymous": "never"},
        {"monitor_gym": False},
        {"force": True},
        {"mode": "online"},
    ],
    ids=repr,
)
def test_what_asks_for_nothing_is_not_spoken_of(arguments: dict[str, Any]):
    assert wished(**arguments).not_done == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resume": "must"}, "give its id"),
        ({"resume": "must", "id": "a", "fork_from": "b?_step=1"}, "exclude each other"),
        ({"resume_from": "a?_step=1", "fork_from": "b?_step=1"}, "exclude each other"),
        ({"allow_val_change": "perhaps"}, "true or false"),
        ({"reinit": "sometimes"}, "reinit is one of"),
    ],
    ids=repr,
)
def test_a_wrong_wish_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        wished(**arguments)


def test_settings_take_any_name_and_say_once_which_do_nothing(capsys: pytest.CaptureFixture[str]):
    settings = Settings(console="off", init_timeout=60, base_url="https://w.example", x_label="me")
    settings.run_name = "later"

    assert Settings.of(settings).run_name == "later"
    assert (settings.never_given, settings.console) == (None, "off")
    Settings.of(settings)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("=")[0] for line in said] == [
        "eventlog: Settings(base_url",
        "eventlog: Settings(x_label",
    ]
    assert "WANDB_BASE_URL" in said[0]


def test_the_settings_of_a_run_say_what_it_is(tmp_path: Path):
    run = eventlog.init(project="p", id="i", name="n", tags=["a"], group="g", root=tmp_path, mode="offline")

    found = run.settings
    assert (found.project, found.run_id, found.run_name, found.run_tags) == ("p", "i", "n", ("a",))
    assert (found.run_group, found.mode, found.root_dir) == ("g", "offline", str(tmp_path))


def test_git_is_left_alone_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parent)
    with_git = eventlog.init(project="p", root=tmp_path, quiet=True)
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    without = eventlog.init(project="p", root=tmp_path, quiet=True, reinit="create_new")

    assert start(with_git)["git"] is not None
    assert start(without)["git"] is None
    without.finish()


def test_facts_may_be_other_than_they_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_HOST", "node7")
    monkeypatch.setenv("WANDB_GIT_COMMIT", "c0ffee")
    monkeypatch.setenv("WANDB_GIT_REMOTE_URL", "https://me:secret@host/r.git")

    facts = start(eventlog.init(project="p", root=tmp_path, quiet=True))

    assert facts["host"] == "node7"
    assert facts["git"] == {"commit": "c0ffee", "remote": "https://host/r.git"}


# ── the config ───────────────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "lr:\n  value: 0.1\nwandb_version: 1\n",
        "lr: 0.1\n",
        "lr: {desc: null, value: 0.1}\n_wandb: {value: {t: 1}}\n",
    ],
    ids=["W&B's form", "plain", "as W&B makes it of a run"],
)
def test_a_config_file_may_have_wandbs_form_or_be_plain(tmp_path: Path, text: str):
    assert config_file(Path(write(tmp_path / "c.yaml", text))) == {"lr": 0.1}


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "wandb_version: 2\n", "\xff"], ids=repr)
def test_a_config_file_that_is_none_is_refused(tmp_path: Path, text: str):
    (tmp_path / "c.yaml").write_bytes(text.encode("latin-1"))

    with pytest.raises(ConfigError, match="config file"):
        as_config(str(tmp_path / "c.yaml"))


def test_the_layers_of_a_config_count_in_wandbs_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "config-defaults.yaml", "a: {value: 1}\nb: {value: 1}\nc: {value: 1}\nm: {value: {x: 1}}\n"
    )
    more = write(tmp_path / "more.yaml", "c: {value: 3}\n")
    sweep = write(tmp_path / "sweep.yaml", "d: {value: 4}\nm: {value: {y: 2}}\n")

    config, locked = layered({"b": 2, "c": 2, "d": 2}, [more], sweep)

    assert config == {"a": 1, "b": 2, "c": 3, "d": 4, "m": {"x": 1, "y": 2}}
    assert sorted(locked) == ["d", "m"]


def test_keys_are_included_or_excluded():
    assert chosen({"a": 1, "b": 2}, include=["a"]) == {"a": 1}
    assert chosen({"a": 1, "b": 2}, exclude=["a"]) == {"b": 2}
    with pytest.raises(UsageError, match="not both"):
        chosen({"a": 1}, ["a"], ["a"])


def test_a_config_that_holds_itself_is_kept(tmp_path: Path):
    config: dict[str, Any] = {"lr": 1}
    config["itself"] = config

    run = eventlog.init(project="p", root=tmp_path, config=config, quiet=True)

    assert start(run)["config"]["lr"] == 1


def test_flags_are_a_config():
    absl_flags = pytest.importorskip("absl.flags")
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_integer("batch", 8, "", flag_values=values)
    values(["program", "--batch=4"])

    assert as_config(values) == {"batch": 4}
    assert as_config(argparse.Namespace(FLAGS=values)) == {"batch": 4}


def test_allow_val_change_lets_a_config_change_all_along(tmp_path: Path):
    run = eventlog.init(project="p", root=tmp_path, config={"lr": 1}, allow_val_change=True, quiet=True)

    run.config["lr"] = 2

    assert run.config.lr == 2
    with pytest.raises(ConfigError):
        run.config.update({"lr": 3}, allow_val_change=False)


def test_what_a_sweep_has_set_stays_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", write(tmp_path / "sweep.yaml", "lr: {value: 0.5}\n"))
    run = eventlog.init(project="p", root=tmp_path, config={"lr": 0.1, "batch": 8}, quiet=True)
    capsys.readouterr()

    for _ in range(2):
        run.config.update({"lr": 0.7, "batch": 16}, allow_val_change=True)

    assert (run.config.lr, run.config.batch, run.sweep_id) == (0.5, 16, "s")
    assert (start(run)["config"]["lr"], start(run)["sweep_id"]) == (0.5, "s")
    assert capsys.readouterr().err.count("the sweep has set config 'lr'") == 1


def test_a_second_init_adds_what_is_new_to_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = eventlog.init(project="p", root=tmp_path, config={"lr": 1})

    again = eventlog.init(project="other", config={"lr": 2, "batch": 8})

    assert again is run
    assert dict(run.config) == {"lr": 1, "batch": 8}
    assert "returns that run" in capsys.readouterr().err
