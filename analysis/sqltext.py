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
_QUERY = {"select", "from", "with", "values"}


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
    is_negated: bool = False
    """Whether by `<>`, `NOT IN` and the like, which hold for what is unlike."""

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

    In a query within it, `config.key` is a column of what that one is about.

    >>> def sql_of(found): return f"<{found.shown}>"
    >>> with_references("config.lr > 1e-5 AND name = 'config.lr'", sql_of, ("config",))
    "<config.lr> > 1e-5 AND name = 'config.lr'"
    >>> with_references("run_id IN (FROM config SELECT run_id WHERE (config.key) = 'lr') OR (config.lr) > 1", sql_of, ("config",))
    "run_id IN (FROM config SELECT run_id WHERE (config.key) = 'lr') OR (<config.lr>) > 1"
    """
    found = tokens(text)
    result: list[str] = []
    at = 0
    while at < len(found):
        begin = at
        if end := _end_of_query(found, at):
            result += [token.text for token in found[at:end]]
            at = end
            continue
        if found[at].text.lower() == "runs" and _is(found, at + 1, "."):
            at += 2
        end = _end_of_reference(found, at, columns)
        if end is None or (begin and found[begin - 1].text == "."):
            result.append(found[begin].text)
            at = begin + 1
            continue
        path = tuple(token.name for token in found[at + 2 : end : 2])
        result.append(sql_of(Reference(found[at].text.lower(), path, *_compared_with(found, begin, end))))
        at = end
    return "".join(result)


def _end_of_query(found: list[Token], at: int) -> int | None:
    """Return where the parentheses end that open at `at`, if a query is in them."""
    said = (token.text.lower() for token in found[at + 1 :] if token.kind != "space")
    if found[at].text != "(" or next(said, None) not in _QUERY:
        return None
    depth = 0
    for end in range(at, len(found)):
        depth += {"(": 1, ")": -1}.get(found[end].text, 0)
        if not depth:
            return end + 1
    return len(found)


def _end_of_reference(found: list[Token], at: int, columns: tuple[str, ...]) -> int | None:
    if at >= len(found) or found[at].text.lower() not in columns:
        return None
    end = at + 1
    while _is(found, end, ".") and end + 1 < len(found) and found[end + 1].kind in ("word", "quoted"):
        end += 2
    return end if end > at + 1 else None


def _is(found: list[Token], at: int, text: str) -> bool:
    return at < len(found) and found[at].text == text


def _compared_with(found: list[Token], begin: int, end: int) -> tuple[str | None, bool]:
    """Return the kind of the literal, and whether what is not so is asked for."""
    after = [token for token in found[end:] if token.kind != "space" and token.text not in "(-"][:4]
    before = [token for token in found[:begin] if token.kind != "space"][-2:][::-1]
    is_not = bool(after) and after[0].text.lower() == "not"
    if is_not:
        after = after[1:]
    # What is cast is no longer what it is written as.
    is_cast = len(after) > 2 and after[2].text == ":"
    for pair in ([] if is_cast else after[:2], before):
        if len(pair) == 2 and (pair[0].kind == "comparison" or pair[0].text.lower() in _COMPARING):
            is_negated = is_not or pair[0].text in ("<>", "!=")
            if pair[1].text.lower() in ("true", "false"):
                return "bool", is_negated
            if pair[1].kind in ("number", "text"):
                return pair[1].kind, is_negated
    return None, False
