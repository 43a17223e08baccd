# SPDX-License-Identifier: GPL-3.0-or-later
"""
HTML, made of elements. Every text is escaped, unless it is Html, and only this file makes Html of a text.

Owns how a text from anywhere looks on a page: it cannot become markup, and it cannot hide what it is. Must not know
what is on a page.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache

# A hostile word may have thousands of letters. The rest only fills the page.
SHOWN_LENGTH = 500
# A line of the operator's own, such as one of the configuration, is to be read whole.
LINE_LENGTH = 20_000

# Of an attribute that is remembered.
SHORT_LENGTH = 16

_SPECIAL = re.compile("[&<>\"']")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
# Elements that have no end.
_VOID = frozenset({"input", "link", "meta", "br"})


class Html(str):
    """A text that is HTML already. What is made of it with `+` or `join` is a plain text again, and is escaped."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]
Attribute = str | int | float | bool | None


def visible(untrusted: str, most: int = SHOWN_LENGTH) -> str:
    """
    The text as a person may see it: what could hide, reorder or pile up letters is shown by its number, and it is cut.

    That is all that Unicode calls a control, a format or a separator (escape sequences, newlines, bidi marks, spaces
    without width), and marks that stand on other marks.
    """
    text = untrusted if len(untrusted) <= most else untrusted[:most] + "…"
    if text.isascii() and text.isprintable():
        return text
    marks = 0
    letters: list[str] = []
    for letter in text:
        marks = marks + 1 if unicodedata.category(letter).startswith("M") else 0
        fine = letter.isprintable() and marks < 2
        letters.append(letter if fine else f"\\u{{{ord(letter):x}}}")
    return "".join(letters)


def escaped(text: str, most: int = SHOWN_LENGTH) -> Html:
    """A text as HTML, in an element or an attribute."""
    text = visible(text, most)
    return Html(_SPECIAL.sub(lambda found: _ENTITIES[found[0]], text) if _SPECIAL.search(text) else text)


def tag(element: str, /, *children: Child, **attributes: Attribute) -> Html:
    """
    An element. An attribute that is None or False is left out.

    A `_` in the name of an attribute becomes `-`, and one at its end is dropped: `class_`, `aria_live`. All names are
    this program's own.
    """
    start = f"<{element}"
    for key, value in attributes.items():
        if value is not None and value is not False:
            start += _pair(key, value)
    if element in _VOID:
        return Html(f"{start}>")
    return Html(f"{start}>{''.join(map(_child, children))}</{element}>")


def joined(children: Iterable[Child]) -> Html:
    """Texts and elements, one after the other."""
    return Html("".join(map(_child, children)))


def document(language: str, *children: Child) -> Html:
    """A whole page."""
    return Html("<!doctype html>\n" + tag("html", *children, lang=language) + "\n")


def lines(texts: Iterable[str]) -> Html:
    """The operator's own lines, for a `pre`: the newlines between them are ours."""
    return Html("".join(f"{escaped(text, LINE_LENGTH)}\n" for text in texts))


def _child(child: Child) -> str:
    if type(child) is Html:
        return child
    if isinstance(child, str):
        return escaped(child)
    if child is None:
        return ""
    if isinstance(child, int):
        return str(child)
    return joined(child)


def _pair(key: str, value: str | float) -> str:
    """An attribute, with a space before it. The short ones, such as classes, are the same all over the page."""
    if value is True:
        return f" {_attribute(key)}"
    text = str(value)
    return _short_pair(key, text) if len(text) <= SHORT_LENGTH else f' {_attribute(key)}="{escaped(text)}"'


@lru_cache(maxsize=256)
def _short_pair(key: str, text: str) -> str:
    return f' {_attribute(key)}="{escaped(text)}"'


@cache
def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
