# SPDX-License-Identifier: GPL-3.0-or-later
"""Many readings, one page: grouped, sorted, valid, and nothing lost where targets disagree."""

import random
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federator.model import Limits, Reading
from federator.text.exposition import Reader
from federator.text.memory import Memory
from federator.text.merge import SLICE, STEP_SIZE, Merger
from tests.helpers import finish, merged, page, read, recording, target


def reading(qube: str, text: str) -> Reading:
    """A text of a qube's exporter `x`."""
    return read(text.encode(), target(qube, "x"))


def check_metrics(text: str) -> None:
    """Promtool uses Go's other parser, which is stricter about families than Prometheus' scraper."""
    promtool = shutil.which("promtool")
    if promtool:
        verdict = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
        assert verdict.returncode in {0, 3}, verdict.stderr  # 3: it parses, but somebody's names are not to its taste


def at(qube: str) -> str:
    """The labels of that exporter."""
    return f'qube="{qube}",exporter="x"'


def test_families_are_sorted_by_name_and_targets_stand_in_their_order() -> None:
    """One block for each family over all targets, with one HELP and one TYPE."""
    one = reading("b", "# HELP z last\n# TYPE z gauge\nz 1\n# TYPE a counter\na 2\n")
    two = reading("a", "# HELP z another text\n# TYPE z gauge\nz 3\n")
    assert page(one, two) == (
        f"# TYPE a counter\na{{{at('b')}}} 2\n# HELP z last\n# TYPE z gauge\nz{{{at('b')}}} 1\nz{{{at('a')}}} 3\n"
    )


def test_help_is_that_of_the_first_target_that_has_one() -> None:
    """A target without HELP must not take it from the others."""
    assert page(reading("a", "z 1\n"), reading("b", "# HELP z text\nz 2\n")).startswith("# HELP z text\n")


def test_no_readings_make_an_empty_page() -> None:
    """Which Prometheus takes."""
    assert page() == ""


H = '# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_sum 2\nh_count 3\n'

S = '# TYPE h summary\nh{quantile="1"} 4\nh_sum 5\nh_count 6\n'

DISAGREEMENTS = {
    "two against one, whoever is first": (
        ["# TYPE f gauge\nf 1\n", "# TYPE f counter\nf 2\n", "# TYPE f counter\nf 3\n"],
        "# TYPE f counter\nf{0} 1\nf{1} 2\nf{2} 3\n",
    ),
    "two against one that has it in two places": (
        ['# TYPE f gauge\nf 1\ng 1\nf{x="1"} 2\n', "# TYPE f counter\nf 2\n", "# TYPE f counter\nf 3\n"],
        '# TYPE f counter\nf{0} 1\nf{0,x="1"} 2\nf{1} 2\nf{2} 3\n# TYPE g untyped\ng{0} 1\n',
    ),
    "the first of two": (
        ["# TYPE f gauge\nf 1\n", "# TYPE f counter\nf 2\n"],
        "# TYPE f gauge\nf{0} 1\nf{1} 2\n",
    ),
    "silence has no vote": (
        ["# HELP f text\nf 1\n", "f 2\n", "# TYPE f gauge\nf 3\n"],
        "# HELP f text\n# TYPE f gauge\nf{0} 1\nf{1} 2\nf{2} 3\n",
    ),
    "all are silent": (
        ["f 1\n", "# HELP f text\nf 2\n"],
        "# HELP f text\n# TYPE f untyped\nf{0} 1\nf{1} 2\n",
    ),
    "untyped has a vote where it is said": (
        ["# TYPE f gauge\nf 1\n", "# TYPE f untyped\nf 2\n", "# TYPE f unknown\nf 3\n"],
        "# TYPE f untyped\nf{0} 1\nf{1} 2\nf{2} 3\n",
    ),
    "a renamed family and blocks that stand apart are one vote": (
        [
            "# TYPE f counter\nf 1\n",
            (
                "# HELP qubes_proxy_f a\n# TYPE qubes_proxy_f gauge\nqubes_proxy_f 1\n"
                "# TYPE exported_qubes_proxy_f gauge\n"
                'exported_qubes_proxy_f{x="1"} 2\nf 3\nexported_qubes_proxy_f{x="2"} 4\n'
            ),
            "# TYPE exported_qubes_proxy_f counter\nexported_qubes_proxy_f 5\n",
            "# TYPE exported_qubes_proxy_f counter\nexported_qubes_proxy_f 6\n",
        ],
        (
            '# TYPE exported_qubes_proxy_f counter\nexported_qubes_proxy_f{1} 1\nexported_qubes_proxy_f{1,x="1"} 2\n'
            'exported_qubes_proxy_f{1,x="2"} 4\nexported_qubes_proxy_f{2} 5\nexported_qubes_proxy_f{3} 6\n'
            "# TYPE f counter\nf{0} 1\nf{1} 3\n"
        ),
    ),
    "a histogram that others call a gauge": (
        ["# HELP h lie\n# TYPE h gauge\nh 1\n", H, "# TYPE h gauge\nh 4\n"],
        '# TYPE h histogram\nh{0} 1\nh_bucket{1,le="+Inf"} 1\nh_sum{1} 2\nh_count{1} 3\nh{2} 4\n',
    ),
    "a summary that others say no type for": (
        ['h{quantile="1"} 1\n', 'h{quantile="1"} 1\n', S],
        (
            '# TYPE h summary\nh{0,quantile="1.0"} 1\nh{1,quantile="1.0"} 1\n'
            'h{2,quantile="1.0"} 4\nh_sum{2} 5\nh_count{2} 6\n'
        ),
    ),
    "a plain sample under a histogram's name is no histogram": (
        ["# TYPE h histogram\nh 1\n", "# TYPE h gauge\nh 4\n"],
        "# TYPE h gauge\nh{0} 1\nh{1} 4\n",
    ),
    "a summary among histograms": (
        [H, H, S],
        (
            "# TYPE h_sum untyped\nh_sum{2} 5\n# TYPE h_count untyped\nh_count{2} 6\n"
            '# TYPE h histogram\nh_bucket{0,le="+Inf"} 1\nh_sum{0} 2\nh_count{0} 3\n'
            'h_bucket{1,le="+Inf"} 1\nh_sum{1} 2\nh_count{1} 3\nh{2,quantile="1.0"} 4\n'
        ),
    ),
    "a histogram among summaries": (
        [S, H, S],
        (
            "# TYPE h_sum untyped\nh_sum{1} 2\n# TYPE h_count untyped\nh_count{1} 3\n"
            '# TYPE h summary\nh{0,quantile="1.0"} 4\nh_sum{0} 5\nh_count{0} 6\n'
            'h{2,quantile="1.0"} 4\nh_sum{2} 5\nh_count{2} 6\n'
            '# TYPE h_bucket untyped\nh_bucket{1,le="+Inf"} 1\n'
        ),
    ),
    "the names of a histogram's parts": (
        [
            "# HELP h_count mine\n# TYPE h_count gauge\nh_count 4\n",
            H,
            "# TYPE h_count gauge\nh_count 5\nh_sum 6\n",
            'h_bucket{le="1"} 7\n',
        ],
        (
            "# TYPE h_sum untyped\nh_sum{2} 6\n"
            "# HELP h_count mine\n# TYPE h_count gauge\nh_count{0} 4\nh_count{2} 5\n"
            '# TYPE h_bucket untyped\nh_bucket{3,le="1.0"} 7\n'
            '# TYPE h histogram\nh_bucket{1,le="+Inf"} 1\nh_sum{1} 2\nh_count{1} 3\n'
        ),
    ),
    "families without samples": (
        ["# HELP f text\n# TYPE f counter\n# TYPE g gauge\n", "# HELP f other\n# TYPE f gauge\na 1\n"],
        "# TYPE a untyped\na{1} 1\n# HELP f text\n# TYPE f counter\n# TYPE g gauge\n",
    ),
    "a family without samples has no vote": (
        ["# HELP f lie\n# TYPE f histogram\n", "f 1\n", "# HELP h lie\n# TYPE h gauge\n# TYPE h_count gauge\n", H],
        '# TYPE f untyped\nf{1} 1\n# TYPE h histogram\nh_bucket{3,le="+Inf"} 1\nh_sum{3} 2\nh_count{3} 3\n',
    ),
    "a part of a histogram that has no samples, either": (
        ["# TYPE h_count gauge\n", "# TYPE h histogram\n", "h_count 1\n", "# TYPE h_sum gauge\n"],
        "# TYPE h_count untyped\nh_count{2} 1\n# TYPE h histogram\n",
    ),
    "a histogram whose name is a part of another": (
        [
            H,
            '# TYPE h_count histogram\nh_count_bucket{le="+Inf"} 4\nh_count_sum 5\nh_count_count 6\n',
            "h_count_sum 7\n",
        ],
        (
            "# TYPE h_count_sum untyped\nh_count_sum{2} 7\n"
            '# TYPE h_count histogram\nh_count_bucket{1,le="+Inf"} 4\nh_count_sum{1} 5\nh_count_count{1} 6\n'
            '# TYPE h histogram\nh_bucket{0,le="+Inf"} 1\nh_sum{0} 2\nh_count{0} 3\n'
        ),
    ),
}


