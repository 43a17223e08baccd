# SPDX-License-Identifier: GPL-3.0-or-later
"""`make install`, the RPMs and the debs: what lies where, and that it runs with the distribution's own libraries."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.parts import Exporter, debian_program, eventually, free_port, get, process
from tests.standin.qubes import SERVICE, Qubes

PROXY = {
    "etc/prometheus-qubes-proxy.toml": 0o644,
    "usr/bin/prometheus-qubes-proxy": 0o755,
    "usr/lib/systemd/system/prometheus-qubes-proxy.service": 0o644,
    "usr/lib/systemd/system-preset/70-prometheus-qubes-proxy.preset": 0o644,
    "usr/share/prometheus-qubes-proxy/prometheus-qubes-proxy-firewall": 0o755,
    **{f"usr/share/prometheus-qubes-proxy/federator/{path.name}": 0o644 for path in (ROOT / "federator").glob("*.py")},
}
PACKAGES = {
    "prometheus-qubes-proxy": PROXY,
    "prometheus-qubes-proxy-service": {"etc/qubes-rpc/ruddo.PrometheusProxy": 0o755},
    "prometheus-qubes-proxy-dom0": {
        "etc/qubes-rpc/ruddo.PrometheusDiscover": 0o755,
        "etc/qubes/policy.d/90-prometheus-proxy.policy": 0o644,
        "etc/qubes/policy.d/90-prometheus-discover.policy": 0o644,
    },
}
ALL = {path: mode for files in PACKAGES.values() for path, mode in files.items()}
# Where a template's own Python is; its libraries are the distribution's.
PYTHON = Path("/usr/bin/python3")


def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    """A program, to its end."""
    return subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, check=False)


def make(*words: str | Path) -> None:
    """Run make, which has to succeed."""
    done = run(debian_program("make"), *words)
    assert done.returncode == 0, done.stdout + done.stderr


def files(root: Path) -> dict[str, int]:
    """Every file below a folder, but documentation, with its mode."""
    found = {str(path.relative_to(root)): path.stat().st_mode & 0o7777 for path in root.rglob("*") if path.is_file()}
    return {
        path: mode for path, mode in found.items() if not path.startswith(("usr/share/doc/", "usr/share/licenses/"))
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources in a folder of their own, so that building leaves nothing in this one."""
    folder = tmp_path_factory.mktemp("source") / "source"
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".*", "dist", "__pycache__", "recordings", "build", "*.egg-info")
    )
    return folder


@pytest.fixture(scope="module")
def rpms(copy: Path) -> dict[str, Path]:
    """The RPMs by name; Debian's rpm builds them as Fedora's does."""
    debian_program("rpmbuild")
    make("-C", copy, "rpm")
    return {path.name.partition("-0")[0]: path for path in (copy / "dist").glob("*.noarch.rpm")}


@pytest.fixture(scope="module")
def debs(copy: Path) -> dict[str, Path]:
    """The debs by name."""
    debian_program("dpkg-deb")
    make("-C", copy, "deb")
    return {path.name.partition("_")[0]: path for path in (copy / "dist").glob("*.deb")}


