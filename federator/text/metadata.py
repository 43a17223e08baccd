# SPDX-License-Identifier: GPL-3.0-or-later
"""
To which family a sample belongs, by the HELP and TYPE lines of its text.

Owns the rules of the text format and of OpenMetrics for family names. Must not know samples, targets or the page.
"""

from collections.abc import Iterator, Sequence

from federator.model import Family
from federator.text.allowance import Allowance
from federator.text.memory import LineCache
from federator.text.parser import METRIC_TYPES, DroppedLines, Metadata, comments_work, parse_metadata


class FamilyMetadata:
    """What the HELP and TYPE lines of one text say. The first of two that disagree counts."""

    def __init__(self, cache: LineCache[Metadata], allowance: Allowance) -> None:
        self._cache = cache
        self._allowance = allowance
        self._types: dict[str, bytes] = {}
        self._helps: dict[str, bytes] = {}
        self._with_samples: set[str] = set()  # names of families, as their TYPE lines say them

    def read(self, untrusted_comments: Sequence[tuple[int, bytes]], dropped: DroppedLines) -> bool:
        """
        Read comment lines, each with its number. Those that are neither HELP nor TYPE are ignored.

        True if a line was not in the cache and had to be parsed, which takes time.
        """
        cached = [self._cache.get(untrusted_line) for _, untrusted_line in untrusted_comments]
        new = [line for (_, line), metadata in zip(untrusted_comments, cached, strict=True) if metadata is None]
        parsed = iter(self._allowance.spend_on(new, comments_work, parse_metadata))
        for (number, untrusted_line), metadata in zip(untrusted_comments, cached, strict=True):
            result = metadata or next(parsed)
            if isinstance(result, Metadata):
                if metadata is None:
                    self._cache.add(untrusted_line, result)
                result = self._add(result)
            if result:
                dropped.add(number, untrusted_line, result)
        return bool(new)

    def _add(self, metadata: Metadata) -> str:
        """Why the line is dropped, or an empty text."""
        if metadata.kind == b"HELP":
            if metadata.text:
                self._helps.setdefault(metadata.name, metadata.text)
            return ""
        if self._types.setdefault(metadata.name, metadata.text) != metadata.text:
            return f"{metadata.name} has another type already"
        return ""

    def family(self, name: str) -> Family:
        """
        The family of the samples of this name.

        `h_count` belongs to the histogram or summary `h`, even where it has a TYPE line of its own: Go's other parser
        (expfmt: promtool, pushgateway) refuses such a line, and the page has to be good for both.
        A sample `h` is no part of a histogram `h`: its text says no type for it.
        """
        for suffix in ("_bucket", "_sum", "_count"):
            base = name.removesuffix(suffix)
            declared = self._types.get(base) if base != name else None
            if declared == b"histogram" or (declared == b"summary" and suffix != "_bucket"):
                self._with_samples.add(base)
                return Family(base, METRIC_TYPES[declared], self._helps.get(base, b""))
        if name not in self._types:
            # OpenMetrics declares a counter or an info without its suffix; the text format with it.
            for suffix, declared in (("_total", b"counter"), ("_info", b"info")):
                base = name.removesuffix(suffix)
                if base != name and self._types.get(base) == declared:
                    self._with_samples.add(base)
                    return Family(name, METRIC_TYPES[declared], self._helps.get(base, b""))
        self._with_samples.add(name)
        said = self._types.get(name)
        of_type = None if said in (None, b"histogram") else METRIC_TYPES[said]
        return Family(name, of_type, self._helps.get(name, b""))

    def declared(self) -> Iterator[Family | None]:
        """
        The families that have a TYPE line and no samples, once `family` was asked for each sample's name.

        None for each other TYPE line. A part of a histogram or summary is no family, whatever its own TYPE line says.
        """
        with_samples = frozenset(self._with_samples)
        for name, said in self._types.items():
            is_family = name not in with_samples and self.family(name).name == name
            yield Family(name, METRIC_TYPES[said], self._helps.get(name, b"")) if is_family else None
