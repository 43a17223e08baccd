# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines for dom0's policy: exactly what the configuration needs, in the order that dom0 reads them."""

import re
import textwrap
from pathlib import Path

from federator import config
from federator.policy import policy_lines, rules
from federator.remedies import lines_for_policy
from tests.helpers import ROOT

EXPORTERS = "[exporters]\nnode = 9100\nprocess = 9256\n"
WORK = "[qubes.work]\nexporters = ['process', 'node']\n"
NET = "[qubes.net]\ntransport = 'local'\nexporters = ['node']\n"
ADMIN = "[qubes.dom0]\nexporters = ['node']\n"


def lines(text: str, own_name: str = "net") -> list[str]:
    """The lines for a configuration."""
    return policy_lines(config.parse(EXPORTERS + text, Path("/x")), own_name)


def test_qubes_are_called_with_the_ports_of_their_exporters() -> None:
    """In columns and in the order of the file, dom0 by the name it has in its policy. Halted qubes stay halted."""
    assert lines(WORK + NET + ADMIN) == [
        "# for dom0: /etc/qubes/policy.d/30-user.policy; printed by `prometheus-qubes-proxy policy`",
        "# dom0 takes the first line that fits; in a file sorted after 90-prometheus-proxy.policy, they do nothing",
        "# net may read these ports and endpoints of these qubes; halted ones are not started",
        "ruddo.PrometheusProxy  +9100+9256  net  work      allow autostart=no",
        "ruddo.PrometheusProxy  +9100       net  @adminvm  allow",
        "# only while upstream's service is in these qubes, which takes one port per call:",
        "# ruddo.PrometheusProxy  +9100  net  work  allow autostart=no",
        "# ruddo.PrometheusProxy  +9256  net  work  allow autostart=no",
    ]


def test_the_readme_shows_the_lines_for_its_own_configuration() -> None:
    """Step 4 has, word for word, what is printed for the file of step 3."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = [
        textwrap.dedent(re.findall(rf"{words}:\n\n((?:    .*\n|\n)+)", readme)[0]).strip()
        for words in ("A small configuration is enough", "For the small configuration above, they are")
    ]
    assert "\n".join(policy_lines(config.parse(shown[0], Path("/x")), "sys-net")) == shown[1]


def test_a_qube_with_one_port_needs_one_line() -> None:
    """Upstream's service takes the same call."""
    assert lines("[qubes.work]\nexporters = ['node']\n")[3:] == [
        "ruddo.PrometheusProxy  +9100  net  work  allow autostart=no"
    ]


def test_discovery_by_admin_vm_list_needs_a_line_for_each_qube() -> None:
    """dom0 lists only those; the qubes that may be found have a tag."""
    assert lines(WORK + ADMIN + "[discovery]\nexporters = ['node']\n")[3:10] == [
        "ruddo.PrometheusProxy  +9100+9256  net  work            allow autostart=no",
        "ruddo.PrometheusProxy  +9100       net  @adminvm        allow",
        "ruddo.PrometheusProxy  +9100       net  @tag:monitored  allow autostart=no",
        "admin.vm.List          *           net  @adminvm        allow target=dom0",
        "admin.vm.List          *           net  work            allow target=dom0",
        "admin.vm.List          *           net  @tag:monitored  allow target=dom0",
        "# tag the qubes that may be found: qvm-tags QUBE add monitored",
    ]


def test_discovery_by_our_service_needs_one_line() -> None:
    """It names all qubes that run."""
    assert lines("[qubes.work]\nexporters = ['node']\n[discovery]\nsource = 'ruddo.PrometheusDiscover'\n")[3:] == [
        "ruddo.PrometheusProxy     +9100  net  work      allow autostart=no",
        "ruddo.PrometheusDiscover  *      net  @adminvm  allow target=dom0",
    ]


