"""Where the key and the server come from, compared with W&B's own SDK."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from syncd import credentials
from syncd.credentials import api_key, base_url, load_dotenv

KEY, OTHER = "a1b2c3d4e5" * 4, "f6g7h8i9j0" * 4
SERVICE = "https://api.wandb.ai"
OWN = "http://wandb.example:8080"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that the command is typed in; `home` is below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("NETRC", "WANDB_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    # As in a process that has warned of nothing yet.
    credentials._warn_once.cache_clear()
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# -- the places ------------------------------------------------------------------------------------------------


def test_the_first_place_that_has_a_key_gives_it(here: Path, monkeypatch: pytest.MonkeyPatch):
    found = [api_key(SERVICE)]

    write(here / "home" / ".config" / "wandb" / "settings", "[default]\napi_key = of-the-users-settings\n")
    found.append(api_key(SERVICE))
    write(here / "wandb" / "settings", "[default]\napi_key = of-the-directorys-settings\n")
    found.append(api_key(SERVICE))
    write(here / "home" / ".netrc", "machine api.wandb.ai login user password of-netrc\n")
    found.append(api_key(SERVICE))
    write(here / ".env", "WANDB_API_KEY=of-dotenv\n")
    found.append(api_key(SERVICE))
    monkeypatch.setenv("WANDB_API_KEY", "of-the-environment")
    found.append(api_key(SERVICE))

    assert found == [
        None,
        "of-the-users-settings",
        "of-the-directorys-settings",
        "of-netrc",
        "of-dotenv",
        "of-the-environment",
    ]


def test_the_first_place_that_names_a_server_gives_it(here: Path, monkeypatch: pytest.MonkeyPatch):
    found = [base_url()]

    write(here / "home" / ".config" / "wandb" / "settings", "[default]\nbase_url = http://users/\n")
    found.append(base_url())
    write(here / "wandb" / "settings", "[default]\nbase_url = http://directorys\n")
    found.append(base_url())
    write(here / ".env", "WANDB_BASE_URL=http://dotenv\n")
    found.append(base_url())
    monkeypatch.setenv("WANDB_BASE_URL", " 'http://environment/' ")
    found.append(base_url())

    assert found == [SERVICE, "http://users", "http://directorys", "http://dotenv", "http://environment"]


def test_a_variable_that_is_set_to_nothing_hides_nothing(here: Path, monkeypatch: pytest.MonkeyPatch):
    write(here / ".env", f"WANDB_API_KEY={KEY}\n")
    monkeypatch.setenv("WANDB_API_KEY", "")

    assert api_key(SERVICE) == KEY


def test_a_rotated_key_counts_at_once(here: Path):
    write(here / ".env", f"WANDB_API_KEY={KEY}\n")
    before = api_key(SERVICE)

    write(here / ".env", f"WANDB_API_KEY={OTHER}\n")

    assert (before, api_key(SERVICE)) == (KEY, OTHER)


def test_the_environments_directories_are_looked_at(here: Path):
    write(here / "elsewhere" / "settings", f"[default]\napi_key = {KEY}\n")
    write(here / "project" / ".wandb" / "settings", f"[default]\napi_key = {OTHER}\n")

    config = api_key(SERVICE, {"WANDB_CONFIG_DIR": str(here / "elsewhere")})
    directory = api_key(SERVICE, {"WANDB_DIR": str(here / "project")})

    assert (config, directory) == (KEY, OTHER)


# -- a key is for one server -----------------------------------------------------------------------------------


def test_a_key_in_netrc_goes_to_its_own_server_alone(here: Path):
    write(here / "home" / ".netrc", f"machine api.wandb.ai login user password {KEY}\n")

    assert api_key(SERVICE) == KEY
    assert api_key(OWN) is None
    assert api_key("https://api.wandb.ai.example") is None


def test_a_key_in_the_settings_goes_to_their_own_server_alone(here: Path):
    write(here / "wandb" / "settings", f"[default]\nbase_url = {OWN}/\napi_key = {KEY}\n")

    assert api_key(OWN) == KEY
    assert api_key(SERVICE) is None


@pytest.mark.parametrize(
    "text",
    [
        f"machine api.wandb.ai\n  login user\n  password {KEY}\nmachine wandb.example:8080 login user password {OTHER}\n",
        f"default login user password {KEY}\n",
        f"machine github.com login me password x\nmachine 'wandb.example:8080' login user password '{KEY}'\n",
        "machine api.wandb.ai login user\n",
        f"# a comment\nmachine api.wandb.ai login user password {KEY} # and another\n",
        f"machine api.wandb.ai nonsense {KEY}\n",
        "",
    ],
)
@pytest.mark.parametrize("url", [SERVICE, OWN])
def test_netrc_is_read_as_the_sdk_reads_it(here: Path, text: str, url: str):
    from wandb.sdk.lib.wbauth.wbnetrc import read_netrc_auth

    write(here / "home" / ".netrc", text)

    assert api_key(url) == read_netrc_auth(host=url)


def test_an_older_sdks_netrc_names_the_server_without_its_port(here: Path):
    write(here / "home" / "_netrc", f"machine wandb.example login user password {KEY}\n")

    assert api_key(OWN) == KEY


# -- what is in the files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("X=plain", "plain"),
        ("export X = spaced out ", "spaced out"),
        ("X='single # quoted'", "single # quoted"),
        ('X="double # quoted"  # comment', "double # quoted"),
        ("X=value # comment", "value"),
        ("X=value#no-comment", "value#no-comment"),
        ("X= # comment", ""),
        ("X=a=b", "a=b"),
        ("X=local-" + KEY, "local-" + KEY),
        ("# X=commented out", None),
        ("X", None),
        ("= value", None),
        ("\ufeffX=after a byte order mark", "after a byte order mark"),
    ],
)
def test_a_line_of_dotenv(here: Path, line: str, value: str | None):
    write(here / ".env", f"{line}\r\nLAST=1\n")

    found = load_dotenv()

    assert found.get("X") == value
    assert found["LAST"] == "1"


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY} ", f'"{KEY}"'])
def test_what_a_shell_leaves_around_a_key_is_no_part_of_it(key: str):
    assert api_key(SERVICE, {"WANDB_API_KEY": key}) == KEY


@pytest.mark.parametrize(
    "key", [f"{KEY}\n{OTHER}", f"{KEY} {OTHER}", "schlüssel" * 5, "\x00" + KEY, "\udce4" * 40]
)
def test_a_key_that_can_be_none_is_not_sent_nor_another_in_its_place(
    here: Path, caplog: pytest.LogCaptureFixture, key: str
):
    write(here / "home" / ".netrc", f"machine api.wandb.ai login user password {OTHER}\n")
    caplog.set_level(logging.WARNING)

    found = [api_key(SERVICE, {"WANDB_API_KEY": key}) for _ in range(3)]

    assert found == [None, None, None]
    assert caplog.text.count("WANDB_API_KEY") == 1
    assert key not in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("home/.netrc", f"machine api.wandb.ai {KEY}\n"),
        ("home/.netrc", f"password {KEY}"),
        ("home/.config/wandb/settings", f"api_key = {KEY}\n"),
        ("wandb/settings", f"[default]\n{KEY}\n"),
    ],
)
def test_a_damaged_file_is_left_out_with_one_warning_that_does_not_quote_it(
    here: Path, caplog: pytest.LogCaptureFixture, name: str, text: str
):  # faults: 96
    write(here / name, text)

    found = [api_key(SERVICE) for _ in range(3)]

    assert found == [None, None, None]
    (warning,) = caplog.messages
    assert name in warning
    assert KEY not in caplog.text


def test_bytes_that_are_no_text_break_nothing(here: Path):
    for name in (".env", "home/.netrc", "wandb/settings"):
        write(here / name, "")
        (here / name).write_bytes(b"\xff\xfe\x00[default\x80")

    assert api_key(SERVICE) is None


def test_a_directory_or_a_pipe_of_that_name_is_somebody_elses(here: Path, caplog: pytest.LogCaptureFixture):
    (here / ".env").mkdir()
    (here / "home").mkdir()
    os.mkfifo(here / "home" / ".netrc")

    assert api_key(SERVICE) is None
    assert caplog.messages == []


def test_an_identity_token_is_said_to_be_of_no_use(caplog: pytest.LogCaptureFixture):
    assert api_key(SERVICE, {"WANDB_IDENTITY_TOKEN_FILE": "/token"}) is None
    assert "WANDB_IDENTITY_TOKEN_FILE" in caplog.text
