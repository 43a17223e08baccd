# SPDX-License-Identifier: GPL-3.0-or-later
"""`make install`, the RPMs and the debs: where files lie, and that they run with the libraries of the distribution."""

import datetime as dt
import fnmatch
import gzip
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from federator import __version__
from federator.cli import WRONG_CONFIGURATION
from tests.helpers import ROOT
from tests.parts import Exporter, debian_program, eventually, free_port, get, process
from tests.standin.qubes import SERVICE, Qubes

# Most of these tests build and install packages.
pytestmark = pytest.mark.slow

PROXY = {
    "etc/prometheus-qubes-proxy.toml": 0o644,
    "usr/bin/prometheus-qubes-proxy": 0o755,
    "usr/lib/systemd/system/prometheus-qubes-proxy.service": 0o644,
    "usr/lib/systemd/system-preset/70-prometheus-qubes-proxy.preset": 0o644,
    "usr/share/prometheus-qubes-proxy/prometheus-qubes-proxy-firewall": 0o755,
    "usr/share/bash-completion/completions/prometheus-qubes-proxy": 0o644,
    "usr/share/man/man1/prometheus-qubes-proxy.1": 0o644,
    "usr/share/man/man5/prometheus-qubes-proxy.toml.5": 0o644,
    **{
        f"usr/share/prometheus-qubes-proxy/qubes-{name}": 0o644
        for name in ("rules.yml", "at-a-glance.json", "at-a-glance.html")
    },
    "usr/share/prometheus-qubes-proxy/prometheus.yml": 0o644,
    **{
        f"usr/share/prometheus-qubes-proxy/{path.relative_to(ROOT)}": 0o644
        for path in (*(ROOT / "federator").rglob("*.py"), *(ROOT / "federator" / "static").iterdir())
    },
}
SALT = ROOT / "conf" / "salt"
PACKAGES = {
    "prometheus-qubes-proxy": PROXY,
    "prometheus-qubes-proxy-monitor": {
        "usr/lib/systemd/system/prometheus-qubes-proxy-monitor.service": 0o644,
        "usr/lib/systemd/system/prometheus.service.d/30_prometheus-qubes-proxy-monitor.conf": 0o644,
        "usr/lib/systemd/system-preset/70-prometheus-qubes-proxy-monitor.preset": 0o644,
        "usr/share/prometheus-qubes-proxy/monitor.toml": 0o644,
        "usr/share/prometheus-qubes-proxy/monitor.yml": 0o644,
    },
    "prometheus-qubes-proxy-service": {
        "etc/qubes-rpc/ruddo.PrometheusProxy": 0o755,
        "usr/share/man/man8/ruddo.PrometheusProxy.8": 0o644,
    },
    "prometheus-qubes-proxy-dom0": {
        "etc/qubes-rpc/ruddo.PrometheusDiscover": 0o755,
        "etc/qubes/policy.d/90-prometheus-proxy.policy": 0o644,
        "etc/qubes/policy.d/90-prometheus-discover.policy": 0o644,
        "usr/share/man/man8/ruddo.PrometheusDiscover.8": 0o644,
        "etc/salt/minion.d/formula-prometheus-qubes-proxy.conf": 0o644,
        "srv/pillar/base/prometheus-qubes-proxy/init.sls": 0o644,
        "srv/pillar/base/prometheus-qubes-proxy/init.top": 0o644,
        "srv/formulas/base/prometheus-qubes-proxy-formula/FORMULA": 0o644,
        **{
            f"srv/formulas/base/prometheus-qubes-proxy-formula/{path.relative_to(SALT)}": 0o644
            for path in (SALT / "prometheus-qubes-proxy").rglob("*.*")
        },
    },
}
ALL = {path: mode for files in PACKAGES.values() for path, mode in files.items()}
# The Python of the distribution, which has the libraries of the distribution.
PYTHON = Path("/usr/bin/python3")


def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, check=False)


def make(*words: str | Path) -> None:
    """Run make, which must succeed."""
    done = run(debian_program("make"), *words)
    assert done.returncode == 0, done.stdout + done.stderr


# Files of the package managers, documentation, and the link that enables the unit.
NOT_OURS = ("usr/share/doc/", "usr/share/licenses/", "usr/share/python3/", "var/", "etc/systemd/")


