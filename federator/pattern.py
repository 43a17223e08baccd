# SPDX-License-Identifier: GPL-3.0-or-later
r"""
A regular expression of the configuration, matched in a time that is linear in the length of the text.

Owns what such a pattern may contain and how it is matched. Must not know what is matched, or why.

Prometheus promises linear time (RE2). Python's `re` does not: with some patterns, each further letter of a name doubles
the time, and the names come from qubes. So a pattern becomes a list of steps, and all steps that are possible at one
place of the text are followed at the same time:

    a(b|c)*d      4: "a", then 3
                  3: nothing, then 2 or 1
                  2: "b" or "c", then 3
                  1: "d", then END               The text matches if END is among the possible steps after it.

What one step takes - a character, a set such as [a-z], a place such as \b - is still judged by `re`, one character at a
time. What RE2 does not have is refused, and so is a pattern that needs too many steps.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

# Bounds the time for each character of a text. A repeat such as {100} needs its steps 100 times.
MAX_STEPS = 1000
# Bounds the memory of one pattern to a few MB. One remembered result has at most as many numbers as there are steps.
MAX_REMEMBERED_NUMBERS = 100_000
END = 0

# Names with at most one `.*` or `.+` in each, as most patterns are: `re` needs linear time for them, and is faster.
_HARMLESS = re.compile(r"[A-Za-z0-9_:-]*(?:\.[*+][A-Za-z0-9_:-]*)?(?:\|[A-Za-z0-9_:-]*(?:\.[*+][A-Za-z0-9_:-]*)?)*")

_GROUP = re.compile(r"\((?!\?)|\(\?P<\w+>|\(\?(?P<on>[ims]*)(?:-(?P<off>[ims]+))?(?P<end>[:)])")
_ATOM = re.compile(
    r"\\(?:x..|u....|U.{8}|0[0-7]{0,2}|[^1-9N])"  # an escape; \1 to \9 are backreferences
    r"|\[\^?(?:\\.|[^\\])(?:\\.|[^\]\\])*\]"  # a set; its first character may be ]
    r"|(?!\{,[0-9]*\})[^\\\[(*+?]",  # any other character; {,3} is a repeat for Python, and five characters for RE2
    re.DOTALL,
)
_REPEAT = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<least>[0-9]+)(?P<comma>,)?(?P<most>[0-9]*)\})\??")
_PLACES = frozenset({"^", "$", r"\A", r"\Z", r"\z", r"\b", r"\B"})
_NOTHING = re.compile("")

# From the step that comes after a part of a pattern to the step that the part starts with.
_Part = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Pattern:
    """An anchored regular expression. Equal if the text is equal. Raises ValueError with words for people."""

    pattern: str
    _match: Callable[[str], object] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the pattern, and choose how to match it."""
        try:
            with warnings.catch_warnings(action="error", category=FutureWarning):
                compiled = re.compile(self.pattern)
            match = compiled.fullmatch if _HARMLESS.fullmatch(self.pattern) else _Steps(self.pattern).fullmatch
        except re.error as error:
            hint = "; .* stands for any characters" if self.pattern.startswith("*") else ""
            raise ValueError(f"{self.pattern!r} is not a regular expression: {error}{hint}") from None
        except FutureWarning as warning:
            raise ValueError(
                f"{self.pattern!r} is unclear: {str(warning).lower()}; put a backslash before the character there, and"
                " write [a-z] where you mean [[:lower:]]"
            ) from None
        except (OverflowError, RecursionError):
            raise ValueError(f"{self.pattern!r} has too large repeats or too many groups within groups") from None
        object.__setattr__(self, "_match", match)

    def fullmatch(self, text: str) -> bool:
        """Does the whole text match?"""
        return bool(self._match(text))


