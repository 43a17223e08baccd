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
    "cli": {"config", "daemon", "errors", "journal", "model", "scrape", "targets", "telemetry", "wire"},
    "daemon": {"config", "errors", "model", "scrape", "systemd", "telemetry", "web"},
    "web": {"errors", "model", "scrape", "targets", "telemetry"},
    "scrape": {"channel", "discovery", "errors", "exposition", "memory", "merge", "model", "targets", "telemetry"},
    "discovery": {"channel", "errors", "model", "targets", "wire"},
    "systemd": set(),
    "channel": {"errors", "model", "wire"},
    "journal": set(),
    # ------------------------------------------------
    "wire": {"errors", "model"},
    "exposition": {"errors", "memory", "model", "shape", "value"},
    "memory": {"model", "shape"},
    "shape": {"model", "value"},
    "value": set(),
    "merge": {"model"},
    "config": {"errors", "model", "targets"},
    "targets": {"errors", "model"},
    "telemetry": {"model"},
    "model": {"errors"},
    "errors": set(),
    "__init__": set(),
}
PURE = ("wire", "exposition", "memory", "shape", "value", "merge", "config", "targets", "telemetry", "model", "errors")
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
    "prometheus_client": {"exposition", "telemetry"},
    "tomli": {"config"},
}


def imports(module: str) -> tuple[set[str], set[str]]:
    """The modules of ours, and the top-level packages of others, that a module imports anywhere in its source."""
    ours: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
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
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ALLOWED)


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
    """Only exposition asks the parser; only the shell knows aiohttp."""
    assert {module for module in ALLOWED if library in imports(module)[1]} == LIBRARIES[library]


def test_no_group_is_possessive() -> None:
    """Python before 3.11.5, and so Debian 12's, does not match what it should then (python/cpython #106052)."""
    for path in (*sorted(PACKAGE.glob("*.py")), SERVICE):
        assert not re.search(r"\)(?:[*+?]|\{[\d,]+\})\+", path.read_text(encoding="utf-8")), path
