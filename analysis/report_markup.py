"""HTML that cannot be broken out of: markup is a type, and everything else is text.

Invariants
----------
* A `str` that is not `Html` is escaped wherever it goes, between tags and in attributes; only `tag` and `raw` make `Html`.
* What would be acted on instead of shown (control characters, and those that turn the direction of a line) is shown as a sign.

There is no file here, and nothing about runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

# U+2400 … are pictures of the control characters; a newline and a tab are what they are.
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "␡"}
# With these, a line can be made to read as what it is not.
_TURNS = {code: f"‹U+{code:04X}›" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_SIGNS = _CONTROLS | _TURNS
_VOID = {"meta", "br"}


class Html(str):
    """Markup."""

    __slots__ = ()


Inner = str | Iterable["Inner"] | None
Attribute = str | int | float | bool | None


def text(value: str) -> Html:
    """
    >>> text('<b title="1">\\x1b[31m\\u202e')
    '&lt;b title=&quot;1&quot;&gt;␛[31m‹U+202E›'
    """
    return Html(escape(value.translate(_SIGNS)))


def raw(markup: str) -> Html:
    """Take a text of our own for markup."""
    return Html(markup)


def joined(*inner: Inner) -> Html:
    """Return all that is given, one after the other; nothing for a None.

    >>> joined("a < b", None, [tag("b", "c"), "&"])
    'a &lt; b<b>c</b>&amp;'
    """
    parts = []
    for each in inner:
        if isinstance(each, Html):
            parts.append(each)
        elif isinstance(each, str):
            parts.append(text(each))
        elif each is not None:
            parts.append(joined(*each))
    return Html("".join(parts))


def tag(name: str, /, *inner: Inner, **attributes: Attribute) -> Html:
    """Return an element; `class_` is class, `data_of` is data-of, True an attribute without a value, None no attribute.

    >>> tag("p", "<i>", class_="a", data_of='"', hidden=True, id=None)
    '<p class="a" data-of="&quot;" hidden>&lt;i&gt;</p>'
    """
    written = []
    for attribute, value in attributes.items():
        called = attribute.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {called}")
        elif value is not None and value is not False:
            written.append(f' {called}="{text(str(value))}"')
    opened = f"<{name}{''.join(written)}>"
    return Html(opened if name in _VOID else f"{opened}{joined(*inner)}</{name}>")
