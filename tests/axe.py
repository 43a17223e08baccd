# SPDX-License-Identifier: GPL-3.0-or-later
"""axe-core, which finds what makes a page hard to use with a screen reader or a keyboard. It comes from npm."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser

PACKAGE, VERSION = "axe-core", "4.14.1"
# As npm says it (`npm view axe-core@4.14.1 dist.integrity`): another file is not used.
SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
NPM_SECONDS = 60
# What the page gives back: for each rule that is broken, its name and where.
RUN = """
return axe.run(document, {resultTypes: ["violations"]}).then(
    (found) => found.violations.map((one) => [one.id, ...one.nodes.map((node) => node.html.slice(0, 200))]));
"""


def source(folder: Path) -> str:
    """The program. If npm does not give it, the test is skipped, and says so. A copy of the package is in `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, so axe-core cannot be had")
    words = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    try:
        subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=NPM_SECONDS)
    except subprocess.SubprocessError as error:
        pytest.skip(f"npm does not give {PACKAGE} {VERSION}: {error}")
    package = folder / f"{PACKAGE}-{VERSION}.tgz"
    assert base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode() == SHA512
    with tarfile.open(package) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def violations(browser: Browser, program: str) -> Any:
    """The rules that the page breaks. The browser's own interface runs the program, so the page's policy stays."""
    return browser.run(f"{program}\n{RUN}")