@pytest.mark.parametrize("at_once", [1, SLICE])
@pytest.mark.parametrize(("texts", "expected"), DISAGREEMENTS.values(), ids=DISAGREEMENTS.keys())
def test_where_types_disagree_nothing_is_lost(
    texts: list[str], expected: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Only the TYPE line is decided; every sample stays, with its name, labels and value, and Go's parsers take it.

    However many families are looked at at once: a target has one vote.
    """
    monkeypatch.setattr("federator.text.merge.SLICE", at_once)
    readings = [reading(f"q{number}", text) for number, text in enumerate(texts)]
    for number in range(len(texts)):
        expected = expected.replace(f"{{{number}", f"{{{at(f'q{number}')}")
    assert page(*readings) == expected
    check_metrics(expected)


def test_a_label_value_with_odd_line_ends_survives_a_lost_type() -> None:
    """Only a newline ends a line."""
    strange = reading("a", '# TYPE f summary\nf_sum{x="\r\x0b\x0c\x1c\u2028"} 1\n')
    others = [reading(f"b{number}", "# TYPE f histogram\nf_sum 1\n") for number in range(2)]
    assert '\r\x0b\x0c\x1c\u2028"} 1\n' in page(strange, *others)


EXPORTERS = ("node", "process", "postgres", "redis", "pyapp", "blackbox", "prometheus")


@pytest.mark.slow
def test_recordings_of_three_qubes_are_one_page_that_go_reads_too() -> None:
    """Each name has one TYPE line, the names are sorted, and no sample is lost."""
    readings = [read(recording(exporter), target(qube, exporter)) for qube in ("a", "b", "c") for exporter in EXPORTERS]
    text = page(*readings)
    check_metrics(text)
    heads = [line for line in text.split("\n") if line.startswith("# TYPE ")]
    assert len(heads) == len(set(heads)) == len({line.split(" ")[2] for line in heads})
    assert heads == sorted(heads, key=lambda line: line.split(" ")[2])
    assert sum(not line.startswith("#") for line in text.removesuffix("\n").split("\n")) == sum(
        each.samples for each in readings
    )


NAMES = st.sampled_from(["h", "h_count", "h_sum", "h_bucket", "h_count_sum", "g", "g_total"])
TYPES = st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped"])
TEXTS = st.lists(
    st.one_of(st.builds("# TYPE {} {}".format, NAMES, TYPES), NAMES.map("{} 1".format)), min_size=1, max_size=8
)


PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_whatever_targets_claim_no_sample_is_lost_and_each_stands_where_it_may(claims: list[list[str]]) -> None:
    """
    However types and names collide, within a target or between them.

    Each family has one TYPE line. A part of a histogram or summary stands with its owner only if its own target says
    so, else in a family of its name; a family of such a name comes before the owner.
    """
    readings = [reading(f"q{number}", "\n".join([*claim, "ok 1", ""])) for number, claim in enumerate(claims)]
    said = {
        (qube, family.name): family.type
        for qube, one in enumerate(readings)
        for family in one.families
        if family.type in PARTS
    }
    text = page(*readings)
    types: dict[str, str] = {}
    samples = 0
    family = ""
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in types
            types[family] = kind
            assert not any(family == owner + part for owner in types for part in PARTS.get(types[owner], ()))
        else:
            samples += 1
            name, qube = line.split("{")[0], int(line.split('qube="q')[1].split('"')[0])
            if name != family:
                assert said[qube, family] == types[family]
                assert name.removeprefix(family) in PARTS[types[family]]
    assert samples == sum(each.samples for each in readings)
    for (_, name), kind in said.items():
        assert types.get(name, kind) in PARTS


def test_a_plan_is_used_again_only_for_what_it_was_made_for() -> None:
    """One merger over many scrapes says what a new one says each time: values, families, types and orders change."""
    merger, chance = Merger(), random.Random(1)
    memory = Memory(Limits())
    readers = {qube: Reader(target(qube, "x"), Limits(), memory) for qube in "abc"}
    texts = [H, "# TYPE h gauge\nh 4\n", 'a 1\nb 2\na{x="y"} 3\n', "# TYPE a counter\na 5\n", H + "a 1\n"]
    for _ in range(300):
        asked = chance.sample(sorted(readers), chance.randrange(1, 4))
        bodies = {qube: chance.choice(texts).replace("1\n", f"{chance.randrange(9)}\n") for qube in asked}
        readings = [finish(readers[qube].read(body.encode())) for qube, body in bodies.items()]
        assert merged(merger, readings) == page(*readings)
    assert len(merger.plans()) > 1


def test_values_are_new_where_types_disagree() -> None:
    """Such a page has lines that were taken out of blocks; those of the last one must not come again."""
    merger, memory = Merger(), Memory(Limits())
    readers = [Reader(target(qube, "x"), Limits(), memory) for qube in "ab"]
    for value in (1, 2, 3):
        texts = [f"# TYPE m summary\nm_sum {value}\n", f"# TYPE m histogram\nm_count {value}\n"]
        readings = [finish(one.read(text.encode())) for one, text in zip(readers, texts, strict=True)]
        text = merged(merger, readings)
        assert text == page(*readings)
        assert text.count(f"}} {value}\n") == 2


def test_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A qube with new families at every scrape fills what there is for all, and no more; the last plan is kept."""
    monkeypatch.setattr("federator.text.merge.MAX_SIZE", 40_000)
    merger = Merger()
    for scrape in range(10):
        text = "".join(f"a{scrape}_{number} 1\n" for number in range(30))
        assert merged(merger, [reading("a", text)]).count("# TYPE") == 30
        assert sum(merger.plans()) <= 40_000
    assert len(merger.plans()) > 1
    merged(merger, [reading("a", f"# HELP m {'x' * 16_000}\nm 1\n")])
    assert len(merger.plans()) == 1, "a HELP text counts, in the family and in the head of its block"
    many = reading("a", "".join(f"b{number} 1\n" for number in range(200)))
    finish(merger.merge([many]))
    assert len(merger.plans()) == 1


def test_the_plan_that_was_not_used_for_longest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is asked for often keeps its plan while others come and go."""
    monkeypatch.setattr("federator.text.merge.MAX_SIZE", 4 * STEP_SIZE + 100)  # two plans of a family each
    merger = Merger()
    often, once, another = (reading("a", f"{name} 1\n") for name in ("often", "once", "another"))
    for each in (often, once, often, another):
        finish(merger.merge([each]))
    monkeypatch.setattr("federator.text.merge._plan", None)
    assert merged(merger, [often]).startswith("# TYPE often")


def test_a_bad_line_does_not_cost_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """One qube that always has one must not cost the others that their page is planned anew."""
    merger, memory = Merger(), Memory(Limits())
    readers = [Reader(target(qube, "x"), Limits(), memory) for qube in "ab"]
    pages = []
    for value in (1, 2):
        texts = [f"# TYPE m gauge\nm {value}\nbad\n", f"# TYPE n gauge\nn {value}\n"]
        readings = [finish(one.read(text.encode())) for one, text in zip(readers, texts, strict=True)]
        pages.append(merged(merger, readings))
        monkeypatch.setattr("federator.text.merge._plan", None)
    assert pages[1] == pages[0].replace("} 1\n", "} 2\n")


def test_the_plan_of_an_unchanged_shape_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a scrape would cost twice what it does."""
    merger, memory = Merger(), Memory(Limits())
    readers = [Reader(target(qube, "x"), Limits(), memory) for qube in "ab"]
    finish(merger.merge([finish(one.read(recording("node", 2))) for one in readers]))
    monkeypatch.setattr("federator.text.merge._plan", None)
    second = merged(merger, [finish(one.read(recording("node", 3))) for one in readers])
    monkeypatch.undo()
    assert second == page(*(read(recording("node", 3), target(qube, "x")) for qube in "ab"))
