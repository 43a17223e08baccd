# SPDX-License-Identifier: GPL-3.0-or-later
"""Our packages and our Salt states in a fresh Debian: from the folders of `make repo` to nothing left."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from federator import __version__
from federator.host import own_name
from tests.debian_root import Root, made
from tests.helpers import ROOT
from tests.parts import debian_program
from tests.test_packages import POLICY_LINE

# `make coverage` runs them once; what runs in the root is not measured.
pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]

NAME = "prometheus-qubes-proxy"
FORMULA = ROOT / "conf" / "salt" / NAME
STATES = sorted(path.stem for path in FORMULA.glob("*.sls"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make repo` makes, of a copy of the sources."""
    for program in ("rpmbuild", "dpkg-buildpackage", "dh", "dh_python3", "apt-ftparchive", "createrepo_c"):
        debian_program(program)
    source = tmp_path_factory.mktemp("repository") / "source"
    ignored = shutil.ignore_patterns(".*", "dist", "__pycache__", "recordings", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    done = subprocess.run([debian_program("make"), "-C", source, "repo"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpg --clearsign --output dist/repo/apt/InRelease dist/repo/apt/Release" in done.stdout
    return source / "dist" / "repo"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """A Debian. A test takes away what it put there."""
    folder = tmp_path_factory.mktemp("debian") / "root"
    yield made(folder)
    shutil.rmtree(folder)


def test_dnf_reads_the_repository(repository: Path, tmp_path: Path) -> None:
    """It finds every package, with what it needs."""
    words = [debian_program("dnf"), "--quiet", *(f"--setopt={key}dir={tmp_path}" for key in ("cache", "persist"))]
    words += ["--disablerepo=*", f"--repofrompath=ours,file://{repository}/dnf", "--releasever=42", "repoquery"]
    listed = subprocess.run([*words, "--qf=%{name}"], capture_output=True, text=True, check=True).stdout.split()
    assert listed == [NAME, *(f"{NAME}-{part}" for part in ("dom0", "monitor", "service"))]
    needs = subprocess.run([*words, "--requires", f"{NAME}-monitor"], capture_output=True, text=True, check=True).stdout
    assert "/usr/bin/prometheus\n" in needs


def test_apt_installs_and_purges(repository: Path, root: Root) -> None:
    """From the folder of `make repo`, with all dependencies; compiled, enabled, and gone without a trace."""
    before = root.files()
    shutil.copytree(repository / "apt", root.folder / "repo")
    ours = root.folder / "etc/apt/sources.list.d/ours.list"
    ours.write_text("deb [trusted=yes] file:/repo ./\n", encoding="utf-8")
    only = ["-o", "Dir::Etc::sourceparts=-", "-o", "Dir::Etc::sourcelist=/etc/apt/sources.list.d/ours.list"]
    root.run("apt-get", "update", "-qq", *only, "-o", "APT::Get::List-Cleanup=0")
    packages = [f"{NAME}-{part}" for part in ("monitor", "service", "dom0")]
    root.run("apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages)
    installed = root.files()
    assert any(re.search(r"text/__pycache__/merge\.cpython-\d+\.pyc$", path) for path in installed)
    for unit in (NAME, f"{NAME}-monitor"):
        assert f"etc/systemd/system/multi-user.target.wants/{unit}.service" in installed
    version = root.run(NAME, "--version")
    assert version.startswith(f"{NAME}, version {__version__} (python 3.11")
    # A command that root ran leaves nothing, either.
    root.run("python3", "-c", f"import sys; sys.path.insert(0, '/usr/share/{NAME}'); import federator.cli")
    root.run("apt-get", "purge", "-qq", "-y", NAME, *packages)
    shutil.rmtree(root.folder / "repo")
    ours.unlink()
    assert root.files() == before


class Salt:
    """
    Salt in a root, as dom0 has it: the formula of the package, the operator's pillar, a stand-in for `qvm`.

    `qubesctl` runs the same states in a template through a disposable; here they are applied in place.
    """

    def __init__(self, root: Root, program: Path) -> None:
        self.root = root
        self._program = program
        done = subprocess.run(
            [debian_program("make"), "install-dom0", f"DESTDIR={root.folder}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        states = root.folder / "srv/salt/_states"
        states.mkdir(parents=True)
        shutil.copy(ROOT / "tests/standin/qvm.py", states)
        systemctl = root.folder / "usr/bin/systemctl"
        systemctl.write_text('#!/bin/sh\necho "$*" >>/var/log/systemctl\n', encoding="utf-8")
        systemctl.chmod(0o755)
        self.configure()
        self.call("saltutil.sync_states")

    def configure(self, **more: object) -> None:
        """Write the minion's configuration; `more` are further keys of it."""
        minion = {
            "id": "dom0",
            "file_client": "local",
            "file_roots": {"base": ["/srv/salt"]},
            "pillar_roots": {"base": ["/srv/pillar/base"]},
            "state_events": False,
            "fileserver_list_cache_time": 0,  # Salt remembers for 20 s which files there are; tests are faster
            **more,
        }
        # In dom0 it is one of these files, too: Salt adds up the lists of all of them.
        (self.root.folder / "etc/salt/minion.d/f_defaults.conf").write_text(json.dumps(minion), encoding="utf-8")

    def pillar(self, text: str) -> None:
        """What the operator wrote, enabled for all."""
        folder = self.root.folder / "srv/pillar/base"
        (folder / NAME / "init.sls").write_text(text, encoding="utf-8")
        shutil.copy(folder / NAME / "init.top", folder / "top.sls")

    def call(self, *words: str) -> Any:
        """The answer of a function of Salt."""
        text = self.root.run(self._program, "--local", "--out=json", "--log-level=warning", *words)
        return json.loads(text)["local"]

    def apply(self, *states: str) -> dict[str, Any]:
        """Apply states, which must go well; what each changed."""
        results = self.call("state.apply", ",".join(f"{NAME}.{state}" for state in states))
        assert isinstance(results, dict), results
        assert all(one["result"] for one in results.values()), results
        return {one["__id__"]: one["changes"] for one in results.values() if one["changes"]}


@pytest.fixture(scope="module")
def salt(root: Root) -> Salt:
    """Salt, from PyPI; Debian 12 has none."""
    program = shutil.which("salt-call")
    if program is None:
        why = (
            "salt-call is not on the PATH (/usr/bin/python3 -m venv FOLDER,"
            " FOLDER/bin/python -m pip install --require-hashes --requirement tests/salt.lock)"
        )
        if os.environ.get("REQUIRE_SALT"):
            pytest.fail(why)
        pytest.skip(why)
    found = Path(program).resolve()
    root.venv = found.parent.parent
    return Salt(root, found)


PILLAR = """
prometheus-qubes-proxy:
  qube: sys-monitor
  template: debian-12
  templates: [debian-12, fedora-42]
  watch: [work, personal]
  exporters: {process: 9256, node: 9100}
"""


def test_every_state_compiles(salt: Salt) -> None:
    """In a Debian and in a Fedora, with the pillar as the package has it, and without any."""
    names = ",".join(f"{NAME}.{state}" for state in STATES)
    package = {"Debian": "prometheus-node-exporter", "RedHat": "node-exporter"}
    shipped = (FORMULA.parent / "pillar/init.sls").read_text(encoding="utf-8")
    without: Any = None
    for family in ("Debian", "RedHat"):
        salt.configure(grains={"os_family": family})
        compiled = salt.call("state.show_sls", names)
        assert isinstance(compiled, dict), compiled
        assert {one["__sls__"] for one in compiled.values()} == {
            f"{NAME}.{state}"
            for state in STATES
            if not state.endswith("tag")  # no qube is to be watched yet
        }
        text = json.dumps(compiled[f"{NAME}-node-exporter"])
        assert f'"{package[family]}"' in text
        assert ("enabled" in text) == (family == "RedHat")
        without = compiled
    salt.pillar(shipped)
    assert salt.call("state.show_sls", names) == without  # the values of the pillar are the defaults
    salt.configure()


def test_the_top_files_give_each_its_states(salt: Salt) -> None:
    """dom0, the templates and the monitoring qube; and nothing is made that the other one does not take back."""
    salt.pillar(PILLAR)
    shown = {
        name: salt.call("slsutil.renderer", f"salt://{NAME}/{name}.top", "default_renderer=jinja|yaml")["base"]
        for name in ("init", "remove")
    }
    assert shown["init"] == {
        "dom0": [f"{NAME}.{state}" for state in ("create", "tag", "policy")],
        "debian-12": [f"{NAME}.{state}" for state in ("install-service", "install-node-exporter", "install-monitor")],
        "fedora-42": [f"{NAME}.{state}" for state in ("install-service", "install-node-exporter")],
        "sys-monitor": [f"{NAME}.configure"],
    }
    assert shown["remove"] == {
        "dom0": [f"{NAME}.{state}" for state in ("remove-policy", "remove-tag")],
        "debian-12": [f"{NAME}.remove-packages"],
        "fedora-42": [f"{NAME}.remove-packages"],
        "sys-monitor": [f"{NAME}.remove-configuration"],
    }
    named = {state.partition(".")[2] for top in shown.values() for states in top.values() for state in states}
    assert set(STATES) == named | {"remove-qube"}  # which deletes the data: nobody gets it unasked


def machine(salt: Salt) -> Any:
    """The qubes as the stand-in has them."""
    return json.loads((salt.root.folder / "qvm.json").read_text(encoding="utf-8"))


def test_dom0_makes_the_qube_and_lets_it_read(salt: Salt) -> None:
    """An offline qube with both flags; the policy is what our own command prints; and all can be taken back."""
    others = {"work": {"tags": ["mine"]}, "personal": {}}
    (salt.root.folder / "qvm.json").write_text(json.dumps(others), encoding="utf-8")
    salt.pillar(PILLAR)
    before = salt.root.files()
    assert set(salt.apply("create", "tag", "policy", "configure")) == {
        f"{NAME}-{what}" for what in ("create", "tag-work", "tag-personal", "policy", "configure")
    }
    assert machine(salt) == {
        "sys-monitor": {
            "prefs": {"template": "debian-12", "label": "gray", "netvm": "", "autostart": True, "maxmem": 1500},
            "features": ["service.prometheus-qubes-proxy", "service.prometheus-qubes-proxy-monitor", "servicevm"],
        },
        "work": {"tags": ["mine", "monitored"]},
        "personal": {"tags": ["monitored"]},
    }
    policy = salt.root.folder / "etc/qubes/policy.d/31-prometheus-qubes-proxy.policy"
    lines = [line for line in policy.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
    assert all(POLICY_LINE.fullmatch(line) for line in lines)
    settings = salt.root.folder / "rw/config/prometheus-qubes-proxy.toml"
    words = ["/usr/bin/python3", "-m", "federator", "policy", f"--config.file={settings}"]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    printed = [line.replace(f" {own_name()} ", " sys-monitor ") for line in printed if not line.startswith("#")]
    assert lines == [" ".join(line.split()) for line in printed]
    assert salt.apply("create", "tag", "policy", "configure") == {}  # a second run changes nothing
    assert salt.apply("remove-policy", "remove-tag", "remove-configuration")
    assert machine(salt)["work"] == {"tags": ["mine"]}
    assert salt.root.files() == before
    assert "restart prometheus-qubes-proxy\n" in (salt.root.folder / "var/log/systemctl").read_text(encoding="utf-8")
    assert salt.apply("remove-qube")
    assert set(machine(salt)) == {"work", "personal"}
    assert salt.apply("remove-policy", "remove-tag", "remove-configuration", "remove-qube") == {}


def test_a_template_gets_the_packages(salt: Salt, repository: Path) -> None:
    """From the files that lie in dom0; a second run changes nothing; and they can be removed again."""
    before = salt.root.files()
    packages = salt.root.folder / f"srv/salt/{NAME}/packages"
    packages.mkdir(parents=True)
    for path in (*(repository / "apt").glob("*.deb"), *(repository / "dnf").glob("*.rpm")):
        shutil.copy(path, packages)
    states = ("install-service", "install-node-exporter", "install-monitor")
    changes = salt.apply(*states)
    assert {name for of in changes.values() for name in of} >= {
        NAME, f"{NAME}-monitor", f"{NAME}-service", "prometheus-node-exporter",
    }  # fmt: skip
    assert salt.root.run(NAME, "--version").startswith(f"{NAME}, version {__version__} ")
    assert salt.apply(*states) == {}
    assert salt.apply("remove-packages")
    salt.root.run("apt-get", "purge", "-qq", "-y", "prometheus-node-exporter")
    salt.root.run("apt-get", "autoremove", "--purge", "-qq", "-y")
    shutil.rmtree(packages)
    assert salt.root.files() - before == set()
