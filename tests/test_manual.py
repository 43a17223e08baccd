# SPDX-License-Identifier: GPL-3.0-or-later
"""Manual pages and completion of the shell: they name what the program has, and are what man and bash take."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from federator import arguments, journal
from tests.helpers import ROOT
from tests.parts import debian_program
from tests.test_config import keys_of_the_schema

MANUAL = ROOT / "conf" / "man"
PROGRAM_PAGE = MANUAL / "prometheus-qubes-proxy.1"
WRITTEN = sorted(MANUAL.glob("*.[158]"))


def configuration_page() -> str:
    """The page that `make install-proxy` makes of docs/configuration.md."""
    done = subprocess.run([sys.executable, MANUAL / "configuration.py"], capture_output=True, text=True, check=True)
    return done.stdout


@functools.cache
def options() -> dict[str, bool]:
    """Every long option of the program, and whether it takes a value: what --help says."""
    text = subprocess.run(
        [sys.executable, "-m", "federator", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^  (?:-h, )?(--[a-z.-]+)( [A-Z{])?", text, re.MULTILINE)
    return {name: bool(value) for name, value in found}


def test_the_page_of_the_command_has_every_command_and_option() -> None:
    """And none that is not there, in the synopsis and in the text."""
    text = PROGRAM_PAGE.read_text(encoding="utf-8")
    synopsis, described = text[text.index(".Sh SYNOPSIS") : text.index(".Sh DESCR")], text[text.index(".Sh DESCR") :]
    assert set(re.findall(r"^(?:\.Op )?\.?Cm ([a-z-]+)", synopsis, re.MULTILINE)) == set(arguments.COMMANDS)
    assert set(re.findall(r"^\.It Cm ([a-z-]+)", described, re.MULTILINE)) == set(arguments.COMMANDS)
    assert {f"-{name}" for name in re.findall(r"Fl (-[a-z.-]+)", described)} == set(options())
    assert {f"-{name}" for name in re.findall(r"(?:Fl|\|) (-[a-z.-]+)", synopsis)} == set(options())


def test_the_page_of_the_configuration_has_every_key() -> None:
    """It is made of docs/configuration.md; no key, default or meaning is lost on the way."""
    text = configuration_page()
    keys = [key.replace(r"\-", "-") for key in re.findall(r"^\.TP\n\\fB(.*)\\fR$", text, re.MULTILINE)]
    assert set(keys) - {"exporters.NAME"} == keys_of_the_schema()
    without = len(re.findall(r"^\| `[\w.]+` \| \| ", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE))
    assert len(re.findall(r"^Default: .+\.$", text, re.MULTILINE)) == len(keys) - without
    shown = _shown(text)
    assert "Default: 10s." in shown
    assert "`" not in shown
    assert "](" not in shown


def _shown(page: str) -> str:
    return subprocess.run(
        [debian_program("mandoc"), "-T", "ascii", "-O", "width=200"],
        input=re.sub(r"\\fB|\\fR", "", page), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize("tool", ["mandoc", "groff"])
def test_the_pages_are_what_man_takes(tool: str, tmp_path: Path) -> None:
    """Neither mandoc nor groff warns."""
    made = tmp_path / "prometheus-qubes-proxy.toml.5"
    made.write_text(configuration_page(), encoding="utf-8")
    words = {"mandoc": ["-T", "lint", "-W", "warning"], "groff": ["-mandoc", "-K", "utf8", "-ww", "-z"]}[tool]
    assert len(WRITTEN) == 3
    for page in (*WRITTEN, made):
        done = subprocess.run([debian_program(tool), *words, page], capture_output=True, text=True, check=False)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "mandoc.db" not in line]
        assert (done.returncode, said) == (0, []), page


def test_pages_name_each_other() -> None:
    """Each page that one of ours refers to is one of ours, or Prometheus'."""
    pages = {(path.stem, path.suffix[1:]) for path in WRITTEN} | {("prometheus-qubes-proxy.toml", "5")}
    for path in WRITTEN:
        named = set(re.findall(r"^\.Xr (\S+) (\d)", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert named
        assert named <= pages | {("prometheus", "1")}


def complete(line: str, path: Path) -> set[str]:
    """What bash offers where TAB is pressed at the end of this line. `path`: where it finds the program."""
    script = """
    source "$1"; shift
    COMP_LINE=$1; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    _prometheus_qubes_proxy
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    # bash itself splits words at = and :, too.
    words = re.findall(r"=|[^\s=]+", line) + ([""] if line.endswith(" ") else [])
    done = subprocess.run(
        [debian_program("bash"), "-c", script, "bash", ROOT / "conf" / "completion.bash", line, *words],
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_every_command_and_option(tmp_path: Path) -> None:
    """With each command those options that it can have, and no others."""
    parse_with = {command: _possible(command) for command in arguments.COMMANDS}
    assert complete("prometheus-qubes-proxy ", tmp_path) == {
        *arguments.COMMANDS,
        *(f"{name}=" if value else name for name, value in options().items() if name != "--json"),
    }
    for command in ("serve", "check", "scrape", "doctor", "policy"):
        offered = {word.rstrip("=") for word in complete(f"prometheus-qubes-proxy {command} --", tmp_path)}
        assert offered == parse_with[command], command
    assert complete("prometheus-qubes-proxy --log.level=", tmp_path) == set(journal.LEVELS)
    assert complete("prometheus-qubes-proxy --log.format=l", tmp_path) == {"logfmt"}
    assert complete("prometheus-qubes-proxy sc", tmp_path) == {"scrape"}


def _possible(command: str) -> set[str]:
    """Every option that the program takes with this command."""
    values = {"--log.level": "info", "--log.format": "json", "--web.listen-address": ":1"}
    possible = set()
    for name, value in options().items():
        try:
            arguments.parse([command, f"{name}={values.get(name, 'x')}" if value else name])
        except SystemExit:  # so do --help and --version
            continue
        possible.add(name)
    return possible


def test_bash_completes_names_of_qubes(tmp_path: Path) -> None:
    """After `scrape`, those of the configuration."""
    program = tmp_path / "prometheus-qubes-proxy"
    program.write_text(
        "#!/bin/sh\necho '/etc/p.toml: exporters: 2, qubes: 2'\n"
        "echo '  work     ruddo.PrometheusProxy+9100  node (9100)'\n"
        "echo '  sys-net  here, without qrexec  node (9100)'\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    assert complete("prometheus-qubes-proxy scrape w", tmp_path) == {"work"}
    assert complete("prometheus-qubes-proxy scrape sys", tmp_path) == {"sys-net"}
