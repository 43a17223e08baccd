# SPDX-License-Identifier: GPL-3.0-or-later
"""
Invariant 5, asked of the judge itself: what Prometheus stores of an honest qube does not depend on what others say.

The honest qube's page is scraped alone, and beside other qubes whose types and names collide with its own. Prometheus
3, if it is the first `prometheus` on the PATH, gets all options with which it reads more out of a type.

Not promised, and not in the honest text: the label `__type__` of a plain sample whose very name others give a type.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from federator.model import Reading
from tests.helpers import page, read, target
from tests.parts import debian_program, eventually, free_port, get, process
from tests.test_differential import serving_pages

HONEST = b"""\
# HELP req_seconds Requests.
# TYPE req_seconds histogram
req_seconds_bucket{le="0.5"} 1
req_seconds_bucket{le="1"} 2
req_seconds_bucket{le="+Inf"} 3
req_seconds_sum 4
req_seconds_count 3
# TYPE gc_seconds summary
gc_seconds{quantile="0"} 1
gc_seconds{quantile="1"} 2
gc_seconds_sum 3
gc_seconds_count 2
# TYPE jobs_count gauge
jobs_count 5
# TYPE pages_sum counter
pages_sum 6
plain_bucket{le="3"} 8
"""
GAUGE = b"# TYPE req_seconds gauge\nreq_seconds 1\n# TYPE gc_seconds gauge\ngc_seconds 1\n"
PARTS = b"# TYPE req_seconds_count gauge\nreq_seconds_count 1\n# TYPE gc_seconds_sum counter\ngc_seconds_sum 1\n"
OWNER = b"""\
# TYPE jobs histogram
jobs_bucket{le="+Inf"} 1
jobs_sum 1
jobs_count 1
# TYPE pages summary
pages_sum 1
pages_count 1
# TYPE plain histogram
plain_bucket{le="+Inf"} 1
plain_sum 1
plain_count 1
"""
UNTYPED = b'req_seconds_bucket{le="1"} 1\nreq_seconds_sum 1\ngc_seconds{quantile="0"} 1\ngc_seconds_count 1\n'
OTHERS: dict[str, tuple[Sequence[bytes], Sequence[bytes]]] = {  # before and behind the honest qube
    "alone": ((), ()),
    "gauges": ((GAUGE, GAUGE), (GAUGE,)),
    "names of its parts": ((PARTS, PARTS), (PARTS,)),
    "owners of its names": ((OWNER,), (OWNER,)),
    "no types": ((UNTYPED, UNTYPED), (UNTYPED,)),
    "the other kind": ((), (HONEST.replace(b"TYPE gc_seconds summary", b"TYPE gc_seconds histogram"),)),
    "all of it": ((GAUGE, PARTS), (OWNER, UNTYPED)),
}

Stored = set[tuple[tuple[tuple[str, str], ...], str]]


class _Prometheus:
    """One that scrapes page N as the job N."""

    def __init__(self, folder: Path, pages: int, port: int) -> None:
        program = debian_program("prometheus")
        version = subprocess.run([program, "--version"], capture_output=True, check=True, text=True).stdout
        is_3 = "version 3." in version
        more = ", convert_classic_histograms_to_nhcb: true" if is_3 else ""
        jobs = "".join(
            f"- {{job_name: '{number}', metrics_path: /{number}, static_configs: [{{targets: ['127.0.0.1:{port}']}}]"
            f"{more}}}\n"
            for number in range(pages)
        )
        config = folder / "prometheus.yml"
        config.write_text(
            f"global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n{jobs}", encoding="utf-8"
        )
        self.url = f"http://127.0.0.1:{free_port()}"
        self.words = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            *(["--enable-feature=native-histograms,type-and-unit-labels"] if is_3 else []),
        ]

    def ask(self, path: str) -> list[Any]:
        """The data of an answer; empty while there is none."""
        try:
            data: Any = json.loads(get(self.url + path).body)["data"]
        except (OSError, ValueError):
            return []  # it is still starting
        found: list[Any] = data["result"] if isinstance(data, dict) else data
        return found

    def stored(self, job: int) -> Stored:
        """The series of the honest qube in this job, with their values."""
        found: Stored = set()
        for one in self.ask(f"/api/v1/query?query=%7Bqube%3D%22honest%22%2Cjob%3D%22{job}%22%7D"):
            labels: Mapping[str, str] = one["metric"]
            kept = tuple(sorted((name, value) for name, value in labels.items() if name != "job"))
            found.add((kept, json.dumps(one["value"][1] if "value" in one else one["histogram"][1], sort_keys=True)))
        return found

    def types(self, job: int) -> dict[str, str]:
        """The types that its metadata have."""
        query = f"/api/v1/targets/metadata?match_target=%7Bjob%3D%22{job}%22%7D"
        return {one["metric"]: one["type"] for one in self.ask(query) if not one["metric"].startswith("up")}


@pytest.mark.parametrize("others", [name for name in OTHERS if name != "alone"])
def test_merging_leaves_an_honest_qubes_lines_as_they_are(others: str) -> None:
    """Each of its lines is on the page, byte for byte as it is without the others."""
    alone = {line for line in page(_reading("honest", HONEST)).split("\n") if not line.startswith("#")}
    assert alone <= set(_page(*OTHERS[others]).split("\n"))


@pytest.mark.slow
def test_what_prometheus_stores_of_a_qube_does_not_depend_on_others(tmp_path: Path) -> None:
    """Names, labels, values, native histograms, and the types of its histogram and its summary."""
    pages = [_page(*others).encode() for others in OTHERS.values()]
    with serving_pages(pages) as port:
        prometheus = _Prometheus(tmp_path, len(pages), port)
        with process(*prometheus.words, log=tmp_path / "prometheus.log"):
            # What was stored once stays here: a busy machine may miss a later scrape.
            stored: dict[int, Stored] = {}

            def all_are_stored() -> bool:
                stored.update({number: one for number in range(len(pages)) if (one := prometheus.stored(number))})
                return len(stored) == len(pages)

            eventually("all pages are stored", all_are_stored)
            alone = stored[0]
            assert {("__name__", "jobs_count"), ("__name__", "pages_sum"), ("__name__", "plain_bucket")} <= {
                label for labels, _ in alone for label in labels
            }
            for number, name in enumerate(OTHERS):
                assert stored[number] == alone, name
                types = prometheus.types(number)
                assert (types["req_seconds"], types["gc_seconds"]) == ("histogram", "summary"), name
                assert (types["jobs_count"], types["pages_sum"]) == ("gauge", "counter"), name


def _reading(qube: str, body: bytes) -> Reading:
    return read(body, target(qube))


def _page(before: Sequence[bytes], behind: Sequence[bytes]) -> str:
    return page(
        *(_reading(f"a{number}", body) for number, body in enumerate(before)),
        _reading("honest", HONEST),
        *(_reading(f"z{number}", body) for number, body in enumerate(behind)),
    )