def test_no_line_is_needed_without_qrexec() -> None:
    """The qube that the daemon runs in is scraped without it; and [dom0] without a switch asks nothing."""
    none = lines(NET + "[dom0]\nstats = false\nstorage = false\n")
    assert none == lines(NET) == ["# nothing is called over qrexec, so dom0 needs no line"]


def test_discovery_of_states_alone_still_asks_dom0() -> None:
    """With nothing to call over qrexec, one line is left."""
    assert lines(NET + "[discovery]\n")[2:] == ["admin.vm.List  *  net  @adminvm  allow target=dom0"]


def test_outside_of_qubes_the_lines_are_for_sys_net() -> None:
    """A host name that no qube can have would make dom0 refuse all of its policy."""
    for name in ("my host", "", "dom0", "-x"):
        assert lines(WORK, name)[3].split()[2] == "sys-net"


def test_a_numbered_disposable_will_be_another_qube_tomorrow() -> None:
    """A lasting line for it would allow that one, too: the tag of its template is named. It was allowed silently."""
    settings = config.load(Path(__file__).parent / "field" / "config-numbered-disposable.toml")
    (said,) = [line for line in policy_lines(settings, "net") if "another disposable later" in line]
    assert said.startswith("# qubes.disp4711: ")
    assert "qvm-tags TEMPLATE add monitored" in said
    assert not any("another disposable" in line for line in lines(WORK))


def test_the_remedy_for_a_qube_has_its_own_line_alone() -> None:
    """What discovery and [dom0] need is no help against a refused call to a qube."""
    text = "[exporters]\nnode = 9100\n[qubes.work]\nexporters = ['node']\n[qubes.mail]\nexporters = ['node']\n"
    settings = config.parse(f"{text}[discovery]\n[dom0]\n", Path("/x"))
    lines = lines_for_policy(settings, settings.qubes[0], "sys-net")
    assert [line.split() for line in lines] == [
        ["ruddo.PrometheusProxy", "+9100", "sys-net", "work", "allow", "autostart=no"]
    ]


def test_the_examples_in_dom0_are_what_dom0s_figures_need() -> None:
    """Read-only, each of them, and no more than `policy` prints for all switches."""
    table = "[dom0]\nvolumes = true\nproperties = true\nupdates = true\n"
    needed = {tuple(line.split()) for line in rules(config.parse(table, Path("/x")), "sys-net")}
    text = (ROOT / "conf" / "90-prometheus-discover.policy").read_text(encoding="ascii")
    part = text[text.index("# With [dom0]") :]
    examples = [tuple(line[1:].split()) for line in part.splitlines() if line.startswith("#admin")]
    listing = ("admin.vm.List", "*", "sys-net", "@adminvm", "allow", "target=dom0")  # is there for [discovery]
    assert {*examples, listing} == needed
    assert len(examples) == len(needed) - 1


def test_lines_for_dom0_alone_are_not_said_to_be_of_ports() -> None:
    """Nothing else is called."""
    assert not any("may read these ports" in line for line in lines("[dom0]\n"))
    assert any("may read these ports" in line for line in lines(WORK + "[dom0]\n"))


def test_a_tag_is_advised_where_all_qubes_are_meant() -> None:
    """Not for figures that are of dom0 alone."""
    advice = "a tag in its place makes them fewer"
    assert not any(advice in line for line in lines(WORK + "[dom0]\nupdates = true\n"))
    assert any(advice in line for line in lines(WORK + "[dom0]\nvolumes = true\n"))


def test_a_narrower_way_to_properties_is_silent_in_dom0() -> None:
    """The daemon tries the wide way first: without a line that denies it, dom0 shows a window for each try."""
    said = lines(WORK + "[dom0]\nproperties = true\n")
    narrow = [line.split()[1:] for line in said if line.startswith("# admin.")]
    assert [(line[0], line[1]) for line in narrow] == [
        *(("admin.vm.property.Get", f"+{name}") for name in ("label", "template", "netvm", "provides_network")),
        ("admin.vm.property.GetAll", "+"),
    ]
    assert narrow[-1][-2:] == ["deny", "notify=no"]
