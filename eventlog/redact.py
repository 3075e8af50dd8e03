"""Keeps credentials out of the log: decides what looks like one, and what stands there instead.

Invariants
----------
* A value goes by its name (`api_key`, `password`, …), as a text or as a whole list or mapping, however deep it stands.
* The W&B key of this process goes wherever it stands, in any record and in what is made into a file here.
* What trainers call tokens (`max_tokens`, `pad_token`, `tokenizer`) stays.

This is a net under a mistake, not a licence to log secrets: a key under an innocent name is not seen, unless it looks
like those of a service that is known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import orjson

from eventlog.record import DEPTH_MAX, TextMark

REDACTED = "[redacted]"
# Shorter than this, a "key" is a placeholder, and removing it everywhere would garble innocent text.
_KEY_MIN_CHARS = 8
_SERVICES = (
    "wandb|hf|hub|huggingface|openai|anthropic|azure|aws|gcp|google|gemini|mistral|cohere|groq|openrouter|github|gh|"
    "gitlab|slack|discord|telegram|kaggle|comet|neptune|mlflow|databricks|ngrok|sentry|npm|pypi"
)
_SECRET = re.compile(
    r"(?:^|_)(?:passwords?|passwd|passphrase|secrets?|credentials?|creds|api_?keys?|access_keys?|"
    r"private_keys?|secret_keys?|auth_tokens?|access_tokens?|refresh_tokens?|bearer|authorization)(?:_|$)"
)
# Names that are a secret's where a text stands there; a list or a number under them is something else.
_SECRET_TEXT = re.compile(rf"(?:^|_)(?:(?:auth|pass)$|(?:{_SERVICES})_(?:key|token)s?(?:_|$))")
_PLACEHOLDER = re.compile(r"<.*>|\[.*\]")
_TOKEN = re.compile(r"(?:^|_)tokens?$")
# A credential is one long word; `<|endoftext|>` and `[PAD]` are not.
_LOOKS_SECRET = re.compile(r"[A-Za-z0-9._~+/=:-]{16,}")
_ASSIGNMENT = re.compile(r"(?P<name>-{0,2}\+{0,2}[A-Za-z0-9_.\-/]+)=(?P<value>.*)", re.DOTALL)
# Up to the last @: a password may have one.
_CREDENTIALS_IN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/?#\s\"'<>]*@", re.IGNORECASE)
_IN_QUERY = re.compile(r"(?P<begin>[?&](?P<name>[A-Za-z0-9_.\-]+)=)(?P<value>[^&#\s\"'<>]+)")
_IN_HEADER = re.compile(
    r"(?P<begin>\b(?:bearer|authorization:\s*[a-z]+)\s+)[A-Za-z0-9._~+/=-]{12,}", re.IGNORECASE
)
# Keys that say themselves whose they are; each begins with one of these.
_PREFIXES = ("sk-", "hf_", "ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "xox", "AKIA", "AIza")
_OF_A_SERVICE = re.compile(
    r"\b(?:sk-(?:proj|ant|or|svcacct|admin)-[\w-]{16,}|sk-[A-Za-z0-9]{32,}|hf_[A-Za-z0-9]{16,}|gh[pos]_[A-Za-z0-9]{20,}|"
    r"github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,})"
)


def looks_secret(name: str, value: object) -> bool:
    """Say whether `value`, under that name, is a credential.

    >>> looks_secret("wandb_api_key", "0123"), looks_secret("hf-token", "short"), looks_secret("secrets", ["0123"])
    (True, True, True)
    >>> looks_secret("max_token", 4096), looks_secret("pad_token", "<|endoftext|>"), looks_secret("tokens", [1, 2])
    (False, False, False)
    """
    if not isinstance(value, (str, bytes, Mapping, Sequence, Set)) or not value:
        return False
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    words = re.sub(r"[^A-Za-z0-9]+", "_", words).lower()
    if _SECRET.search(words):
        return True
    if not isinstance(value, (str, bytes)):
        return False
    if _SECRET_TEXT.search(words):
        return not (isinstance(value, str) and _PLACEHOLDER.fullmatch(value))
    return (
        _TOKEN.search(words) is not None
        and isinstance(value, str)
        and _LOOKS_SECRET.fullmatch(value) is not None
    )


def redacted(value: Any) -> Any:
    """Return `value`, with the secrets in it replaced; it is itself if there are none.

    >>> redacted({"lr": 1e-6, "judge": {"api_key": "sk-1", "url": "https://me:pw@host/v1"}})
    {'lr': 1e-06, 'judge': {'api_key': '[redacted]', 'url': 'https://host/v1'}}
    >>> redacted({"tokens": {"hub": "0123456789abcdef", "pad": "[PAD]"}})
    {'tokens': {'hub': '[redacted]', 'pad': '[PAD]'}}
    """
    return _redacted(value, "", frozenset())


def _redacted(value: Any, name: str, above: frozenset[int]) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    # What holds itself is passed on, for the record to mark. So is what is too deep for a record.
    if id(value) in above or len(above) >= DEPTH_MAX:
        return value
    above |= {id(value)}
    if isinstance(value, Mapping):
        # The tokens of several services may stand under one name.
        is_of_tokens = _TOKEN.search(name.lower()) is not None
        clean = {}
        for key, item in value.items():
            is_secret = looks_secret(str(key), item) or (is_of_tokens and looks_secret("token", item))
            shown = REDACTED if is_secret else _redacted(item, str(key), above)
            clean[without_secrets(key) if isinstance(key, str) else key] = shown
        return clean
    if type(value) in (list, tuple, set, frozenset):
        return [_redacted(item, "", above) for item in value]
    return value


def redacted_argv(argv: Sequence[str]) -> list[str]:
    """Return a command line without its secrets.

    >>> redacted_argv(["train.py", "--lr", "1e-6", "--api-key", "sk-1", "wandb.api_key=sk-2", "--max-tokens=9"])
    ['train.py', '--lr', '1e-6', '--api-key', '[redacted]', 'wandb.api_key=[redacted]', '--max-tokens=9']
    >>> redacted_argv(["--config", '{"api_key": "sk-1"}', "-H", "Authorization: Bearer 0123456789ab"])
    ['--config', '{"api_key": "[redacted]"}', '-H', 'Authorization: Bearer [redacted]']
    """
    clean: list[str] = []
    flag = ""
    for argument in argv:
        assignment = _ASSIGNMENT.fullmatch(argument)
        if flag and not _is_flag(argument) and looks_secret(flag, argument):
            clean.append(REDACTED)
        elif assignment and looks_secret(assignment["name"], assignment["value"]):
            clean.append(f"{assignment['name']}={REDACTED}")
        elif assignment:
            clean.append(f"{assignment['name']}={_redacted_argument(assignment['value'])}")
        else:
            clean.append(_redacted_argument(argument))
        flag = argument if argument.startswith("-") and "=" not in argument else ""
    return clean


def _is_flag(argument: str) -> bool:
    # A longer word after one dash may be the secret itself.
    return argument.startswith("--") or (argument.startswith("-") and len(argument) <= 3)


def _redacted_argument(argument: str) -> str:
    if argument.lstrip()[:1] in ("{", "["):
        try:
            parsed = json.loads(argument)
        except (ValueError, RecursionError):
            return without_secrets(argument)
        clean = redacted(parsed)
        return argument if clean == parsed else json.dumps(clean, ensure_ascii=False)
    return without_secrets(argument)


def without_secrets(text: str) -> str:
    """Return `text` without what says by itself that it is a secret: in URLs, in headers, or of a known service.

    >>> without_secrets("curl -H 'Authorization: Bearer abcdefgh0123' 'https://host/v1?api_key=0123&n=5'")
    "curl -H 'Authorization: Bearer [redacted]' 'https://host/v1?api_key=[redacted]&n=5'"
    """
    if "://" in text:
        text = _IN_QUERY.sub(_without_value, without_credentials(text))
    if "earer" in text or "EARER" in text or "uthorization" in text:
        text = _IN_HEADER.sub(rf"\g<begin>{REDACTED}", text)
    if any(prefix in text for prefix in _PREFIXES):
        text = _OF_A_SERVICE.sub(REDACTED, text)
    return text


def _without_value(found: re.Match[str]) -> str:
    return found["begin"] + REDACTED if looks_secret(found["name"], found["value"]) else found[0]


def without_credentials(text: str) -> str:
    """Return `text` without the user and password of the URLs in it.

    >>> without_credentials("https://me:ghp_abc@github.com/me/repo.git")
    'https://github.com/me/repo.git'
    """
    if "://" not in text:
        return text
    return _CREDENTIALS_IN_URL.sub(r"\g<scheme>", text)


def key_in_bytes(api_key: str | None) -> bytes | None:
    """Return what to look for in what is written, or None if that is no key."""
    if not api_key or len(api_key) < _KEY_MIN_CHARS:
        return None
    return api_key.encode("utf-8", "surrogateescape")


def without_key(content: bytes, key: bytes | None) -> bytes:
    """Return content in which the literal key does not occur.

    >>> without_key(b'{"cmd":"login abcdef0123"}', key_in_bytes("abcdef0123"))
    b'{"cmd":"login [redacted]"}'
    """
    return content if key is None else content.replace(key, REDACTED.encode())


def marks_without_key(as_text: list[TextMark], key: bytes | None) -> list[TextMark]:
    """Return the marks of data that `without_key` has been over."""
    marks: list[TextMark] = orjson.loads(without_key(orjson.dumps(as_text), key))
    return marks