class _Steps:
    """
    A pattern as steps, each with what it takes and the steps that may come after it.

    A state is a set of possible steps. States are made when a text needs them, and remembered: names are much alike.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._takes = [_NOTHING]
        self._then: list[Sequence[int]] = [()]
        parser = _Parser(text, self._add)
        first = parser.alternatives("")(END)
        self._has_places = parser.has_places
        self._states: dict[tuple[frozenset[int], bool], _State] = {}
        self._remembered = 0
        self._start = _State(frozenset({first}), ended=False, follow=self._follow)

    def fullmatch(self, text: str) -> bool:
        state = self._start
        # Only a place such as \b depends on the characters around it.
        for key in _windows(text) if self._has_places else (*text, ""):
            state = state[key]
            if not state.steps:
                break
        return state.ended

    def _follow(self, state: "_State", key: "_Key") -> "_State":
        """The state after one more character of the text, or after its end."""
        window, index = (key, 0) if isinstance(key, str) else key
        seen = set(state.steps)
        waiting = list(state.steps)
        after: set[int] = set()
        while waiting:
            step = waiting.pop()
            match = self._takes[step].match(window, index)
            if match and match.end() > index:
                after.update(self._then[step])
            elif match:
                waiting.extend(then for then in self._then[step] if then not in seen)
                seen.update(self._then[step])
        return self._state(frozenset(after), ended=END in seen and index == len(window))

    def _state(self, steps: frozenset[int], *, ended: bool) -> "_State":
        self._remembered += 1 + len(steps)
        if self._remembered > MAX_REMEMBERED_NUMBERS:
            for state in (self._start, *self._states.values()):
                state.clear()
            self._states.clear()
            self._remembered = 0
        if (steps, ended) not in self._states:
            self._states[steps, ended] = _State(steps, ended=ended, follow=self._follow)
        return self._states[steps, ended]

    def _add(self, takes: re.Pattern[str], then: Sequence[int]) -> int:
        if len(self._takes) >= MAX_STEPS:
            raise ValueError(
                f"{self._text!r} needs more than {MAX_STEPS} steps; write smaller numbers into its {{}}, or several"
                " patterns instead of one"
            )
        self._takes.append(takes)
        self._then.append(then)
        return len(self._takes) - 1


# The next character, empty at the end of the text; or the characters around a place, and the index of the next one.
_Key = str | tuple[str, int]


class _State(dict[_Key, "_State"]):
    """The steps that are possible at one place of a text; as a dict, the state after each next character."""

    def __init__(self, steps: frozenset[int], *, ended: bool, follow: Callable[["_State", _Key], "_State"]) -> None:
        super().__init__()
        self.steps = steps
        self.ended = ended  # the text has ended, and matches
        self._follow = follow

    def __missing__(self, key: _Key) -> "_State":
        """Find out."""
        state = self[key] = self._follow(self, key)
        return state


def _windows(text: str) -> Iterator[tuple[str, int]]:
    """For each place of the text, the end included: at most one character before it and two after it."""
    for index in range(len(text) + 1):
        before = min(index, 1)
        yield text[index - before : index + 2], before


class _Parser:
    """
    Reads a pattern that `re` accepts, and refuses what RE2 does not have.

    A part of the pattern becomes a function that adds the steps of this part, because a repeat adds them several times.
    """

    def __init__(self, text: str, add: Callable[[re.Pattern[str], Sequence[int]], int]) -> None:
        self._text = text
        self._add = add
        self._at = 0
        self.has_places = False

    def alternatives(self, flags: str) -> _Part:
        """Everything up to the end of the group, or of the pattern."""
        branches: list[list[_Part]] = [[]]
        while self._at < len(self._text) and self._text[self._at] != ")":
            if self._text[self._at] == "|":
                self._at += 1
                branches.append([])
            elif (group := _GROUP.match(self._text, self._at)) and group["end"] == ")":  # (?i) for all of the pattern
                self._at = group.end()
                flags = _changed(flags, group)
            else:
                branches[-1].append(self._item(flags))

        def part(then: int) -> int:
            return self._add(_NOTHING, [_sequence(branch, then) for branch in branches])

        return part

    def _item(self, flags: str) -> _Part:
        """One character, set, place or group, with the repeat behind it."""
        if group := self._take(_GROUP):
            part = self.alternatives(_changed(flags, group))
            self._at += 1
        elif atom := self._take(_ATOM):
            self.has_places |= atom[0] in _PLACES
            part = self._one(re.compile(f"(?{flags}:{atom[0]})"))
        else:
            raise ValueError(
                f"{self._text!r} has something at position {self._at} that Prometheus' patterns do not have; write it"
                " without backreferences, lookaround, possessive repeats, comments, and flags other than i, m and s"
            )
        repeat = self._take(_REPEAT)
        return self._repeated(part, repeat) if repeat else part

    def _take(self, token: re.Pattern[str]) -> re.Match[str] | None:
        match = token.match(self._text, self._at)
        if match:
            self._at = match.end()
        return match

    def _one(self, takes: re.Pattern[str]) -> _Part:
        return lambda then: self._add(takes, [then])

    def _repeated(self, repeated: _Part, repeat: re.Match[str]) -> _Part:
        least = int(repeat["least"] or repeat["sign"] == "+")
        most = int(repeat["most"] or (1 if repeat["sign"] == "?" else least))
        endless = repeat["sign"] in {"*", "+"} or (repeat["comma"] and not repeat["most"])

        def part(then: int) -> int:
            end = then
            if endless:
                choices: list[int] = []
                then = self._add(_NOTHING, choices)
                choices += [repeated(then), end]
            for _ in range(most - least):
                then = self._add(_NOTHING, [repeated(then), end])
            for _ in range(least):
                then = repeated(then)
            return then

        return part


def _sequence(parts: Sequence[_Part], then: int) -> int:
    for part in reversed(parts):
        then = part(then)
    return then


def _changed(flags: str, group: re.Match[str]) -> str:
    return "".join(sorted({*flags, *(group["on"] or "")} - {*(group["off"] or "")}))