def unpacked(package: Path, root: Path) -> Path:
    """A package's files, below a folder."""
    root.mkdir(parents=True, exist_ok=True)
    if package.suffix == ".deb":
        run(debian_program("dpkg-deb"), "-x", package, root)
    else:
        archive = subprocess.run([debian_program("rpm2cpio"), package], stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(
            [debian_program("cpio"), "-idmu", "--quiet", "--no-absolute-filenames"], cwd=root, input=archive, check=True
        )
    return root


def test_make_install_puts_everything_where_it_belongs(tmp_path: Path) -> None:
    """Each of the three parts by itself, and all of them; a configuration that is there stays."""
    for target, package in (("proxy", ""), ("service", "-service"), ("dom0", "-dom0")):
        root = tmp_path / target
        make(f"install-{target}", f"DESTDIR={root}")
        assert files(root) == PACKAGES[f"prometheus-qubes-proxy{package}"]
    make("install", f"DESTDIR={tmp_path}/all")
    assert files(tmp_path / "all") == ALL
    (tmp_path / "all/etc/prometheus-qubes-proxy.toml").write_text("mine")
    make("install", f"DESTDIR={tmp_path}/all")
    assert (tmp_path / "all/etc/prometheus-qubes-proxy.toml").read_text() == "mine"
    make("install-proxy", f"DESTDIR={tmp_path}/local", "PREFIX=/usr/local")
    launcher = (tmp_path / "local/usr/local/bin/prometheus-qubes-proxy").read_text(encoding="utf-8")
    assert '"/usr/local/share/prometheus-qubes-proxy"' in launcher
    unit = tmp_path / "local/usr/local/lib/systemd/system/prometheus-qubes-proxy.service"
    assert "ExecStart=/usr/local/bin/prometheus-qubes-proxy\n" in unit.read_text(encoding="utf-8")


def test_the_rpms_hold_what_make_install_does(rpms: dict[str, Path], tmp_path: Path) -> None:
    """Three of them, with their requirements; configuration is not replaced by an update."""
    assert set(rpms) == set(PACKAGES)
    for name, package in rpms.items():
        assert files(unpacked(package, tmp_path / name)) == PACKAGES[name]

    def query(name: str, *what: str) -> set[str]:
        return set(run(debian_program("rpm"), "-qp", "--nosignature", *what, rpms[name]).stdout.splitlines())

    required = query("prometheus-qubes-proxy", "--requires")
    assert {"python3 >= 3.11", "python3-aiohttp", "python3-prometheus_client", "python3-tomli"} <= required
    needs = {line for line in query("prometheus-qubes-proxy-service", "--requires") if not line.startswith("rpmlib(")}
    assert needs <= {"python3", "/usr/bin/python3"}
    assert query("prometheus-qubes-proxy", "--configfiles") == {"/etc/prometheus-qubes-proxy.toml"}
    flags = query("prometheus-qubes-proxy-dom0", "--queryformat", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]")
    assert {"/etc/qubes/policy.d/90-prometheus-proxy.policy cn"} <= flags


def test_rpmlint_has_nothing_to_say(rpms: dict[str, Path]) -> None:
    """But for what rpm/rpmlint.toml explains."""
    done = run(debian_program("rpmlint"), "--config", ROOT / "rpm" / "rpmlint.toml", *rpms.values())
    assert " 0 errors, 0 warnings" in done.stdout, done.stdout + done.stderr


def test_the_debs_hold_what_make_install_does(debs: dict[str, Path], tmp_path: Path) -> None:
    """The same, in Debian's places."""
    assert set(debs) == set(PACKAGES)
    for name, package in debs.items():
        expected = {
            path.replace("usr/lib/systemd/system/", "lib/systemd/system/"): mode
            for path, mode in PACKAGES[name].items()
            if "preset" not in path
        }
        assert files(unpacked(package, tmp_path / name)) == expected
    shown = run(debian_program("dpkg-deb"), "--info", debs["prometheus-qubes-proxy"], "conffiles")
    assert shown.stdout == "/etc/prometheus-qubes-proxy.toml\n"


def test_lintian_has_nothing_to_say(debs: dict[str, Path]) -> None:
    """But for the manual page: --help and README have it all."""
    done = run(debian_program("lintian"), "--allow-root", "--suppress-tags", "no-manual-page", *debs.values())
    assert (done.stdout, done.returncode) == ("", 0), done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["rpm", "deb"])
