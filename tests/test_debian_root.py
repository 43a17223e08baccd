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
from tests.standin.qubes import Qubes
from tests.test_discovery import ADMIN_VM_LIST, dom0
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


@pytest.fixture(scope="module")
def salt_call(root: Root) -> Path:
    """The program of Salt, from PyPI; Debian 12 has none."""
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
    return found


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


def minion(root: Root, **more: object) -> None:
    """Configure Salt as Qubes does; `more` are further keys."""
    keys = {
        "id": "dom0",
        "file_client": "local",
        "file_roots": {"base": ["/srv/salt"]},
        "pillar_roots": {"base": ["/srv/pillar/base"]},
        "state_events": False,
        "fileserver_list_cache_time": 0,  # Salt remembers for 20 s which files there are; tests are faster
        **more,
    }
    folder = root.folder / "etc/salt/minion.d"
    folder.mkdir(parents=True, exist_ok=True)
    # The formula has such a file, too: Salt adds up the lists of all of them.
    (folder / "f_defaults.conf").write_text(json.dumps(keys), encoding="utf-8")


README = (ROOT / "README.md").read_text(encoding="utf-8")
# What a person writes: this test has one template, and one file that is theirs.
TARGETS = "debian-12-xfce,sys-monitor"
EDITED = """
prometheus-qubes-proxy:
  templates: [debian-12-xfce]
  watch: [work, personal]
"""
NODE_EXPORTER = "lib/systemd/system/prometheus-node-exporter.service"
# They watch a whole machine; this one has no other network.
QUERY = "http://127.0.0.1:9090/api/v1/query?query=count%20by%20(instance)%20(node_uname_info)"


def commands(text: str) -> list[str]:
    """The commands of a section, in the order in which they stand there."""
    text = re.sub(r"\\\n +", "", text)  # a long one goes on in the next line
    return [line[4:] for line in text.splitlines() if line.startswith("    ")]


def in_dom0(root: Root, salt_call: Path, command: str) -> None:
    """Run a line of the documentation in dom0, with the names that this machine has."""
    command = command.replace("DIRECTORY", "/build")
    command = re.sub(r"--targets=\S+", f"--targets={TARGETS}", command)
    root.run("sh", "-ec", command, env={"SALT_CALL": str(salt_call), "EDITED": EDITED, "PATH": f"/standin:{PATHS}"})


QUBES = ("work", "personal", "vault")  # two of them are to be watched
PATHS = "/usr/sbin:/usr/bin:/sbin:/bin"


def test_readme_leads_from_nothing_to_a_graph(repository: Path, root: Root, salt_call: Path) -> None:
    """Its own commands, word for word; then the units' commands run, and all goes away by the commands of the page."""
    source = repository.parent.parent
    before = root.files()
    in_build, *rest = commands(README.partition("## On this machine alone")[2].partition("\n## ")[0])
    done = subprocess.run([debian_program("sh"), "-c", in_build], cwd=source, capture_output=True, check=False)
    assert done.returncode == 0
    shutil.copytree(source / "dist", root.folder / "build/dist", ignore=shutil.ignore_patterns("repo"))
    shutil.copytree(ROOT / "tests/standin", root.folder / "standin")
    for name in ("qubesctl", "sudo", "qvm-run", "rpm", "sudoedit"):
        program = root.folder / "standin" / name
        program.write_text(f"#!/usr/bin/python3 -I\n{(ROOT / 'tests/standin/dom0.py').read_text(encoding='utf-8')}")
        program.chmod(0o755)
    _qubes(root)
    for command in rest:
        in_dom0(root, salt_call, command)
    assert _started(root) == {"work", "personal"}

    *away, delete_qube, no_pillar, no_package, no_folders = commands(
        (ROOT / "docs/monitoring-qube.md").read_text(encoding="utf-8").partition("## Taking everything away")[2]
    )
    for command in away:
        in_dom0(root, salt_call, command)
    assert any((root.folder / "rw/prometheus").iterdir())  # the data are kept, as the page says
    assert {"sys-monitor", *QUBES} == set(json.loads((root.folder / "qvm.json").read_text()))
    for command in (delete_qube, no_pillar, no_package, no_folders):
        in_dom0(root, salt_call, command)
    assert set(json.loads((root.folder / "qvm.json").read_text())) == set(QUBES)
    shutil.rmtree(root.folder / "rw")  # it was the qube's
    for name in ("build", "standin", "machine", "home/user"):
        shutil.rmtree(root.folder / name)
    root.run("userdel", "user")
    root.run("apt-get", "purge", "-qq", "-y", "--autoremove", "prometheus-node-exporter")
    users = ("etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/sub")
    left = {path for path in root.files() - before if not path.startswith(users)}
    assert left == {
        "qvm.json", "usr/bin/qrexec-client-vm", "etc/salt/minion.d/f_defaults.conf",
        "srv/salt/_states/qvm.py",
    }  # fmt: skip
    for name in left:
        (root.folder / name).unlink()


