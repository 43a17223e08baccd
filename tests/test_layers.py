# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may import whom. A newcomer reads this table to learn the architecture; this test keeps it true."""

import ast
import re
from pathlib import Path

import pytest

from tests.helpers import SERVICE

PACKAGE = Path(__file__).parent.parent / "federator"

# Below the line: no process, event loop, socket or clock.
ALLOWED = {
    "__main__": {"cli"},
    "cli": {"config", "counters", "daemon", "errors", "journal", "model", "scrape", "targets", "wire"},
    "daemon": {"config", "counters", "errors", "model", "scrape", "systemd", "web"},
    "web": {"counters", "errors", "gauges", "model", "scrape", "targets"},
    "scrape": {
        "channel",
        "counters",
        "discovery",
        "errors",
        "model",
        "targets",
        "text.exposition",
        "text.memory",
        "text.merge",
    },
    "discovery": {"channel", "errors", "model", "targets", "wire"},
    "systemd": set(),
    "channel": {"errors", "model", "wire"},
    "journal": set(),
    "counters": set(),
    # ------------------------------------------------
    "wire": {"errors", "model"},
    "text.exposition": {
        "errors",
        "model",
        "text.follow",
        "text.lines",
        "text.memory",
        "text.parser",
        "text.relabel",
        "text.samples",
        "text.shape",
    },
    "text.follow": {"text.shape", "text.value"},
    "text.lines": {
        "errors",
        "text.memory",
        "text.metadata",
        "text.parser",
        "text.relabel",
        "text.samples",
        "text.shape",
        "text.value",
    },
    "text.samples": {"errors", "model", "text.memory", "text.parser", "text.relabel"},
    "text.metadata": {"model", "text.memory", "text.parser"},
    "text.memory": {"model", "text.parser", "text.shape"},
    "text.shape": {"model", "text.relabel"},
    "text.relabel": {"model", "text.escaping"},
    "text.parser": {"errors", "model", "text.escaping", "text.value"},
    "text.value": set(),
    "text.merge": {"model"},
    "text.escaping": set(),
    "text.__init__": set(),
    "config": {"errors", "model", "targets"},
    "targets": {"errors", "model"},
    "gauges": {"model", "text.escaping"},
    "model": {"errors"},
    "errors": set(),
    "__init__": set(),
}
PURE = (
    "wire",
    "text.exposition",
    "text.follow",
    "text.lines",
    "text.samples",
    "text.metadata",
    "text.memory",
    "text.shape",
    "text.relabel",
    "text.parser",
    "text.value",
    "text.merge",
    "text.escaping",
    "config",
    "targets",
    "gauges",
    "model",
    "errors",
)
SHELL = {
    "asyncio",
    "aiohttp",
    "os",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "datetime",
    "logging",
}
LIBRARIES = {
    "aiohttp": {"web", "daemon"},
    "prometheus_client": {"text.parser", "counters"},
    "tomli": {"config"},
}


def imports(module: str) -> tuple[set[str], set[str]]:
    """The modules of ours, and the top-level packages of others, that a module imports anywhere in its source."""
    ours: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.Import):
            others.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            package, _, rest = node.module.partition(".")
            if package != "federator":
                others.add(package)
            elif rest:
                ours.add(rest)
            else:
                ours.update(alias.name for alias in node.names if not alias.name.startswith("__"))
    return ours, others


def test_every_module_is_in_the_table() -> None:
    """A new module has to say where it belongs."""
    assert {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    """Data flows one way, and the table says which."""
    assert imports(module)[0] <= ALLOWED[module]


@pytest.mark.parametrize("module", PURE)
def test_the_core_knows_no_process_loop_socket_or_clock(module: str) -> None:
    """What judges bytes can be driven by a test with bytes alone."""
    assert not imports(module)[1] & SHELL


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_a_library_has_few_users(library: str) -> None:
    """Only text.parser asks prometheus_client's parser; only the shell knows aiohttp."""
    assert {module for module in ALLOWED if library in imports(module)[1]} == LIBRARIES[library]


def test_no_group_is_possessive() -> None:
    """Python before 3.11.5, and so Debian 12's, does not match what it should then (python/cpython #106052)."""
    for path in (*sorted(PACKAGE.rglob("*.py")), SERVICE):
        assert not re.search(r"\)(?:[*+?]|\{[\d,]+\})\+", path.read_text(encoding="utf-8")), path
