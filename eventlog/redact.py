"""Keeps credentials out of the log: decides what looks like one, and what stands there instead.

Invariants
----------
* A value goes by its name (`api_key`, `password`, …) or for being the W&B key of this process, wherever it stands.
* What trainers call tokens (`max_tokens`, `pad_token`, `tokenizer`) stays.

This is a net under a mistake, not a licence to log secrets: a key under an innocent name is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "[redacted]"
# Shorter than this, a "key" is a placeholder, and removing it everywhere would garble innocent text.
_KEY_MIN_CHARS = 8
_DEPTH_MAX = 20
_SECRET = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secret|secrets|credential|credentials|apikey|api_key|access_key|"
    r"private_key|secret_key|auth_token|access_token|bearer|authorization)(?:_|$)"
)
_TOKEN = re.compile(r"(?:^|_)token$")
# A credential is one long word; `<|endoftext|>` and `[PAD]` are not.
_LOOKS_SECRET = re.compile(r"[A-Za-z0-9._~+/=:-]{16,}")
_ASSIGNMENT = re.compile(r"(?P<name>-{0,2}\+{0,2}[A-Za-z0-9_.\-/]+)=(?P<value>.*)", re.DOTALL)
_CREDENTIALS_IN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/@\s]+@", re.IGNORECASE)


def looks_secret(name: str, value: object) -> bool:
    """Say whether `value`, under that name, is a credential.

    >>> looks_secret("wandb_api_key", "0123"), looks_secret("hf-token", "hf_abcdefghijklmnop")
    (True, True)
    >>> looks_secret("max_token", 4096), looks_secret("pad_token", "<|endoftext|>")
    (False, False)
    """
    if not isinstance(value, (str, bytes)) or not value:
        return False
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    words = re.sub(r"[^A-Za-z0-9]+", "_", words).lower()
    if _SECRET.search(words):
        return True
    return (
        _TOKEN.search(words) is not None
        and isinstance(value, str)
        and _LOOKS_SECRET.fullmatch(value) is not None
    )


def redacted(value: Any, depth: int = 0) -> Any:
    """Return `value`, with the secrets in its mappings replaced; it is itself if there are none.

    >>> redacted({"lr": 1e-6, "judge": {"api_key": "sk-1", "url": "https://me:pw@host/v1"}})
    {'lr': 1e-06, 'judge': {'api_key': '[redacted]', 'url': 'https://host/v1'}}
    """
    if isinstance(value, str):
        return without_credentials(value)
    if depth > _DEPTH_MAX:
        return value
    if isinstance(value, Mapping):
        return {
            key: REDACTED if looks_secret(str(key), item) else redacted(item, depth + 1)
            for key, item in value.items()
        }
    if type(value) in (list, tuple):
        return [redacted(item, depth + 1) for item in value]
    return value


def redacted_argv(argv: Sequence[str]) -> list[str]:
    """Return a command line without its secrets.

    >>> redacted_argv(["train.py", "--lr", "1e-6", "--api-key", "sk-1", "wandb.api_key=sk-2", "--max-tokens=9"])
    ['train.py', '--lr', '1e-6', '--api-key', '[redacted]', 'wandb.api_key=[redacted]', '--max-tokens=9']
    """
    clean: list[str] = []
    flag = ""
    for argument in argv:
        assignment = _ASSIGNMENT.fullmatch(argument)
        if flag and not argument.startswith("-") and looks_secret(flag, argument):
            clean.append(REDACTED)
        elif assignment and looks_secret(assignment["name"], assignment["value"]):
            clean.append(f"{assignment['name']}={REDACTED}")
        else:
            clean.append(without_credentials(argument))
        flag = argument if argument.startswith("-") and "=" not in argument else ""
    return clean


def without_credentials(text: str) -> str:
    """Return `text` without the user and password of the URLs in it.

    >>> without_credentials("https://me:ghp_abc@github.com/me/repo.git")
    'https://github.com/me/repo.git'
    """
    if "://" not in text:
        return text
    return _CREDENTIALS_IN_URL.sub(r"\g<scheme>", text)


def without_key(encoded: bytes, api_key: str | None) -> bytes:
    """Return encoded JSON in which the literal key does not occur.

    >>> without_key(b'{"cmd":"login abcdef0123"}', "abcdef0123")
    b'{"cmd":"login [redacted]"}'
    """
    if not api_key or len(api_key) < _KEY_MIN_CHARS:
        return encoded
    return encoded.replace(api_key.encode("utf-8", "surrogateescape"), REDACTED.encode())
