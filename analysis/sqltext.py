"""SQL as text: how a value and a name are written in it, and its tokens, its end, and references like `config.lr`.

Invariants
----------
* What stands in quotes or in a comment is never taken for anything else.
* Any text has tokens, and they add up to it: what is wrong with it is DuckDB's to say.

There is no connection here: what a reference means is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

# A quote that is not closed goes to the end of the text, as the reader of an unfinished line sees it.
_TOKEN = re.compile(
    r"""
    (?P<space>\s+ | --[^\n]* | /\*.*?(?:\*/|\Z))
  | (?P<text>[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z) | '(?:[^']|'')*(?:'|\Z) | (?P<dollar>\$\w*\$).*?(?:(?P=dollar)|\Z))
  | (?P<quoted>"(?:[^"]|"")*(?:"|\Z))
  | (?P<number>(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<word>[^\W\d]\w*)
  | (?P<comparison>[<>=!]+)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMPARING = {"like", "ilike", "in", "between"}


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str

    @property
    def name(self) -> str:
        """What a quoted name says."""
        return self.text[1:-1].replace('""', '"') if self.kind == "quoted" else self.text


@dataclass(frozen=True, slots=True)
class Reference:
    """`config.optimizer.lr`: a column, and the path of a key in it; and what literal it is compared with, if with one."""

    column: str
    path: tuple[str, ...]
    compared_with: str | None = None
    """`number`, `text` or `bool`."""

    @property
    def shown(self) -> str:
        return f"{self.column}.{'.'.join(self.path)}"


def literal(value: str) -> str:
    """
    >>> literal("it's")
    "'it''s'"
    """
    return "'" + value.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """
    >>> identifier('a "b" c')
    '"a ""b"" c"'
    """
    return '"' + name.replace('"', '""') + '"'


def tokens(text: str) -> list[Token]:
    """
    >>> [token.text for token in tokens("a.b >= 'it''s' -- why")]
    ['a', '.', 'b', ' ', '>=', ' ', "'it''s'", ' ', '-- why']
    """
    return [Token(match.lastgroup or "other", match[0]) for match in _TOKEN.finditer(text)]


def is_complete(text: str) -> bool:
    """Return whether the statement that is being typed has ended, so that Enter may run it.

    >>> is_complete("SELECT 1;"), is_complete("SELECT 1"), is_complete("SELECT ';"), is_complete("SELECT 1; -- one")
    (True, False, False, True)
    """
    said = [token for token in tokens(text) if token.kind != "space"]
    return not said or said[-1].text == ";"


def open_quote(text: str) -> str | None:
    """Return what was typed behind a quote that is still open, or None.

    >>> open_quote("SELECT * FROM curve('base"), open_quote("SELECT 'a'")
    ('base', None)
    """
    found = tokens(text)
    if not found or found[-1].kind != "text" or not found[-1].text.startswith("'"):
        return None
    inner = found[-1].text[1:]
    return None if inner.endswith("'") and inner.count("'") % 2 else inner


def with_references(text: str, sql_of: Callable[[Reference], str], columns: tuple[str, ...]) -> str:
    """Return the condition with each reference into one of the JSON `columns` in its SQL.

    >>> with_references("config.lr > 1e-5 AND name = 'config.lr'", lambda found: f"<{found.shown}>", ("config",))
    "<config.lr> > 1e-5 AND name = 'config.lr'"
    """
    found = tokens(text)
    result: list[str] = []
    at = 0
    while at < len(found):
        begin = at
        if found[at].text.lower() == "runs" and _is(found, at + 1, "."):
            at += 2
        end = _end_of_reference(found, at, columns)
        if end is None or (begin and found[begin - 1].text == "."):
            result.append(found[begin].text)
            at = begin + 1
            continue
        path = tuple(token.name for token in found[at + 2 : end : 2])
        result.append(sql_of(Reference(found[at].text.lower(), path, _compared_with(found, begin, end))))
        at = end
    return "".join(result)


def _end_of_reference(found: list[Token], at: int, columns: tuple[str, ...]) -> int | None:
    if at >= len(found) or found[at].text.lower() not in columns:
        return None
    end = at + 1
    while _is(found, end, ".") and end + 1 < len(found) and found[end + 1].kind in ("word", "quoted"):
        end += 2
    return end if end > at + 1 else None


def _is(found: list[Token], at: int, text: str) -> bool:
    return at < len(found) and found[at].text == text


def _compared_with(found: list[Token], begin: int, end: int) -> str | None:
    after = [token for token in found[end:] if token.kind != "space" and token.text not in "(-"][:3]
    before = [token for token in found[:begin] if token.kind != "space"][-2:][::-1]
    if after and after[0].text.lower() == "not":
        after = after[1:]
    for pair in (after[:2], before):
        if len(pair) == 2 and (pair[0].kind == "comparison" or pair[0].text.lower() in _COMPARING):
            if pair[1].text.lower() in ("true", "false"):
                return "bool"
            if pair[1].kind in ("number", "text"):
                return pair[1].kind
    return None