def files(root: Path) -> dict[str, int]:
    """Every file of ours in a folder, with its mode, by the path that it has in all packages."""
    found = {str(path.relative_to(root)): path.stat().st_mode & 0o7777 for path in root.rglob("*") if path.is_file()}
    # The packages' manual pages are compressed, and Debian 12 has units in /lib, which is /usr/lib.
    return {
        re.sub(r"^lib/", "usr/lib/", path.removesuffix(".gz")): mode
        for path, mode in found.items()
        if not path.startswith(NOT_OURS)
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that builds write no files here."""
    folder = tmp_path_factory.mktemp("source") / "a source"  # `make rpm` failed in a path with a blank
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".*", "dist", "__pycache__", "recordings", "build", "*.egg-info")
    )
    return folder


Packages = dict[str, Path]


def built(source: Path, kind: str, *under: str, day: dt.date | None = None) -> Packages:
    """
    Build packages; their files by name. Debian's rpm builds the same as Fedora's.

    `under`: a program that runs make. `day`: the day that they have, if not today.
    """
    for program in {"rpm": ["rpmbuild"], "deb": ["dpkg-buildpackage", "dh", "dh_python3"]}[kind]:
        debian_program(program)
    shutil.rmtree(source / "dist", ignore_errors=True)
    words: list[str | Path] = [*under, debian_program("make"), "-C", source, kind, *([f"DATE={day}"] if day else [])]
    done = run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return {re.split(r"[-_](?=\d)", path.name)[0]: path for path in (source / "dist").glob(f"*.{kind}")}


@pytest.fixture(scope="module", params=["rpm", "deb"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of package."""
    return str(request.param)


def kept(copy: Path, kind: str, factory: pytest.TempPathFactory) -> Packages:
    """Packages of this version, in a folder that no later build empties."""
    folder = factory.mktemp(kind)
    return {name: Path(shutil.copy(path, folder)) for name, path in built(copy, kind).items()}


@pytest.fixture(scope="module")
def rpms(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The RPMs of this version."""
    return kept(copy, "rpm", tmp_path_factory)


@pytest.fixture(scope="module")
def debs(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The debs of this version."""
    return kept(copy, "deb", tmp_path_factory)


@pytest.fixture(scope="module")
def packages(kind: str, request: pytest.FixtureRequest) -> Packages:
    """The packages of this version."""
    found: Packages = request.getfixturevalue(f"{kind}s")
    return found


@pytest.fixture(scope="module")
def newer(packages: Packages, copy: Path, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The packages of a newer version with other configuration files."""
    assert packages
    source = tmp_path_factory.mktemp("newer") / "source"
    shutil.copytree(copy, source)
    version = source / "federator" / "__init__.py"
    version.write_text(version.read_text(encoding="utf-8").replace(__version__, "99.0"), encoding="utf-8")
    for name in EDITED:
        with (source / "conf" / Path(name).name).open("a", encoding="utf-8") as file:
            file.write("# new\n")
    return built(source, kind)


# Files that an operator may edit. An update keeps them.
EDITED = ("etc/prometheus-qubes-proxy.toml", "etc/qubes/policy.d/90-prometheus-proxy.policy")
PILLAR = "srv/pillar/base/prometheus-qubes-proxy/init.sls"


def tool(kind: str, root: Path, *words: str | Path) -> str:
    """
    Run rpm or dpkg on a root of its own. The dependencies are not in this root, so they are not checked.

    The scriptlets of the RPMs are not run: they need a shell and Fedora's systemd in this root.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can install packages, even into a folder")
    (root / "var/lib/dpkg/info").mkdir(parents=True, exist_ok=True)
    (root / "var/lib/dpkg/updates").mkdir(exist_ok=True)
    (root / "var/lib/dpkg/status").touch()
    program = {
        "rpm": ["rpm", f"--root={root}", "--dbpath=/var/lib/rpm", "--nodeps", "--noscripts", "--nosignature"],
        "deb": ["dpkg", f"--root={root}", "--force-depends", "--force-script-chrootless", "--force-confold"],
    }[kind]
    done = run(debian_program(program[0]), *program[1:], *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(root: Path, packages: Packages) -> Path:
    """Install or update all these packages; the root."""
    root.mkdir(exist_ok=True)
    kind = next(iter(packages.values())).suffix[1:]
    tool(kind, root, {"rpm": "-U", "deb": "-i"}[kind], *packages.values())
    return root


# What a text of ours may name that is ours. Some of it an operator writes: that is not in a package.
NAMED = re.compile(
    r"(?<![\w.])/(?:usr/(?:share(?:/doc)?|bin)/prometheus-qubes|srv/(?:formulas|pillar)/"
    r"|etc/(?:prometheus-qubes|qubes-rpc/ruddo|qubes/policy\.d/90))[\w./-]*"
)


def text_of(path: Path) -> str:
    """An installed file, as a person reads it."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace").replace("\\-", "-")


def unknown_paths(root: Path) -> set[str]:
    """Paths of ours that an installed file names, and that are not there."""
    installed = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != "var"]
    named = {found.rstrip(".") for path in installed for found in NAMED.findall(text_of(path))}
    assert named
    return {found for found in named if not (root / found[1:]).exists()}


def test_make_install_puts_everything_where_it_belongs(tmp_path: Path) -> None:
    """Each of the parts can be installed alone, and existing configuration files stay."""
    for target, package in (("proxy", ""), ("monitor", "-monitor"), ("service", "-service"), ("dom0", "-dom0")):
        root = tmp_path / target
        make(f"install-{target}", f"DESTDIR={root}")
        assert files(root) == PACKAGES[f"prometheus-qubes-proxy{package}"]
    make("install", f"DESTDIR={tmp_path}/all")
    assert files(tmp_path / "all") == ALL
    for name in (*EDITED, PILLAR):
        (tmp_path / "all" / name).write_text("mine", encoding="utf-8")
    make("install", f"DESTDIR={tmp_path}/all")
    assert {(tmp_path / "all" / name).read_text(encoding="utf-8") for name in (*EDITED, PILLAR)} == {"mine"}
    make("install-proxy", f"DESTDIR={tmp_path}/local", "PREFIX=/usr/local")
    launcher = (tmp_path / "local/usr/local/bin/prometheus-qubes-proxy").read_text(encoding="utf-8")
    assert '"/usr/local/share/prometheus-qubes-proxy"' in launcher
    unit = tmp_path / "local/usr/local/lib/systemd/system/prometheus-qubes-proxy.service"
    assert "ExecStart=/usr/local/bin/prometheus-qubes-proxy\n" in unit.read_text(encoding="utf-8")
    make("install-service", f"DESTDIR={tmp_path}/local", "PREFIX=/usr/local")
    modules = [f"share/prometheus-qubes-proxy/federator/{name}.py" for name in ("views", "remedies")]
    pages = ["share/man/man1/prometheus-qubes-proxy.1", "share/man/man8/ruddo.PrometheusProxy.8"]
    for path in (unit, *(tmp_path / "local/usr/local" / name for name in (*modules, *pages))):
        assert set(re.findall(r"/usr/\S*share/doc/", path.read_text(encoding="utf-8"))) == {"/usr/local/share/doc/"}


def test_the_packages_hold_what_make_install_does(packages: Packages, kind: str, tmp_path: Path) -> None:
    """Each of the packages, installed into an empty root, has the files that `make install` puts there."""
    assert set(packages) == set(PACKAGES)
    for name, package in packages.items():
        # Debian does not use presets, and no dom0 is Debian.
        fedora_only = re.compile(r".*preset/|srv/|etc/salt/")
        expected = {path: mode for path, mode in PACKAGES[name].items() if kind == "rpm" or not fedora_only.match(path)}
        assert files(install(tmp_path / name, {name: package})) == expected


def test_each_pattern_of_the_readme_fits_one_package(rpms: Packages, debs: Packages) -> None:
    """Among all packages and both kinds of sources. One of them fitted the sources, too, which no template takes."""
    sources = [f"prometheus-qubes-proxy-{__version__}{end}" for end in (".tar.gz", "-1.src.rpm")]
    names = [*(path.name for path in (*rpms.values(), *debs.values())), *sources]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    patterns = re.findall(r"/(prometheus-qubes-proxy[-_][^/ \n]*\*[^/ '\n]*)", text)
    assert len(patterns) >= 9
    assert {pattern: len(fnmatch.filter(names, pattern)) for pattern in patterns} == dict.fromkeys(patterns, 1)


def test_what_the_installed_texts_name_is_there(packages: Packages, kind: str, tmp_path: Path) -> None:
    """Links between the documents, and the paths in them, in manual pages, in units and on the status page."""
    root = install(tmp_path, packages)
    documents = root / "usr/share/doc/prometheus-qubes-proxy"
    names = {str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
    assert {str(path.relative_to(documents)) for path in documents.rglob("*.md")} == names
    for name in names:
        for link in re.findall(r"\]\(([^)#\s]+)", text_of(documents / name)):
            assert "://" in link or (documents / name).parent.joinpath(link).exists(), (name, link)
    # No dom0 is Debian.
    assert {path for path in unknown_paths(root) if kind == "rpm" or not path.startswith("/srv/")} == set()


def test_two_builds_are_the_same(packages: Packages, copy: Path, kind: str, tmp_path: Path) -> None:
    """To the last byte, from sources with other times in another folder, three days later by the clock."""
    other = tmp_path / "other"
    shutil.copytree(copy, other, copy_function=shutil.copyfile)
    (other / "debian" / "rules").chmod(0o755)
    # Between releases, the packages have the day on which they are built.
    again = built(other, kind, debian_program("faketime"), "+3 days", day=dt.datetime.now(dt.UTC).date())
    assert {name: package.read_bytes() for name, package in again.items()} == {
        name: package.read_bytes() for name, package in packages.items()
    }


def test_the_version_is_newer_than_that_of_upstream(packages: Packages, kind: str) -> None:
    """Who has 0.1.0-1 of Rudd-O/prometheus-qubes-proxy gets this package as an update; the next release is newer."""
    package = packages["prometheus-qubes-proxy"]
    if kind == "deb":
        version = run("dpkg-deb", "--field", package, "Version").stdout.strip()
        order = [("0.1.0-1", "lt"), ("99-1", "gt"), (f"{__version__.partition('.dev')[0]}-2", "gt")]
        for other, how in order:
            assert run("dpkg", "--compare-versions", other, how, version).returncode == 0, (other, how, version)
        return
    query = ["-qp", "--nosignature", "--queryformat", "%{VERSION}-%{RELEASE}"]
    version = run("rpm", *query, package).stdout
    for older, newer in (("0.1.0-1", version), (version, f"{__version__.partition('.dev')[0]}-2"), (version, "99-1")):
        assert run("rpm", "--eval", f'%{{lua:print(rpm.vercmp("{older}", "{newer}"))}}').stdout == "-1\n"


def test_the_builder_of_qubes_finds_what_it_wants() -> None:
    """The files that qubes-skeleton names; and their version is the program's."""
    version = __version__.replace(".dev", "~dev")
    release = (ROOT / "rel").read_text(encoding="utf-8").strip()
    assert (ROOT / "version").read_text(encoding="utf-8") == f"{version}\n", "run `make version`"
    first = (ROOT / "debian" / "changelog").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"prometheus-qubes-proxy ({version}-{release}) unstable; urgency=medium", "run `make version`"
    named = re.findall(r"^    - (\S+)$", (ROOT / ".qubesbuilder").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) == {"rpm/prometheus-qubes-proxy.spec", "debian"}
    spec = (ROOT / "rpm" / "prometheus-qubes-proxy.spec.in").read_text(encoding="utf-8")
    assert set(re.findall(r"@\w+@", spec)) == {"@VERSION@", "@REL@", "@CHANGELOG@"}
    assert "Source0:        %{name}-%{version}.tar.gz\n" in spec
    assert (ROOT / "debian" / "source" / "format").read_text(encoding="utf-8") == "3.0 (quilt)\n"


def test_the_packages_bring_what_they_need(packages: Packages, kind: str) -> None:
    """They need only packages of the distribution, and the service needs only Python."""

    def needs(name: str) -> set[str]:
        if kind == "rpm":
            text = run(debian_program("rpm"), "-qp", "--nosignature", "--requires", packages[name]).stdout
            return {line for line in text.splitlines() if not line.startswith(("rpmlib(", "config("))}
        text = run(debian_program("dpkg-deb"), "--field", packages[name], "Depends").stdout
        return set(text.strip().split(", "))

    libraries = {
        "rpm": {"python3 >= 3.11", "python3-aiohttp", "python3-prometheus_client", "python3-tomli"},
        "deb": {
            "python3:any",
            "python3 (>= 3.11)",
            "python3-aiohttp (>= 3.8)",
            "python3-prometheus-client (>= 0.16)",
            "python3-tomli",
        },
    }[kind]
    assert libraries <= needs("prometheus-qubes-proxy") <= libraries | {"/usr/bin/python3", "/bin/sh"}
    query = ["rpm", "-qp", "--nosignature", "--recommends"] if kind == "rpm" else ["dpkg-deb", "--field"]
    words = [*query[1:], packages["prometheus-qubes-proxy"], *(() if kind == "rpm" else ("Recommends",))]
    assert run(debian_program(query[0]), *words).stdout.strip() == "python3-bcrypt"
    monitor = {
        "rpm": {"prometheus-qubes-proxy = ", "/usr/bin/prometheus"},
        "deb": {"prometheus-qubes-proxy (= ", "prometheus"},
    }[kind]
    assert {re.split(r"(?<== )", need)[0] for need in needs("prometheus-qubes-proxy-monitor")} - {"/bin/sh"} == monitor
    assert needs("prometheus-qubes-proxy-service") <= {"python3", "/usr/bin/python3"}
    assert needs("prometheus-qubes-proxy-dom0") <= {"python3", "/usr/bin/python3"}


@pytest.mark.parametrize("name", ["prometheus-qubes-proxy", "prometheus-qubes-proxy-monitor"])
def test_rpm_scriptlets_leave_it_to_systemd(rpms: Packages, name: str, tmp_path: Path) -> None:
    """Built anywhere, they do what Fedora's macros do: the preset at the installation, a restart at an update."""
    package = rpms[name]
    # Never the helper of this machine, which would change its units.
    helper, told = tmp_path / "helper", tmp_path / "told"
    for tag, step, when in (
        ("POSTIN", "install-system-units", {"1"}),
        ("PREUN", "remove-system-units", {"0"}),
        ("POSTUN", "mark-restart-system-units", {"1", "2"}),
    ):
        text = run(debian_program("rpm"), "-qp", "--nosignature", "--queryformat", f"%{{{tag}}}", package).stdout
        assert f"/usr/lib/systemd/systemd-update-helper {step} {name}.service || :" in text
        text = text.replace("/usr/lib/systemd/systemd-update-helper", str(helper))
        for count in ("0", "1", "2"):  # how many versions of the package there are after the step; rpm passes it
            helper.unlink(missing_ok=True)  # where there is no systemd
            assert run("/bin/sh", "-c", text, "scriptlet", count).returncode == 0
            helper.write_text(f'#!/bin/sh\necho "$@" >{told}\nexit 1\n', encoding="utf-8")
            helper.chmod(0o755)
            told.unlink(missing_ok=True)
            assert run("/bin/sh", "-c", text, "scriptlet", count).returncode == 0
            assert told.exists() == (count in when)
            assert not told.exists() or told.read_text() == f"{step} {name}.service\n"


def test_an_update_keeps_what_the_operator_wrote(
    packages: Packages, newer: Packages, kind: str, tmp_path: Path
) -> None:
    """The new configuration lies beside the old one, and all the rest is new. Removed is removed."""
    root = install(tmp_path / "root", packages)
    for name in EDITED:
        (root / name).write_text("mine\n", encoding="utf-8")
    install(root, newer)
    assert '"99.0"' in (root / "usr/share/prometheus-qubes-proxy/federator/__init__.py").read_text(encoding="utf-8")
    for name in EDITED:
        assert (root / name).read_text(encoding="utf-8") == "mine\n"
        beside = root / f"{name}.{'rpmnew' if kind == 'rpm' else 'dpkg-dist'}"
        assert beside.read_text(encoding="utf-8").endswith("# new\n")
        beside.unlink()
    tool(kind, root, {"rpm": "-e", "deb": "--purge"}[kind], *PACKAGES)
    left = {"etc/prometheus-qubes-proxy.toml.rpmsave", "etc/qubes/policy.d/90-prometheus-proxy.policy.rpmsave"}
    assert set(files(root)) == (left if kind == "rpm" else set())


def test_rpm_leaves_nothing_compiled(rpms: Packages, tmp_path: Path) -> None:
    """Where root ran a command there was __pycache__. What Debian's package leaves: tests/test_debian_root.py."""
    package = rpms["prometheus-qubes-proxy"]
    text = run(debian_program("rpm"), "-qp", "--nosignature", "--queryformat", "%{POSTUN}", package).stdout
    text = text.replace("/usr/", f"{tmp_path}/usr/")
    library = tmp_path / "usr/share/prometheus-qubes-proxy"
    compiled = library / "federator" / "text" / "__pycache__" / "merge.cpython-313.pyc"
    compiled.parent.mkdir(parents=True)
    compiled.touch()
    for count, left in (("1", True), ("0", False)):  # an update, a removal
        assert run("/bin/sh", "-c", text, "scriptlet", count).returncode == 0
        assert compiled.exists() == left
    assert not library.exists()


# What Fedora's rpm knows, in short: enough to see that the spec file uses it.
FEDORA = """\
%_unitdir /usr/lib/systemd/system
%_presetdir /usr/lib/systemd/system-preset
%systemd_ordering Suggests: systemd
%systemd_post() echo fedora post %*
%systemd_preun() echo fedora preun %*
%systemd_postun_with_restart() echo fedora postun %*
%py_byte_compile() /usr/bin/python3 -m compileall -q -f -s %{buildroot} %2
"""


def test_the_spec_file_uses_the_macros_of_fedora(copy: Path, tmp_path: Path) -> None:
    """Where rpm has them, the scriptlets are systemd's and the package is compiled for that Python."""
    debian_program("rpmbuild")
    if not PYTHON.exists():
        debian_program("python3")
    make("-C", copy, "srpm")
    (source,) = (copy / "dist").glob("*.src.rpm")
    macros = tmp_path / "macros.fedora"
    macros.write_text(FEDORA, encoding="utf-8")
    known = run("rpm", "--showrc").stdout.partition("Macro path: ")[2].split("\n")[0]
    done = run("rpmbuild", f"--macros={known}:{macros}", "--rebuild", "--nodeps", f"-D_topdir {tmp_path}", source)
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = tmp_path.rglob("prometheus-qubes-proxy-[0-9]*.noarch.rpm")
    scripts = run("rpm", "-qp", "--nosignature", "--scripts", package).stdout
    for step in ("post", "preun", "postun"):
        assert re.search(rf"^echo fedora {step} prometheus-qubes-proxy.service", scripts, re.MULTILINE)
    assert "systemd-update-helper" not in scripts
    listed = run("rpm", "-qp", "--nosignature", "--list", package).stdout
    assert re.search(r"federator/text/__pycache__/merge\.cpython-\d+\.pyc", listed)


def test_the_source_package_builds_by_itself(copy: Path, tmp_path: Path) -> None:
    """Only the source package is there when mock and Copr build."""
    debian_program("rpmbuild")
    shutil.rmtree(copy / "dist", ignore_errors=True)
    make("-C", copy, "srpm")
    (source,) = (copy / "dist").glob("*.src.rpm")
    done = run("rpmbuild", "--rebuild", "--nodeps", "--define", f"_topdir {tmp_path}", source)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.rglob(f"*-{__version__.replace('.dev', '~dev')}-*.noarch.rpm"))) == len(PACKAGES)


def test_a_unit_that_was_disabled_stays_so(tmp_path: Path, debs: Packages) -> None:
    """Debian's package enables the unit once. The condition in the unit prevents it from running in other qubes."""
    debian_program("deb-systemd-helper")
    root = install(tmp_path / "root", debs)
    link = root / "etc/systemd/system/multi-user.target.wants/prometheus-qubes-proxy.service"
    assert link.is_symlink()
    link.unlink()
    install(root, debs)
    assert not link.is_symlink()


def test_rpmlint_has_nothing_to_say(rpms: Packages) -> None:
    """Each exception is explained in rpm/rpmlint.toml."""
    done = run(debian_program("rpmlint"), "--config", ROOT / "rpm" / "rpmlint.toml", *rpms.values())
    assert " 0 errors, 0 warnings" in done.stdout, done.stdout + done.stderr


def test_lintian_has_nothing_to_say(debs: Packages) -> None:
    """Except that no bug of Debian asks for the package."""
    not_in_debian = "initial-upload-closes-no-bugs"
    done = run(debian_program("lintian"), "--allow-root", "--suppress-tags", not_in_debian, *debs.values())
    assert (done.stdout, done.returncode) == ("", 0), done.stdout + done.stderr


def test_what_is_installed_carries_a_scrape_from_end_to_end(
    packages: Packages,
    qubes: Qubes,
    exporter: Callable[[bytes], Exporter],
    tmp_path: Path,
) -> None:
    """The installed launcher, package and service work with the distribution's python3 and libraries."""
    if not _has_libraries():
        debian_program("python3-aiohttp python3-prometheus-client python3-tomli")
    root = install(tmp_path / "root", packages)
    served = exporter(b"m 1\n")
    qubes.add("work", install=False)
    (qubes.root / "qubes/work/services" / SERVICE).symlink_to(root / "etc/qubes-rpc" / SERVICE)
    (tmp_path / "p.toml").write_text(
        f"[qrexec]\nclient = '{qubes.client}'\n[exporters]\nx = {served.port}\n[qubes.work]\nexporters = ['x']\n",
        encoding="utf-8",
    )
    # The root is not /, so the launcher needs another path to its package.
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


def test_the_unit_is_what_systemd_takes(packages: Packages, tmp_path: Path) -> None:
    """The unit is valid for systemd, it is as confined as qrexec allows, and each setting that is off has a reason."""
    analyze = debian_program("systemd-analyze")
    install(tmp_path, packages)
    (unit,) = tmp_path.rglob("system/prometheus-qubes-proxy.service")
    text = unit.read_text(encoding="utf-8")
    # Here the program is in another root.
    unit.write_text(text.replace("=/usr/bin", f"={tmp_path}/usr/bin"), encoding="utf-8")
    verified = run(analyze, "verify", "--man=no", unit)
    about_us = [line for line in verified.stderr.splitlines() if "prometheus-qubes-proxy" in line]
    assert not about_us, verified.stderr
    # The threshold is ten times the exposure.
    done = run(analyze, "security", "--offline=true", "--threshold=19", "--no-pager", unit)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    weaknesses = set(re.findall(r"^✗ (\S+)", done.stdout, re.MULTILINE))
    # It is tmpfs, which is no less; it is an example, which each user has to complete.
    weaknesses -= {"ProtectHome=", "IPAddressDeny="}
    assert weaknesses <= {
        "DeviceAllow=",
        "PrivateDevices=",
        "PrivateNetwork=",
        "PrivateUsers=",
        "ProcSubset=",
        "ProtectClock=",
        "RestrictAddressFamilies=~AF_(INET|INET6)",
        "RestrictAddressFamilies=~AF_UNIX",
        "RootDirectory=/RootImage=",
    }
    _, _, reasons = text.partition("# What is off, and why:\n")
    for words in weaknesses:
        assert all(word in reasons for word in re.findall(r"\b[A-Z][A-Za-z]+=(?!~)|AF_UNIX|INET6?", words))


def test_the_settings_of_the_unit() -> None:
    """The daemon always starts again, unless its configuration is wrong, and it cannot take the NetVM's memory."""
    text = (ROOT / "conf" / "prometheus-qubes-proxy.service").read_text(encoding="utf-8")
    settings = {line for line in text.splitlines() if "=" in line and not line.startswith("#")}
    assert settings >= {
        "ConditionPathExists=/run/qubes-service/prometheus-qubes-proxy",
        "Type=notify",
        "User=user",
        "Restart=on-failure",
        "StartLimitIntervalSec=0",
        f"RestartPreventExitStatus=2 {WRONG_CONFIGURATION}",
        "ProtectHome=tmpfs",
        "ProtectProc=invisible",
        "RemoveIPC=yes",
        "SocketBindDeny=any",
        "SocketBindAllow=tcp:8199",
        "MemoryMax=75%",
        "OOMScoreAdjust=500",
        "OOMPolicy=continue",
        "TasksMax=512",
    }
    names = {line.partition("=")[0] for line in settings}
    # /dev/xen would be gone; and an address that we guess locks out everyone.
    assert not names & {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "IPAddressDeny"}
    assert "#IPAddressDeny=any\n#IPAddressAllow=" in text
    # The socket of the example is in the one folder that others see, and that the daemon can write to.
    (folder,) = re.findall("^RuntimeDirectory=(.*)", text, re.MULTILINE)
    example = (ROOT / "conf" / "prometheus-qubes-proxy.toml").read_text(encoding="utf-8")
    assert re.findall(r"unix:(/\S+)/", example) == [f"/run/{folder}"]


def test_the_lock_file_pins_all_dependencies() -> None:
    """Each package that pyproject.toml names has one version and its hashes; `make lock` writes them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[^a-z0-9-]", line)[0] for line in project["dependencies"]}
    wanted |= {re.split(r"[^a-z0-9-]", line)[0] for line in project["optional-dependencies"]["dev"]}
    entries = re.split(r"\n(?=[a-z])", (ROOT / "requirements-dev.lock").read_text(encoding="utf-8"))[1:]
    pinned = {entry.partition("==")[0] for entry in entries}
    assert wanted <= pinned, "run `make lock`"
    assert len(pinned) == len(entries)
    assert all("--hash=sha256:" in entry for entry in entries)


POLICY_LINE = re.compile(
    r"(?:ruddo\.Prometheus(?:Proxy|Discover)|admin\.(?:vm|pool)\.[a-zA-Z.]+) +"
    r"(?:\*|\+|\+[0-9]+(?:\+[0-9]+)*|\+[a-z][a-z-]*) +(?:\*|[a-z][a-z0-9-]*) +"
    r"(?:\*|@(?:anyvm|adminvm|default|dispvm|tag:[a-z]+|type:[A-Z][a-zA-Z]+)|[a-z][a-z0-9-]*) +"
    r"(?:allow(?: +(?:autostart=no|target=dom0))?|deny +notify=no)"
)


@pytest.mark.parametrize("name", ["90-prometheus-proxy.policy", "90-prometheus-discover.policy"])
def test_every_line_of_the_policy_is_one_that_qrexec_takes(name: str) -> None:
    """A syntax error or a bad file name in dom0's policy would deny every call of the machine."""
    assert re.fullmatch(r"[a-z0-9_.-]+\.policy", name)
    lines = (ROOT / "conf" / name).read_text(encoding="ascii").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    examples = [line[1:] for line in lines if re.match(r"#[^# ]", line)]
    assert all(POLICY_LINE.fullmatch(line) for line in rules + examples), rules + examples
    assert [line.split()[-2:] for line in rules] == [["deny", "notify=no"]]
    assert not any(line.startswith("admin.") for line in rules)  # Qubes' own tools use that
    assert len(examples) >= 2
    assert all("allow" in line or "@d" in line or line.startswith("admin.vm.List ") for line in examples)


def test_every_policy_line_of_the_documentation_is_one_that_qrexec_takes() -> None:
    """People copy them, and a comment behind one would deny every call of their machine."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    lines = re.findall(r"^ {4,}((?:ruddo|admin)\..*)$", text, re.MULTILINE)
    assert len(lines) >= 3
    assert all(POLICY_LINE.fullmatch(line) for line in lines), lines


def test_the_firewall_snippet_is_a_script() -> None:
    """The shell accepts it, and it has a rule for one address."""
    path = ROOT / "conf" / "prometheus-qubes-proxy-firewall"
    assert os.access(path, os.X_OK)
    subprocess.run(["/bin/sh", "-n", path], check=True)
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^prometheus=(\S+)", text, re.MULTILINE) == ["192.0.2.1"]
    assert re.findall("^nft .*", text, re.MULTILINE) == [
        'nft add rule ip qubes custom-input ip saddr "$prometheus" tcp dport 8199 ct state new accept'
    ]


def test_a_venv_of_another_folder_is_not_emptied(tmp_path: Path) -> None:
    """Several worktrees may share one by a link; `venv --clear` would follow it, and remove what others use."""
    for name in ("Makefile", "pyproject.toml", "requirements-dev.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "federator").mkdir()
    shutil.copy(ROOT / "federator" / "__init__.py", tmp_path / "federator")
    shutil.copy(ROOT / "CHANGELOG.md", tmp_path)
    kept = tmp_path / "other" / "kept"
    kept.parent.mkdir()
    kept.touch()
    (tmp_path / ".venv").symlink_to("other")
    words: list[str | Path] = [debian_program("make"), "-C", tmp_path, ".venv/installed", "PIP_INSTALL=false"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert ".venv is a link" in done.stderr
    assert kept.exists()
