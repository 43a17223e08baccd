# SPDX-License-Identifier: GPL-3.0-or-later
"""The status page in a real browser, with qubes that are up, down, slow, halted and hostile."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import axe
from tests.browser import Browser, browser
from tests.helpers import recording
from tests.parts import Daemon, Exporter, eventually, free_port
from tests.standin.qubes import Qubes
from tests.test_discovery import ADMIN_VM_LIST, dom0

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]

MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)><h1>owned</h1>"
# Markup, escape sequences, marks of direction, letters without width, and a word of 4 KB.
HOSTILE = f"{MARKUP}\x1b[31m\u202eevil\u2066\u200b {'W' * 4096}"
# What is on the page where it can be seen, as lines.
VISIBLE = "return document.body.innerText"


class Scene:
    """A machine with a daemon, and what can be changed on it."""

    def __init__(self, proxy: Daemon, qubes: Qubes, slow: Exporter, changing: Exporter) -> None:
        self.proxy = proxy
        self.qubes = qubes
        self.slow = slow
        self.changing = changing

    def scrape(self) -> None:
        """As Prometheus does."""
        assert self.proxy.get().status == 200


@pytest.fixture
def scene(qubes: Qubes, exporter: Callable[[bytes], Exporter], daemon: Callable[..., Daemon]) -> Iterator[Scene]:
    """Eight qubes, one for each thing that happens."""
    dom0(qubes, "admin.vm.List", ADMIN_VM_LIST)
    for name in ("work", "personal", "sys-usb", "evil"):
        qubes.add(name)
    qubes.add("fw", policy="deny")
    qubes.add("vault", state="Halted")
    qubes.add("debian-12", install=False)
    lines = f'# HELP evil {HOSTILE}\n# TYPE evil gauge\nevil{{a="{MARKUP[:20].replace(chr(34), "")}"}} 1\n'
    evil = exporter(f"{lines}{HOSTILE}\nevil nonsense {HOSTILE}\n".encode())
    rude = exporter(HOSTILE.encode())
    rude.status = 500
    slow, changing = exporter(b"slow 1\n"), exporter(b"changes 1\n")
    of = {
        "work": {"node": exporter(recording("node")).port, "app": changing.port},
        "personal": {"slow": slow.port},
        "sys-usb": {"sensor": free_port()},
        "evil": {"evil": evil.port, "rude": rude.port},
        "fw": {"firewall": free_port()},
        "vault": {"secrets": free_port()},
        "debian-12": {"apt": free_port()},
    }
    proxy = daemon(of, scrape='timeout = "4s"', rest='[discovery]\nrefresh_interval = "1s"')
    yield Scene(proxy, qubes, slow, changing)
    slow.hold.set()


@pytest.fixture
def page(tmp_path: Path, scene: Scene) -> Iterator[Browser]:
    """A browser. Whatever a test does in it, the console says nothing, and nobody else is asked for anything."""
    asked: list[str] = []
    with browser(tmp_path) as one:
        yield one
        asked += one.requests()
        assert one.messages() == []
    hosts = {url.split("/")[2] for url in asked if not url.startswith("data:,")}
    assert hosts <= {scene.proxy.url.split("/")[2]}


def row(one: Browser, qube: str) -> str:
    """What the section of a qube says."""
    text: str = one.run("return document.getElementById(`q-${arguments[0]}`)?.innerText ?? ''", qube)
    return text


def order(one: Browser) -> list[str]:
    """The qubes of the table that can be seen."""
    names: list[str] = one.run("return [...document.querySelectorAll('tbody[id]')].map((body) => body.id.slice(2))")
    return names


def test_a_person_finds_what_is_up_what_is_not_why_and_what_to_do(scene: Scene, page: Browser) -> None:
    """And nothing of a hostile qube is more than words."""
    scene.slow.hold.clear()
    scene.scrape()
    scene.scrape()
    page.open(scene.proxy.url)
    text = page.run(VISIBLE)
    assert "5 of 8 exporters are down" in text
    assert "for 127.0.0.1" in text
    assert order(page)[-1] == "vault"
    assert "not running" in row(page, "vault")
    assert "The line" not in row(page, "fw")
    for qube, words in {
        "fw": ("refused", "What to do", "ruddo.PrometheusProxy", "allow autostart=no"),
        "debian-12": ("no_service", "Install the package prometheus-qubes-proxy-service"),
        "sys-usb": ("connection", "Start the exporter in the qube."),
        "personal": ("timeout", "in time"),
        "evil": ("http", "HTTP status 500", "lines dropped", "up, drops lines"),
        "work": ("node", "app", "up"),
    }.items():
        for word in words:
            assert word in row(page, qube), (qube, word)
    page.open(f"{scene.proxy.url}/qube/evil")
    assert "<script>alert(1)" in page.run(VISIBLE)
    assert page.run("return document.querySelectorAll('main script, main img').length") == 0
    wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    for path in ("", "/qube/evil"):
        page.open(scene.proxy.url + path)
        for width in (1280, 390):
            page.look(width=width, dark=False)
            assert page.run(wide), (path, width)


def test_the_filter_and_the_page_of_a_qube(scene: Scene, page: Browser) -> None:
    """By typing, by choosing, by a link; the URL has it, so that it can be kept."""
    scene.scrape()
    page.open(scene.proxy.url)
    page.type("#filter input", "work")
    eventually("the others are gone", lambda: order(page) == ["work"])
    assert page.run("return location.search") == "?q=work"
    assert "2 of 9 exporters shown" in page.run(VISIBLE)
    page.open(f"{scene.proxy.url}/?state=not_running")
    assert order(page) == ["vault"]
    page.click("#q-vault a")
    eventually("the page of the qube is there", lambda: "vault: not running" in page.run(VISIBLE))
    assert page.run("return location.pathname") == "/qube/vault"
    page.click("header a")
    eventually("all are there", lambda: len(order(page)) == 7)


def test_it_refreshes_itself_and_keeps_scroll_filter_and_focus(scene: Scene, page: Browser) -> None:
    """A row that changed is another one; what a person holds on to stays."""
    scene.scrape()
    page.open(scene.proxy.url)
    page.look(width=390, dark=False)
    page.run("document.querySelector('#about details').open = true")
    page.run("document.querySelector('#q-work a').focus({preventScroll: true}); scrollTo(0, 200)")
    page.run("document.getElementById('q-fw').dataset.old = 'yes'")
    assert "down" not in row(page, "work")
    scene.changing.stop()
    scene.scrape()
    eventually("the page shows it", lambda: "down" in row(page, "work"))
    assert page.run("return [document.activeElement.textContent, scrollY]") == ["work", 200]
    assert page.run("return document.querySelector('#about details').open")
    scene.changing.start()
    page.type("#filter input", "node")
    eventually("it is filtered", lambda: order(page) == ["work"])
    scene.scrape()
    eventually("the page shows it", lambda: "refused" not in row(page, "work") and "1 of 9" in page.run(VISIBLE))
    focused = "return [document.activeElement.name, document.activeElement.value]"
    assert page.run(focused) == ["q", "node"]


def test_it_says_when_the_proxy_is_gone(scene: Scene, tmp_path: Path) -> None:
    """Old news must not look new."""
    with browser(tmp_path) as one:  # its console says that the connection was refused
        one.open(scene.proxy.url)
        assert "does not answer" not in one.run(VISIBLE)
        scene.proxy.stop()
        eventually("the page says so", lambda: "The proxy does not answer" in one.run(VISIBLE))


def test_it_works_without_its_script(scene: Scene, tmp_path: Path) -> None:
    """The server renders and filters."""
    scene.scrape()
    with browser(tmp_path, script=False) as one:
        one.open(scene.proxy.url)
        assert len(order(one)) == 7
        one.type("#filter input", "evil")
        one.click("#filter button")
        eventually("the others are gone", lambda: order(one) == ["evil"])
        assert one.messages() == []


def test_everybody_can_use_it(scene: Scene, page: Browser, tmp_path: Path) -> None:
    """axe-core finds nothing, in light and dark, wide and narrow."""
    program = axe.source(tmp_path)
    scene.scrape()
    for path in ("", "/?state=down", "/qube/evil", "/qube/vault"):
        page.open(scene.proxy.url + path)
        for width, dark in ((1280, False), (1280, True), (390, False)):
            page.look(width=width, dark=dark)
            assert axe.violations(page, program) == [], (path, width, dark)


def test_pictures(scene: Scene, page: Browser, tmp_path: Path) -> None:
    """For people who look at them: the folder is in the environment, as PICTURES."""
    folder = Path(os.environ.get("PICTURES", tmp_path))
    for number in range(8):
        if number == 4:
            scene.changing.stop()
        if number == 6:
            scene.changing.start()
            scene.slow.hold.clear()
        scene.scrape()
    for name, path in {"status": "", "qube": "/qube/work", "hostile": "/qube/evil"}.items():
        page.open(scene.proxy.url + path)
        for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
            page.look(width=width, dark=dark)
            picture = folder / f"{name}-{width}-{'dark' if dark else 'light'}.png"
            page.picture(picture)
            assert picture.read_bytes().startswith(b"\x89PNG")