def test_what_is_installed_carries_a_scrape_from_end_to_end(
    kind: str,
    request: pytest.FixtureRequest,
    qubes: Qubes,
    exporter: Callable[[bytes], Exporter],
    tmp_path: Path,
) -> None:
    """Installed launcher, package and service, the distribution's python3 and libraries, the stand-in qrexec."""
    if not _has_libraries():
        debian_program("the Debian packages python3-aiohttp, python3-prometheus-client and python3-tomli")
    root = tmp_path / "root"
    for package in request.getfixturevalue(f"{kind}s").values():
        unpacked(package, root)
    served = exporter(b"m 1\n")
    qubes.add("work", install=False)
    (qubes.root / "qubes/work/services" / SERVICE).symlink_to(root / "etc/qubes-rpc" / SERVICE)
    (tmp_path / "p.toml").write_text(
        f"[qrexec]\nclient = '{qubes.client}'\n[exporters]\nx = {served.port}\n[qubes.work]\nexporters = ['x']\n",
        encoding="utf-8",
    )
    # The root is not /, so the launcher is told where its package lies.
    launcher = root / "usr/bin/prometheus-qubes-proxy"
    text = launcher.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/python3 -I\n")
    launcher.write_text(text.replace('"/usr/', f'"{root}/usr/'), encoding="utf-8")
    version = run(launcher, "--version").stdout
    assert version.startswith("prometheus-qubes-proxy, version ")
    url = f"http://127.0.0.1:{free_port()}"
    words = [str(launcher), f"--config.file={tmp_path}/p.toml", f"--web.listen-address={url.removeprefix('http://')}"]
    with process(*words, log=tmp_path / "log"):
        eventually("it is ready", lambda: _ready(url))
        assert 'm{qube="work",exporter="x"} 1\n' in get(f"{url}/metrics").text


def _has_libraries() -> bool:
    return PYTHON.exists() and run(PYTHON, "-I", "-c", "import aiohttp, prometheus_client, tomli").returncode == 0


def _ready(url: str) -> bool:
    try:
        return get(f"{url}/-/ready").status == 200
    except OSError:
        return False


def test_the_unit_is_what_systemd_takes(tmp_path: Path) -> None:
    """It verifies, and is closed as far as qrexec lets it."""
    analyze = debian_program("systemd-analyze")
    make("install-proxy", f"DESTDIR={tmp_path}")
    unit = tmp_path / "usr/lib/systemd/system/prometheus-qubes-proxy.service"
    text = unit.read_text(encoding="utf-8")
    # Its program is below another root here.
    unit.write_text(text.replace("ExecStart=/usr", f"ExecStart={tmp_path}/usr"), encoding="utf-8")
    verified = run(analyze, "verify", "--man=no", unit)
    about_us = [line for line in verified.stderr.splitlines() if "prometheus-qubes-proxy" in line]
    assert not about_us, verified.stderr
    done = run(analyze, "security", "--offline=true", "--threshold=30", "--no-pager", unit)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    for setting in ("ConditionPathExists=/run/qubes-service/", "Type=notify", "User=user", "Restart=on-failure"):
        assert setting in text
    for never in ("PrivateDevices=yes", "DevicePolicy=", "ProtectClock=yes"):  # /dev/xen would be gone
        assert never not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


POLICY_LINE = re.compile(
    r"(?:ruddo\.Prometheus(?:Proxy|Discover)|admin\.vm\.List) +(?:\*|\+[0-9]+(?:\+[0-9]+)*) +(?:\*|[a-z][a-z0-9-]*) +"
    r"(?:\*|@anyvm|@adminvm|@tag:[a-z]+|[a-z][a-z0-9-]*) +(?:allow +(?:autostart=no|target=dom0)|deny +notify=no)"
)


@pytest.mark.parametrize("name", ["90-prometheus-proxy.policy", "90-prometheus-discover.policy"])
def test_every_line_of_the_policy_is_one_that_qrexec_takes(name: str) -> None:
    """A syntax error anywhere in dom0's policy, or a file name it does not like, denies every call of the machine."""
    assert re.fullmatch(r"[a-z0-9_.-]+\.policy", name)
    lines = (ROOT / "conf" / name).read_text(encoding="ascii").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    examples = [line[1:] for line in lines if re.match(r"#[^# ]", line)]
    assert all(POLICY_LINE.fullmatch(line) for line in rules + examples), rules + examples
    assert [line.split()[-2:] for line in rules] == [["deny", "notify=no"]]
    assert not any(line.startswith("admin.") for line in rules)  # Qubes' own tools use that
    assert len(examples) >= 2
    assert all("allow" in line for line in examples)


def test_the_firewall_snippet_is_a_script() -> None:
    """One rule, for one address."""
    path = ROOT / "conf" / "prometheus-qubes-proxy-firewall"
    assert os.access(path, os.X_OK)
    subprocess.run(["/bin/sh", "-n", path], check=True)
    assert "nft add rule ip qubes custom-input ip saddr" in path.read_text(encoding="utf-8")
