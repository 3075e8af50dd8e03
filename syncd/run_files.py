"""Makes the files that W&B's pages expect of every run: what it was run with, and on what.

    config (metadata) ──▶ config.yaml, wandb-metadata.json

Invariants
----------
* They say what the config said that was sent beside the lines, and nothing else.
* The same config gives the same bytes, in the layout of W&B's SDK: a reader of its files reads ours.

Pure.  `output.log` is made by `console`, and `wandb-summary.json` is the summary as it was sent; `requirements.txt` and
`diff.patch` are logged like any other file.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

CONFIG, METADATA = "config.yaml", "wandb-metadata.json"
_INDENT = 4
# What some reader of YAML 1.1 or 1.2 takes for something other than text.
_NO_TEXT = re.compile(
    r"""~|null|true|false|yes|no|on|off|y|n|=|<<
    |[-+]?\.(inf|nan)
    |[-+]?0(x[\da-f_]+|o?[0-7_]+|b[01_]+)
    |[-+]?(?=[\d_.]*\d)[\d_]*\.?[\d_]*(e[-+]?\d+)?
    |[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?
    |\d{4}-\d\d?-\d\d?.*""",
    re.IGNORECASE | re.VERBOSE,
)
_NEEDS_QUOTES = re.compile(r"[\s,\[\]{}#&*!|>'\"%@`]|[-?:](\s|$)|(---|\.\.\.)|.*(\s$|:(\s|$)|\s#)", re.DOTALL)
_NEEDS_ESCAPES = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd]|[\u2028\u2029]")
_PART = re.compile(r"\d+|.", re.DOTALL)


def metadata_json(config: dict[str, Any]) -> str:
    """Return what the config says of the environment, as W&B's Overview page wants it."""
    (environment,) = config["_wandb"]["value"]["e"].values()
    return json.dumps(environment, ensure_ascii=False, indent=2)


def config_yaml(config: dict[str, Any]) -> str:
    r"""Return an object of JSON values as YAML.

    >>> print(config_yaml({"steps": [1, {"a": "yes"}], "lr": 1e-6, "note": "two\nlines"}), end="")
    lr: 1e-06
    note: "two\nlines"
    steps:
        - 1
        - a: "yes"
    """
    return "".join(f"{line}\n" for line in _block(config, 0)) if config else "{}\n"


def _block(value: Any, indent: int) -> list[str]:
    """Return a filled object or list as lines; the first one's indentation is left to the caller."""
    pad = " " * indent
    if isinstance(value, dict):
        # The next stop, even if a list has shifted this object by its dash.
        below = _INDENT * (indent // _INDENT + 1)
        lines = [
            line
            for key in sorted(value, key=_order)
            for line in _entry(f"{pad}{_text(key)}:", value[key], below)
        ]
    else:
        lines = [line for item in value for line in _item(f"{pad}-", item, indent + 2)]
    return lines


def _entry(head: str, value: Any, indent: int) -> list[str]:
    if isinstance(value, dict | list) and value:
        return [head, *_block(value, indent)]
    return [f"{head} {_scalar(value)}"]


def _item(head: str, value: Any, indent: int) -> list[str]:
    if isinstance(value, dict | list) and value:
        first, *others = _block(value, indent)
        return [f"{head} {first.lstrip(' ')}", *others]
    return [f"{head} {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return _number(value)
    # JSON's words for these are YAML's as well.
    return json.dumps(value)


def _text(text: str) -> str:
    if _NEEDS_ESCAPES.search(text):
        return _NEEDS_ESCAPES.sub(_escaped, json.dumps(text, ensure_ascii=False))
    if not text or _NO_TEXT.fullmatch(text):
        return json.dumps(text, ensure_ascii=False)
    return "'{}'".format(text.replace("'", "''")) if _NEEDS_QUOTES.match(text) else text


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _number(value: float) -> str:
    """Return a float as Go writes it.

    >>> [_number(x) for x in (1.0, 250000.0, 1234567.0, 1e-5, -0.0, float("-inf"))]
    ['1', '250000', '1.234567e+06', '1e-05', '-0', '-.inf']
    """
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    number = Decimal(repr(value)).normalize()
    if -4 <= number.adjusted() < 6:
        return f"{number:f}"
    mantissa = number.scaleb(-number.adjusted())
    return f"{mantissa:f}e{number.adjusted():+03d}"


def _order(key: str) -> list[tuple[int, int]]:
    """Sort as the SDK does: signs, numbers by their value, letters."""
    return [
        (1, int(part)) if part.isdecimal() else (2 if part.isalpha() else 0, ord(part))
        for part in _PART.findall(key)
    ]
