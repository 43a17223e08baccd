# SPDX-License-Identifier: GPL-3.0-or-later
"""
Grafana's own types of a dashboard, and the TypeScript compiler that compares a dashboard with them. Both come from npm.

They do not look inside of queries and options of panels.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

# The compiler of this major version is written in TypeScript itself, and so needs no program of this machine's kind.
PACKAGES = ("@grafana/schema@13.2.3", "typescript@5.9.3")
NPM_SECONDS = 120
FLAGS = ("--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "bundler", "--module", "esnext")


def install(folder: Path) -> None:
    """Install the packages. If npm does not give them, the test is skipped, and says so."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("npm or node is not installed, so Grafana's types cannot be had")
    words = [npm, "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", f"--prefix={folder}", *PACKAGES]
    try:
        subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=NPM_SECONDS)
    except subprocess.SubprocessError as error:
        pytest.skip(f"npm does not give {' and '.join(PACKAGES)}: {error}")


# JSON has the text of an enumeration's value, which TypeScript does not take for the value.
SOURCE = """import type { Dashboard } from '@grafana/schema';
type Plain<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
export const one: Plain<Dashboard> = """


def faults(folder: Path, dashboard: str) -> str:
    """What the compiler has to say against this JSON; nothing if all is well. The packages are in `folder`."""
    source = folder / "dashboard.ts"
    source.write_text(SOURCE + dashboard, encoding="utf-8")
    compiler = folder / "node_modules" / "typescript" / "bin" / "tsc"
    words = ["node", str(compiler), *FLAGS, str(source)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout
