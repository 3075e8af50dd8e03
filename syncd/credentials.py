"""Finds the W&B server and the API key for it, where W&B's own tools would.

    WANDB_API_KEY ──▶ ./.env ──▶ netrc ──▶ ./wandb/settings ──▶ ~/.config/wandb/settings     the first that has one
    WANDB_BASE_URL ─▶ ./.env ────────────▶ ./wandb/settings ──▶ ~/.config/wandb/settings ──▶ the service

Invariants
----------
* The key is returned to who sends it and goes nowhere else: not into a log, an error, an argument or a record.
* A key that a file keeps for one server is never returned for another.
* A file that cannot be read is left out, with one warning that names it and never what it holds.

Nothing is remembered: a rotated key counts from the next request on.  A look costs 0.1 ms.
Identity tokens (WANDB_IDENTITY_TOKEN_FILE) are not understood.
"""

from __future__ import annotations

import configparser
import functools
import logging
import netrc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from eventlog.dotenv import variables_in

log = logging.getLogger("syncd")

DEFAULT_BASE_URL = "https://api.wandb.ai"


def load_dotenv(path: Path = Path(".env")) -> dict[str, str]:
    """Return the variables in a `.env` file; none if there is no such file."""
    return variables_in(_text_of(path))


def base_url(environ: Mapping[str, str] | None = None) -> str:
    """Return the W&B server to sync to: `WANDB_BASE_URL`, else wandb's settings, else the service."""
    environ = os.environ if environ is None else environ
    urls = [url for _, url in _variable(environ, "WANDB_BASE_URL")]
    urls += [_bare(settings["base_url"]) for _, settings in _settings(environ) if "base_url" in settings]
    return next((url.rstrip("/") for url in urls if url), DEFAULT_BASE_URL)


def api_key(url: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the key for the server at `url`; None if there is none, or the first that there is can be no key."""
    environ = os.environ if environ is None else environ
    for place, key in _keys(url, environ):
        if not key:
            continue
        if key.isascii() and key.isprintable() and " " not in key:
            return key
        # Not the next place's: that key may be another person's.
        _warn_once(f"the API key in {place} holds characters that no key has: write it anew.")
        return None
    if environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        _warn_once(
            "WANDB_IDENTITY_TOKEN_FILE is not supported here: set WANDB_API_KEY, or run `wandb login`."
        )
    return None


def _keys(url: str, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each place with a key for that server, and the key, the most important first."""
    yield from _variable(environ, "WANDB_API_KEY")
    yield from _netrc_keys(url, environ)
    for path, settings in _settings(environ):
        if _bare(settings.get("base_url", url)).rstrip("/") == url.rstrip("/"):
            yield str(path), _bare(settings.get("api_key", ""))


def _variable(environ: Mapping[str, str], name: str) -> Iterator[tuple[str, str]]:
    yield name, _bare(environ.get(name, ""))
    yield f"{name} of .env", _bare(load_dotenv().get(name, ""))


def _netrc_keys(url: str, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    home = _home(environ)
    paths = (
        [Path(environ["NETRC"]).expanduser()] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    )
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        return
    try:
        machines = netrc.netrc(str(path)).hosts
    except netrc.NetrcParseError as error:
        # Not in its words: they quote what it stumbled over, which may be a password.
        _warn_once(f"{path} is left out: line {error.lineno} is not what a netrc file holds.")
        return
    except (OSError, UnicodeError) as error:
        _warn_once(f"{path} is left out: it cannot be read ({type(error).__name__}).")
        return
    # `wandb login` writes the port too; it did not always.
    netloc = urlsplit(url).netloc.rpartition("@")[2]
    for machine in (netloc, netloc.partition(":")[0], "default"):
        if machine in machines:
            yield str(path), machines[machine][2] or ""


def _settings(environ: Mapping[str, str]) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Yield wandb's settings files that there are, the directory's before the user's."""
    here = Path(environ.get("WANDB_DIR") or ".").expanduser()
    directories = [
        here / (".wandb" if (here / ".wandb").exists() else "wandb"),
        Path(environ.get("WANDB_CONFIG_DIR") or _home(environ) / ".config" / "wandb").expanduser(),
    ]
    for directory in directories:
        path = directory / "settings"
        text = _text_of(path)
        if not text:
            continue
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(text)
        except configparser.Error:
            _warn_once(f"{path} is left out: it is not a settings file of wandb's.")
            continue
        if parser.has_section("default"):
            yield path, parser["default"]


def _text_of(path: Path) -> str:
    # A pipe or a directory of that name is somebody else's.
    if not os.path.isfile(path):
        return ""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        _warn_once(f"{path} is left out: it cannot be read ({type(error).__name__}).")
        return ""


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())


def _bare(text: str) -> str:
    """Take off what shells, secrets and env files leave around a value.

    >>> _bare(' "abc" ')
    'abc'
    """
    return text.strip().strip("'\"").strip()


@functools.cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)
