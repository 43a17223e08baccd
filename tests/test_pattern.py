# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns of the configuration: they match what Python's own match, in a time that is linear in the text."""

import re
import tracemalloc
from dataclasses import FrozenInstanceError
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federator import pattern
from federator.pattern import MAX_STEPS, Pattern

# Python's `re` needs a time that doubles with each letter for these, and 26 letters take it seconds.
EXPLOSIVE = [r"(\w+_?)+_bucket", "(a*)*b", "(a|aa)+b", "(a|a)*b", "(.*.*)*b", r"(\b\w+\b)*b", "((a?){10}){10}b"]

ATOMS = ["a", "b", "_", ".", "[ab]", "[^a]", "[]b]", r"\w", r"\W", r"\d", r"\x61", r"\.", "^", "$", r"\b", r"\B", "()"]
REPEATS = ["*", "+", "?", "{2}", "{1,2}", "{0}", "{1,}", "*?", "{0,2}?"]
GROUPS = ["(", "(?:", "(?i:", "(?s-i:"]


def larger(smaller: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """A pattern made of smaller ones."""
    return st.one_of(
        st.builds("{}{}".format, smaller, smaller),
        st.builds("{}{}|{})".format, st.sampled_from(GROUPS), smaller, smaller),
        st.builds("(?:{}){}".format, smaller, st.sampled_from(REPEATS)),
    )


# Few parts: with many repeats within repeats, Python's own `re` would not end.
PATTERNS = st.builds(
    "{}{}".format, st.sampled_from(["", "(?i)", "(?m)"]), st.recursive(st.sampled_from(ATOMS), larger, max_leaves=6)
)


@given(PATTERNS, st.lists(st.text(alphabet="aAb_1. \n", max_size=6), min_size=1, max_size=4))
def test_a_pattern_matches_what_re_matches(text: str, names: list[str]) -> None:
    """The automaton and Python's engine agree on each name."""
    ours, theirs = Pattern(text), re.compile(text)
    for name in names:
        assert ours.fullmatch(name) == bool(theirs.fullmatch(name)), (text, name)


@pytest.mark.parametrize("text", ["go_.*", "go_.*|process_.+", "vault", ".*_bucket", "", "|a"])
def test_a_usual_pattern_matches_what_re_matches(text: str) -> None:
    """Usual patterns are left to `re`, and are anchored, too."""
    for name in ("go_", "go_gc", "a_go_gc", "process_", "process_x", "vault", "vaults", "x_bucket", "", "a"):
        assert Pattern(text).fullmatch(name) == bool(re.fullmatch(text, name))


@pytest.mark.parametrize(
    "text",
    ["(?m)a$[^b]b", "a$[^b]b", r"a\Z\n?", "(?i)a(?-i:b)", "(?i:a)b", "(?s:a.)b", "(?P<x>a)b", "a{b", r"\0|a\x62"],
)
def test_a_rare_pattern_matches_what_re_matches(text: str) -> None:
    """Flags, names of groups, and places that depend on the characters behind them."""
    for name in ("a", "ab", "aB", "Ab", "AB", "a\n", "a\nb", "a{b", "\0"):
        assert Pattern(text).fullmatch(name) == bool(re.fullmatch(text, name)), name


@pytest.mark.parametrize("text", EXPLOSIVE)
def test_a_pattern_takes_linear_time(text: str) -> None:
    """Names of 5000 letters are answered, where Python's `re` would not end."""
    assert not Pattern(text).fullmatch("a" * 5000)
    assert not Pattern(text).fullmatch("_a" * 2500)


def test_a_long_name_can_match() -> None:
    """It is not the length that is refused."""
    assert Pattern(r"(\w+_?)+_bucket").fullmatch("a" * 5000 + "_bucket")


@pytest.mark.slow
def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A qube may choose names that lead to thousands of states; they are forgotten, and the answers stay the same."""
    monkeypatch.setattr(pattern, "MAX_REMEMBERED_NUMBERS", 1000)
    text = "(a|b)*a(a|b){12}"
    ours, theirs = Pattern(text), re.compile(text)
    random = Random(1)
    names = ["".join(random.choices("ab", k=30)) for _ in range(500)]
    tracemalloc.start()
    answers = [ours.fullmatch(name) for name in names]
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 500_000  # without a bound, 10 MB
    assert answers == [bool(theirs.fullmatch(name)) for name in names]


@pytest.mark.parametrize(
    "text",
    [
        r"(a)\1",
        "(?P<x>a)(?P=x)",
        "a(?=b)",
        "a(?!b)",
        "(?<=a)b",
        "(?<!a)b",
        "(a)?(?(1)b|c)",
        "a*+",
        "a{1,2}+",
        "(?>a)",
        "(?x)a b",
        "(?a:a)",
        "(?#words)a",
        "a{,3}",
        r"\N{DIGIT ONE}",
    ],
)
def test_what_prometheus_does_not_have_is_refused(text: str) -> None:
    """RE2 has none of it, because it cannot be matched in linear time or means something else there."""
    with pytest.raises(ValueError, match="that Prometheus' patterns do not have; write it without") as caught:
        Pattern(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["[[:alpha:]]+", "[a--b]"])
def test_what_python_reads_differently_is_refused(text: str) -> None:
    """Python reads a class of RE2 as a set of its letters, and would match other names without a word."""
    with pytest.raises(ValueError, match=r"is unclear: possible .* put a backslash before the character there"):
        Pattern(text)


@pytest.mark.parametrize("text", ["(", "a**", "[b-a]", r"\q", "a(?i)b", "(?P<x>a)(?P<x>b)"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    """With Python's own words for it."""
    with pytest.raises(ValueError, match="is not a regular expression: "):
        Pattern(text)


def test_a_pattern_has_a_bounded_number_of_steps() -> None:
    """At the bound it is taken; one step more is refused, with what to write instead."""
    steps = MAX_STEPS - 2  # one for the whole, one for the end
    assert Pattern(f"a{{{steps}}}").fullmatch("a" * steps)
    for text in (f"a{{{steps + 1}}}", "(a{100}){100}", "(){1000000000}", "((()*){1000}){1000}"):
        with pytest.raises(ValueError, match=r"needs more than 1000 steps; write smaller numbers into its \{\}"):
            Pattern(text)


@pytest.mark.parametrize("text", ["(" * 5000 + ")" * 5000, "a{99999999999}"])
def test_a_pattern_that_is_too_much_for_re_is_refused(text: str) -> None:
    """Python's own errors for it are no ValueError, and would be taken for a bug of ours."""
    with pytest.raises(ValueError, match="has too large repeats or too many groups within groups"):
        Pattern(text)


def test_patterns_are_values() -> None:
    """They are equal if their text is, can be keys, and do not change: a reload compares them."""
    assert Pattern("(a)*") == Pattern("(a)*")
    assert len({Pattern("(a)*"), Pattern("(a)*"), Pattern("a")}) == 2
    assert (Pattern("(a)*").pattern, repr(Pattern("a"))) == ("(a)*", "Pattern(pattern='a')")
    with pytest.raises(FrozenInstanceError):
        Pattern("a").pattern = "b"  # type: ignore[misc]
