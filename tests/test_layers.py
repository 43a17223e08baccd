# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may import whom. A newcomer reads this table to learn the architecture; this test keeps it true."""

import ast
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import SERVICE

PACKAGE = Path(__file__).parent.parent / "federator"

# Below the line: no process, event loop, socket or clock.
ALLOWED = {
    "__main__": {"cli"},
    "arguments": {"config", "journal", "model", "terminal", "web_config"},
    "cli": {
        "access",
        "arguments",
        "config",
        "daemon",
        "doctor",
        "errors",
        "host",
        "journal",
        "listeners",
        "model",
        "once",
        "passwords",
        "policy",
        "presence",
        "terminal",
        "wire",
    },
    "once": {"counters", "errors", "fleet", "host", "model", "scrape", "statelog", "terminal", "units"},
    "doctor": {
        "access",
        "config",
        "daemonview",
        "dom0_findings",
        "dom0_probe",
        "errors",
        "findings",
        "host",
        "listeners",
        "model",
        "once",
        "policy",
        "presence",
        "remedies",
        "terminal",
        "units",
    },
    "listeners": {"daemonview", "host", "model", "presence"},
    "presence": {"findings", "host", "model"},
    "terminal": {"errors"},
    "daemon": {
        "budget",
        "collector",
        "config",
        "connections",
        "counters",
        "errors",
        "host",
        "model",
        "shares",
        "systemd",
        "unexpected",
        "units",
        "web",
    },
    "unexpected": {"budget", "connections", "seldom"},
    "collector": set(),
    "host": {"errors", "model"},
    "systemd": set(),
    "journal": set(),
    "access": {"errors", "model", "pace", "passwords", "tls"},
    "passwords": {"errors", "network", "pace"},
    "tls": {"errors", "model"},
    "web": {
        "access",
        "admission",
        "asking",
        "connections",
        "counters",
        "dom0",
        "errors",
        "fleet",
        "forward",
        "history",
        "model",
        "network",
        "page",
        "request",
        "requestlog",
        "scrape",
        "shares",
        "statelog",
        "status",
        "targets",
        "text.content_type",
    },
    "connections": {"door", "errors", "network", "pace", "seldom", "tls"},
    "door": {"network", "pace", "seldom"},
    "network": set(),
    "requestlog": {"errors", "seldom"},
    "seldom": set(),
    "status": {
        "api",
        "dom0_replies",
        "errors",
        "fleet",
        "history",
        "model",
        "policy",
        "rows",
        "scheduler",
        "sight",
        "views",
    },
    "dom0": {
        "backoff",
        "call",
        "dom0_calls",
        "dom0_figures",
        "dom0_replies",
        "dom0_round",
        "errors",
        "model",
        "reasons",
        "targets",
    },
    "dom0_calls": {"call", "dom0_figures", "dom0_replies", "errors", "model", "reasons", "targets", "wire"},
    "dom0_round": {"dom0_calls", "dom0_figures", "dom0_replies", "errors", "model", "targets"},
    "dom0_probe": {
        "call",
        "counters",
        "dom0_calls",
        "dom0_figures",
        "dom0_findings",
        "dom0_replies",
        "errors",
        "model",
        "policy",
        "reasons",
        "targets",
    },
    "dom0_replies": {"errors", "targets", "wire"},
    "dom0_figures": {"dom0_replies", "model", "targets", "text.escaping"},
    "page": {"dom0", "fleet", "gauges", "model", "scheduler", "text.merge"},
    "forward": {
        "counters",
        "errors",
        "fleet",
        "mishap",
        "model",
        "reasons",
        "request",
        "scrape",
        "statelog",
        "targets",
        "text.content_type",
    },
    "asking": {"budget", "cost", "errors", "model", "reasons", "request", "shares", "text.exposition"},
    "scrape": {
        "asking",
        "channel",
        "cost",
        "counters",
        "errors",
        "fleet",
        "history",
        "mishap",
        "model",
        "reasons",
        "request",
        "scheduler",
        "statelog",
        "targets",
        "text.exposition",
    },
    "statelog": {"errors", "model"},
    "scheduler": {"turns"},
    "fleet": {
        "budget",
        "call",
        "channel",
        "counters",
        "discovery",
        "errors",
        "model",
        "pace",
        "shares",
        "targets",
        "text.exposition",
        "text.memory",
    },
    "discovery": {"backoff", "call", "errors", "model", "targets", "wire"},
    "channel": {"budget", "call", "errors", "model", "pace", "reasons", "request", "slot", "turns", "wire"},
    "turns": set(),
    "slot": {"backoff", "budget", "call", "errors", "model", "reasons", "request", "turns", "wire"},
    "request": {"errors", "model"},
    "call": {"budget", "errors", "mishap", "model", "reasons", "wire"},
    "mishap": {"errors", "reasons"},
    "counters": {"model"},
    # ------------------------------------------------
    "admission": {"errors"},
    "cost": set(),
    "budget": set(),
    "shares": {"model"},
    "backoff": set(),
    "pace": set(),
    "reasons": {"errors", "model", "wire"},
    "wire": {"errors", "model"},
    "text.__init__": set(),
    "text.content_type": set(),
    "text.escaping": set(),
    "text.allowance": set(),
    "text.complaint": {"errors"},
    "text.exposition": {
        "errors",
        "model",
        "text.allowance",
        "text.content_type",
        "text.follow",
        "text.lines",
        "text.memory",
        "text.metadata",
        "text.parser",
        "text.relabel",
        "text.samples",
        "text.shape",
        "text.timestamp",
    },
    "text.follow": {"text.shape", "text.value"},
    "text.lines": {
        "model",
        "text.metadata",
        "text.parser",
        "text.relabel",
        "text.samples",
        "text.shape",
        "text.timestamp",
        "text.value",
    },
    "text.memory": {"model", "text.parser", "text.shape"},
    "text.merge": {"model"},
    "text.metadata": {"model", "text.allowance", "text.memory", "text.parser"},
    "text.parser": {"errors", "model", "text.complaint", "text.escaping", "text.value"},
    "text.relabel": {"model", "text.escaping", "text.value"},
    "text.samples": {
        "model",
        "text.allowance",
        "text.memory",
        "text.parser",
        "text.relabel",
        "text.timestamp",
    },
    "text.shape": {"model", "text.relabel"},
    "text.timestamp": set(),
    "text.value": set(),
    "config": {"errors", "model", "pattern", "targets", "toml_reader", "web_config"},
    "web_config": {"model", "toml_reader"},
    "toml_reader": {"errors"},
    "targets": {"errors", "model", "wire"},
    "policy": {"dom0_replies", "model", "targets", "wire"},
    "findings": {"errors", "model", "policy", "reasons", "remedies", "targets", "units"},
    "dom0_findings": {"errors", "findings", "policy", "remedies", "targets"},
    "daemonview": {"dom0_findings", "errors", "findings", "model", "targets", "units"},
    "remedies": {"errors", "model", "policy", "reasons", "targets"},
    "gauges": {"model", "text.escaping"},
    "history": {"errors", "model"},
    "markup": set(),
    "api": {"history", "model", "policy", "remedies", "sight", "units"},
    "dom0_view": {"dom0_replies", "markup", "policy", "remedies", "rows", "sight"},
    "views": {"dom0_view", "history", "markup", "model", "remedies", "rows", "settings", "sight", "sparkline", "units"},
    "rows": {"errors", "history", "markup", "model", "remedies", "sight", "sparkline", "units"},
    "sight": {"errors", "history", "model"},
    "settings": {"model", "pattern"},
    "sparkline": {"markup"},
    "units": set(),
    "model": {"errors", "pattern"},
    "pattern": set(),
    "errors": set(),
    "__init__": set(),
}
PURE = (
    "admission",
    "network",
    "cost",
    "budget",
    "shares",
    "backoff",
    "pace",
    "reasons",
    "wire",
    "text.allowance",
    "text.content_type",
    "text.escaping",
    "text.exposition",
    "text.follow",
    "text.lines",
    "text.memory",
    "text.merge",
    "text.metadata",
    "text.parser",
    "text.relabel",
    "text.samples",
    "text.shape",
    "text.relabel",
    "text.parser",
    "text.timestamp",
    "text.value",
    "config",
    "web_config",
    "toml_reader",
    "targets",
    "policy",
    "findings",
    "daemonview",
    "dom0_findings",
    "remedies",
    "gauges",
    "history",
    "markup",
    "api",
    "dom0_view",
    "views",
    "rows",
    "sight",
    "settings",
    "sparkline",
    "model",
    "pattern",
    "errors",
)
SHELL = {
    "asyncio",
    "aiohttp",
    "os",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
    "datetime",
    "logging",
}
LIBRARIES = {
    "aiohttp": {"connections", "daemon", "web"},
    "bcrypt": {"passwords"},
    "prometheus_client": {"text.parser", "counters"},
    "tomli": {"toml_reader"},
}


@cache
def nodes(path: Path) -> Sequence[ast.AST]:
    """The source of a file, as Python's parser sees it."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(module: str) -> tuple[set[str], set[str]]:
    """The modules of ours, and the top-level packages of others, that a module imports anywhere in its source."""
    ours: set[str] = set()
    others: set[str] = set()
    for node in nodes(PACKAGE / f"{module.replace('.', '/')}.py"):
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


MAX_LINES = {ast.ClassDef: 200, ast.FunctionDef: 50, ast.AsyncFunctionDef: 50}


def too_long(path: Path) -> set[str]:
    """The classes and functions of a file that have too many lines. Decorators do not count."""
    return {
        f"{path.relative_to(PACKAGE.parent)}: {node.name}"
        for node in nodes(path)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_LINES[type(node)]
    }


def test_no_class_and_no_function_is_too_long() -> None:
    """A reader can keep each of them in mind."""
    paths = [*PACKAGE.rglob("*.py"), *SERVICE.parent.glob("ruddo.*")]
    assert not set().union(*map(too_long, paths))
