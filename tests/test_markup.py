# SPDX-License-Identifier: GPL-3.0-or-later
"""HTML that no text can break out of."""

import html.parser
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federator import markup
from federator.markup import SHOWN_LENGTH, Html, tag
from tests.test_layers import PACKAGE


class Reader(html.parser.HTMLParser):
    """What a browser makes of it: elements with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note it."""
        self.text += data


def test_elements_and_attributes() -> None:
    """As they are written; what is None or False is left out."""
    made = tag("p", "a", None, ["b", tag("b", 1)], class_="x", aria_live="polite", hidden=True, title=None, open=False)
    assert made == '<p class="x" aria-live="polite" hidden>ab<b>1</b></p>'
    assert tag("input", name="q", value="") == '<input name="q" value="">'
    assert markup.lines(["<", "b"]) == "&lt;\nb\n"
    assert markup.document("en", tag("p")) == '<!doctype html>\n<html lang="en"><p></p></html>\n'


@given(st.text())
def test_no_text_becomes_markup(text: str) -> None:
    """In an element and in an attribute: the browser reads back what `visible` says, as one text."""
    shown = markup.visible(text)
    read = Reader(tag("p", text, title=text))
    assert read.elements == [("p", {"title": shown})]
    assert read.text == shown


@given(st.text())
def test_what_is_shown_hides_nothing(text: str) -> None:
    """No control, no mark of direction, no letter without width, no piles of marks; and it is not long."""
    shown = markup.visible(text)
    assert shown.isprintable()
    kinds = "".join(unicodedata.category(letter)[0] for letter in shown)
    assert "MM" not in kinds
    assert len(shown) <= 10 * (SHOWN_LENGTH + 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", r"\u{1b}[31mred\u{7}"),
        ("a\u202egnp.exe", r"a\u{202e}gnp.exe"),
        ("two\nlines\r", r"two\u{a}lines\u{d}"),
        ("zero\u200bwidth\ufeff", r"zero\u{200b}width\u{feff}"),
        ("z\u0301\u0302\u0303", "z\u0301\\u{302}\\u{303}"),
        ("\ud800", r"\u{d800}"),
        ("Grüße 日本", "Grüße 日本"),
    ],
)
def test_hostile_letters_are_shown_by_number(text: str, shown: str) -> None:
    """And those of a language stay."""
    assert markup.visible(text) == shown


def test_a_long_word_is_cut() -> None:
    """It says so."""
    assert markup.visible("x" * 4096) == "x" * SHOWN_LENGTH + "…"


def test_html_that_was_joined_by_hand_is_escaped() -> None:
    """A mistake of ours shows on the page, and is not a hole."""
    assert tag("p", tag("b") + "<i>") == "<p>&lt;b&gt;&lt;/b&gt;&lt;i&gt;</p>"


def test_only_one_file_makes_html_of_a_text() -> None:
    """So it is the only one that has to be read with care."""
    for path in PACKAGE.rglob("*.py"):
        if path.name != "markup.py":
            text = path.read_text(encoding="utf-8")
            assert "Html(" not in text, path
            assert "innerHTML" not in text, path
    assert isinstance(tag("p"), Html)
