# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of the log's events in docs/log.md, and the life of a call at `debug`."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from tests.helpers import ROOT, SERVICE
from tests.parts import Daemon, Exporter, toml
from tests.standin.qubes import Qubes

PAGE = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
LEVELS = {"debug": "debug", "note": "debug", "info": "info", "warning": "warn", "error": "error", "exception": "error"}
LEVELS |= {"Caught": "error", "tell": "error"}
# What a placeholder in an event stands for.
STANDS_FOR = {"%s is down": ("qube is down", "exporter is down"), "%s is back": ("qube is back", "exporter is back")}
# What `connections` makes of a record before it is written.
REWORDED = {("bad request", "error"): ("a request that is no HTTP; further ones are not logged for 60 s", "warn")}


def documented() -> dict[tuple[str, str], set[str]]:
    """The fields by event and level."""
    rows = re.findall(r"^\| (`+) ?(.+?) ?\1 \| (debug|info|warn|error) \| ([^|]*)\|", PAGE, re.MULTILINE)
    return {(event, level): set(re.findall(r"`([a-z]+)`", fields)) for _, event, level, fields in rows}


def is_logger(function: ast.expr) -> bool:
    """`log.info`, `self._log.info`; `note`, which writes at debug; `Caught` and `mishap.tell`, which write errors."""
    if isinstance(function, ast.Attribute):
        owner = function.value
        name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        return name.strip("_") in {"log", "mishap"} and function.attr in LEVELS
    return isinstance(function, ast.Name) and function.id in {"note", "Caught"}


def logged() -> dict[tuple[str, str], tuple[set[str], str]]:
    """What the code logs, by event and level: the fields that stand in the call itself, and the file's text."""
    found: dict[tuple[str, str], tuple[set[str], str]] = {}
    for path in sorted((ROOT / "federator").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and is_logger(node.func)):
                continue
            event = node.args[0]
            if not (isinstance(event, ast.Constant) and isinstance(event.value, str)):
                continue  # what asyncio says of a bug; and `note` itself
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            fields = {word.arg for word in node.keywords if name in {"note", "Caught", "tell"} and word.arg}
            for word in node.keywords:
                if word.arg == "extra" and isinstance(word.value, ast.Dict):
                    keys = (key.value for key in word.value.keys if isinstance(key, ast.Constant))
                    fields.update(key for key in keys if isinstance(key, str))
            for one in STANDS_FOR.get(event.value, (event.value,)):
                written = REWORDED.get((one, LEVELS[name]), (one, LEVELS[name]))
                assert written == (one, LEVELS[name]) or written[0] in text, written
                found[written] = (fields, text)
    return found


def test_the_list_has_all_events_with_their_levels() -> None:
    """And no others."""
    assert sorted(documented()) == sorted(logged())


def test_the_list_has_the_fields() -> None:
    """Each that stands where the event is logged; and each of the list is in that file."""
    for event, (fields, text) in logged().items():
        assert fields <= documented()[event], event
        unknown = {field for field in documented()[event] if not re.search(rf'"{field}"[]:]|\b{field}=', text)}
        assert not unknown, event


def told(text: str, style: str) -> list[dict[str, str]]:
    """The lines of a log."""
    if style == "json":
        lines: list[dict[str, object]] = [json.loads(line) for line in text.splitlines()]
        return [{key: str(value) for key, value in line.items()} for line in lines]
    return [dict(word.split("=", 1) for word in shlex.split(line)) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("style", ["logfmt", "json"])
def test_the_life_of_a_call_at_debug(tmp_path: Path, style: str) -> None:
    """Opened, greeted, asked, answered, ended; and for a call that dom0 refuses, how long the next one waits."""
    qubes = Qubes(tmp_path / "machine", SERVICE)
    qubes.add("work")
    qubes.add("vault", policy="deny")
    with Exporter(b"m 1\n") as exporter:
        of = {"work": {"app": exporter.port}, "vault": {"app": exporter.port}}
        arguments = ("--log.level=debug", f"--log.format={style}")
        text = toml(of, client=qubes.client, qrexec='backoff_initial = "5m"')
        with Daemon(tmp_path, text, qubes.env, arguments=arguments) as daemon:
            for _ in range(3):
                daemon.get()
    lines = told(daemon.log, style)
    service = f"ruddo.PrometheusProxy+{exporter.port}"

    def life(qube: str) -> list[str]:
        return [line["msg"] for line in lines if line.get("qube") == qube and line["level"] == "debug"]

    asked = ["a call was asked", "a call was answered"]
    ended = ["a call was ended", "a call's process is gone"]
    assert life("work") == ["a call was opened", "a call was greeted", *asked * 3, *ended]
    assert sorted(life("vault")) == sorted(["a call was opened", *ended, "calls wait"])
    assert {line["call"] for line in lines if "call" in line} == {service}
    (wait,) = (line for line in lines if line["msg"] == "calls wait")
    assert (wait["qube"], wait["endpoints"], wait["reason"]) == ("vault", str(exporter.port), "refused")
    answered = [line for line in lines if line["msg"] == "a call was answered"]
    assert {(line["endpoint"], line["status"], line["bytes"]) for line in answered} == {
        (str(exporter.port), "200", "4")
    }
    assert len([line for line in lines if line["msg"] == "qube is down"]) == 1, "a line for a change, none for a scrape"
