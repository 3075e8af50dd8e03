"""Finds the API key for a W&B server, where W&B's own tools would: env, `.env`, netrc, wandb's settings.

The key is returned to who sends it and goes nowhere else: not into a log, an error, an argument or a record.
"""

from __future__ import annotations

import configparser
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_BASE_URL = "https://api.wandb.ai"


def load_dotenv(path: Path = Path(".env")) -> dict[str, str]:
    """Return the variables in a `.env` file; none if there is no such file."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and name.strip() and not name.startswith("#"):
            found[name.strip()] = value.strip().strip("'\"")
    return found


def base_url(environ: Mapping[str, str] | None = None) -> str:
    """Return the W&B server to sync to: `WANDB_BASE_URL`, else wandb's settings, else the service."""
    environ = _with_dotenv(environ)
    url = environ.get("WANDB_BASE_URL") or _setting(environ, "base_url") or DEFAULT_BASE_URL
    return url.rstrip("/")


def api_key(url: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the key for the server at `url`, or None if there is none anywhere."""
    environ = _with_dotenv(environ)
    return environ.get("WANDB_API_KEY") or _netrc_key(url, environ) or _setting(environ, "api_key")


def _with_dotenv(environ: Mapping[str, str] | None) -> Mapping[str, str]:
    environ = os.environ if environ is None else environ
    return {**load_dotenv(), **environ}


def _netrc_key(url: str, environ: Mapping[str, str]) -> str | None:
    host = urlsplit(url).hostname or ""
    home = Path(environ.get("HOME") or Path.home())
    for path in [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]:
        try:
            found = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return found[2]
    return None


def _setting(environ: Mapping[str, str], name: str) -> str | None:
    home = Path(environ.get("HOME") or Path.home())
    directory = Path(environ.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(directory / "settings")
    except (configparser.Error, UnicodeDecodeError):
        return None
    return parser.get("default", name, fallback=None)