def _qubes(root: Root) -> None:
    """What Qubes brings: its user, its client, its Salt modules, and three qubes, whose services are the template's."""
    root.run("useradd", "--create-home", "user")
    (root.folder / "qvm.json").write_text(json.dumps({name: {} for name in QUBES}), encoding="utf-8")
    client = root.folder / "usr/bin/qrexec-client-vm"
    client.write_text(
        '#!/bin/sh\nSTANDIN_QUBES=/machine STANDIN_SOURCE=sys-monitor exec /standin/qrexec-client-vm "$@"\n',
        encoding="utf-8",
    )
    client.chmod(0o755)
    qubes = Qubes(root.folder / "machine", Path("/etc/qubes-rpc/ruddo.PrometheusProxy"))
    for name in QUBES:
        qubes.add(name, policy="deny")
    dom0(qubes, "admin.vm.List", ADMIN_VM_LIST.replace("{root}", "/machine"))
    (qubes.root / "calls.log").touch()
    root.run("chown", "-R", "user:user", "/machine")
    states = root.folder / "srv/salt/_states"
    states.mkdir(parents=True)
    shutil.copy(ROOT / "tests/standin/qvm.py", states)
    minion(root)


def _obey(root: Root) -> None:
    """Let the stand-in for dom0 allow what the policy file allows to qubes with the tag, and list these alone."""
    policy = (root.folder / "etc/qubes/policy.d/31-prometheus-qubes-proxy.policy").read_text(encoding="utf-8")
    arguments = dict(re.findall(r"^ruddo.PrometheusProxy (\S+) sys-monitor @tag:(\S+) allow", policy, re.MULTILINE))
    listed = set(re.findall(r"^admin.vm.List \* sys-monitor @tag:(\S+) allow", policy, re.MULTILINE))
    for name, qube in json.loads((root.folder / "qvm.json").read_text(encoding="utf-8")).items():
        folder = root.folder / "machine/qubes" / name
        if folder.exists():
            allowed = [argument for argument, tag in arguments.items() if tag in qube.get("tags", [])]
            (folder / "policy").write_text(f"allow {' '.join(allowed)}" if allowed else "deny", encoding="utf-8")
            if not listed & set(qube.get("tags", [])):
                (folder / "hidden").touch()


def _started(root: Root) -> set[str]:
    """Start what the units of the flagged qube start, and node_exporter; the qubes that Prometheus knows then."""
    _obey(root)
    flags = root.folder / "run/qubes-service"
    flags.mkdir()
    for feature in json.loads((root.folder / "qvm.json").read_text())["sys-monitor"]["features"]:
        (flags / feature.removeprefix("service.")).touch()
    units = [NODE_EXPORTER, *(f"lib/systemd/system/{unit}.service" for unit in (NAME, f"{NAME}-monitor"))]
    text = root.run("python3", "/standin/boot.py", QUERY, "personal", *(f"/{unit}" for unit in units), network=False)
    return {one["metric"]["instance"] for one in json.loads(text)["data"]["result"]}


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
        states.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests/standin/qvm.py", states)
        systemctl = root.folder / "usr/bin/systemctl"
        systemctl.write_text('#!/bin/sh\necho "$*" >>/var/log/systemctl\n', encoding="utf-8")
        systemctl.chmod(0o755)
        minion(root)
        self.call("saltutil.sync_states")

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
def salt(root: Root, salt_call: Path) -> Salt:
    """Salt in the root."""
    return Salt(root, salt_call)


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
        minion(salt.root, grains={"os_family": family})
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
    minion(salt.root)


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
