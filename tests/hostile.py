# SPDX-License-Identifier: GPL-3.0-or-later
"""
What a sloppy or hostile qube may send: bodies by name, made by hand and generated from a fixed seed.

Must not know what becomes of them: the same bodies are for the reader, for the merge and for a real Prometheus.
"""

import random
from itertools import product

from tests.helpers import ROOT, recording

NAMES = (b"m", b"m:x", b"_", b":", b"9m", b"m-x", b"m.x", b"m\xc3\xa9", b"m\x00", b"", b"up", b"scrape_series_added", b"qubes_proxy_qube_up", b"ALERTS", b"m{", b'{"m"}', b"\xff", b"m\r", b"#m", b" m", b"NaN")  # fmt: skip
LABELS = (
    b"", b"{}", b"{,}", b'{a="b"}', b'{a="b",}', b'{a="b",,}', b'{a="b" c="d"}', b'{a="b",a="c"}', b"{a=b}", b'{a="b"', b'a="b"}',
    b'{a="\\"}', b'{a="\\n\\\\\\""}', b'{a="\\x"}', b'{a="\n"}', b'{a="\r"}', b'{a="\x00"}', b'{a="\xff"}', b'{a="\xc3\xa9\xe2\x80\xa8"}',
    b'{a="\xed\xa0\x80"}', b'{9a="b"}', b'{a-b="c"}', b'{"a"="b"}', b'{__name__="x"}', b'{le="1"}', b'{quantile="x"}', b'{qube="work"}',
    b'{qube="work",exported_qube="x"}', b'{exporter=""}', b'{job="x",instance="y"}', b'{ a = "b" , }', b'{a="}"}', b'{a=",b="}', b"{a=''}",
    b'{\xc3\xa9="x"}', b'{a="b"}{c="d"}', b'{:a="b"}', b'{a="' + b"x" * 3000 + b'"}', b"{" + b",".join(b'l%d="x"' % n for n in range(40)) + b"}",
)  # fmt: skip
VALUES = (
    b"1", b"-1", b"+1", b".5", b"5.", b"1e3", b"1E-3", b"1e", b"0x10", b"0b1", b"1_000", b"NaN", b"nan", b"-nan", b"Inf", b"+inf", b"-Infinity",
    b"infinit", b"1,5", b"", b"one", b"\xd9\xa1", b"1e999", b"1e-999", b"9" * 300, b"9" * 500, b"1 1700000000000", b"1 -1", b"1 1.5", b"1 x",
    b"1 99999999999999999999", b'1 # {t="x"} 1', b'1 # {t="x"} 1 1', b"1 # x", b"1 2 3", b"1\r", b"1\x00", b"1\x0b", b"1\x85", b"1\xa0",
    b"1\t", b"1\xc2\xa0", b"1;2", b"{1}", b"1 1700000000000 # {}", b"--1", b"0x1p-2", b"1f", b"1e+3", b"1\x1c2",
)  # fmt: skip
HEADS = (
    b"# TYPE m counter", b"# TYPE m gauge", b"# TYPE m histogram", b"# TYPE m summary", b"# TYPE m untyped", b"# TYPE m unknown", b"# TYPE m info",
    b"# TYPE m stateset", b"# TYPE m gaugehistogram", b"# TYPE m nonsense", b"# TYPE m", b"# TYPE", b"# TYPE  m\tgauge ", b"#TYPE m gauge",
    b"# TYPE m gauge\r", b"# TYPE m gauge x", b"# TYPE \xff gauge", b"# TYPE 9 gauge", b"# TYPE m_count gauge", b"# TYPE up gauge", b"# HELP m",
    b"# HELP m \xff\x00", b"# HELP m a\\nb\\\\c\\x", b'# HELP m "quoted"', b"# HELP m " + b"x" * 20_000, b"# HELP m a\rb", b"# HELP \xff x", b"# HELP",
    b"# HELP m one\n# HELP m two", b"# TYPE m gauge\n# TYPE m counter", b"# UNIT m seconds", b"# EOF", b"#", b"# \x00\xff", b"\t# TYPE m gauge",
    b'# TYPE "m" gauge', b"# HELP m \xe2\x80\xa8", b"# HELP m\ttab\ttab",
)  # fmt: skip
FAMILIES = {
    "histogram whole": b'# TYPE m histogram\nm_bucket{le="1"} 1\nm_bucket{le="+Inf"} 2\nm_sum 3\nm_count 2\n',
    "histogram without le": b"# TYPE m histogram\nm_bucket 1\nm_sum 3\nm_count 2\n",
    "histogram le not a number": b'# TYPE m histogram\nm_bucket{le="x"} 1\nm_bucket{le=""} 1\nm_count 2\n',
    "histogram in pieces": b'# TYPE m histogram\nm_bucket{le="+Inf"} 2\nx 1\nm_sum 3\ny 1\nm_count 2\n',
    "histogram and a sample of its name": b'# TYPE m histogram\nm_bucket{le="+Inf"} 2\nm_sum 3\nm_count 2\nm 4\n',
    "histogram typed late": b'm_bucket{le="+Inf"} 2\nm_sum 3\nm_count 2\n# TYPE m histogram\n',
    "summary": b'# TYPE m summary\nm{quantile="0.5"} 1\nm_sum 1\nm_count 1\n',
    "summary odd quantile": b'# TYPE m summary\nm{quantile="x"} 1\nm{quantile="2"} 1\nm 3\nm_bucket{le="1"} 3\n',
    "gauge": b"# TYPE m gauge\nm 1\n",
    "counter": b"# HELP m first\n# TYPE m counter\nm 1\n",
    "counter of OpenMetrics": b"# TYPE m counter\n# UNIT m bytes\nm_total 1\nm_created 2\n# EOF\n",
    "part of a histogram by itself": b"# TYPE m_count gauge\nm_count 1\n# TYPE m_sum counter\nm_sum 1\n",
    "histogram whose name is a part": b'# TYPE m_count histogram\nm_count_bucket{le="+Inf"} 1\nm_count_sum 1\nm_count_count 1\n',
    "family in pieces": b"m 1\nx 1\nm 2\nx 2\nm{a='b'} 1\nm{a=\"b\"} 1\n",
    "typed in the middle": b'm{a="1"} 1\n# TYPE m gauge\nm{a="2"} 1\n# HELP m late\n',
    "duplicates": b'm 1\nm 1\nm{} 2\nm{a=""} 3\nm{a="b",c="d"} 1\nm{c="d",a="b"} 2\n',
    "duplicates once labelled": b'm{qube="x"} 1\nm{exported_qube="x"} 2\nm{qube="x",exported_qube="x"} 3\n',
    "duplicates by another name": b"up 1\nexported_up 2\nscrape_series_added 1\nexported_scrape_series_added 2\n",
    "in the name of another": b'm{qube="work",exporter="node"} 666\nwork_samples{qube="work",exporter="node"} 666\n',
    "our gauges": b'qubes_proxy_qube_up{qube="work"} 0\nqubes_proxy_exporter_up 0\nup 0\nscrape_duration_seconds 9\n',
    "HTML": b"<!doctype html>\n<html><body>Sign in</body></html>\n",
    "JSON": b'{"status": "ok"}\n',
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03+I-.\xe1\x02\x00\n",
    "UTF-16": "m 1\n".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbfm 1\nn 1\n",
    "CRLF": b"# TYPE m gauge\r\nm 1\r\nn 2\r\n",
    "CR": b"m 1\rn 2\r",
    "NUL bytes": b"\0" * 1000 + b"\n",
    "blank": b"\n\n  \n\t\n",
    "empty": b"",
    "cut": b"m 1\nn ",
    "spaces": b"m" + b" " * 10_000 + b"1\n",
    "a page of ours": b'# TYPE m gauge\nm{qube="work",exporter="node"} 1\nqubes_proxy_build_info{version="9"} 1\n',
    "OpenMetrics": recording("pyapp", 1),
    "metadata alone": b"# HELP m text\n# TYPE m gauge\n# TYPE m_count counter\n# TYPE up summary\n",
    "metadata of a histogram alone": b"# TYPE m histogram\n# TYPE m_bucket counter\n# TYPE work_samples histogram\n",
    "labels without end": b"m{" + b",".join(b'l%d="x"' % n for n in range(300)) + b"} 1\nm 2\n",
}  # fmt: skip
GENERATED = 200
SEED = 20_261_124


def bodies() -> dict[str, bytes]:
    """All of them, by a name that says what they are; all different."""
    made = {f"family: {name}": body for name, body in FAMILIES.items()}
    good = b"\n# a comment\nkept 1\n"
    made |= {f"field: {path.stem}": path.read_bytes() for path in sorted((ROOT / "tests" / "field").glob("*.prom"))}
    made |= {f"name: {name!r}": name + b" 1" + good for name in NAMES}
    made |= {f"labels: {labels[:60]!r}": b"m" + labels + b" 1" + good for labels in LABELS}
    made |= {f"value: {value[:60]!r}": b"m " + value + good for value in VALUES}
    made |= {f"head: {head[:60]!r}": head + b"\nm 1\nm_count 2\nup 3" + good for head in HEADS}
    chance = random.Random(SEED)
    combinations = list(product(NAMES, LABELS, VALUES))
    texts = [
        recording(name).splitlines(keepends=True)
        for name in ("node", "process", "postgres", "redis", "blackbox", "pyapp")
    ]
    for number in range(GENERATED):
        lines = [b"".join((*chance.choice(combinations)[:2], b" ", chance.choice(VALUES), b"\n")) for _ in range(5)]
        lines += [chance.choice(HEADS) + b"\n" for _ in range(3)]
        text = chance.choice(texts)
        start = chance.randrange(len(text))
        lines += text[start : start + 30]
        if number % 2:
            chance.shuffle(lines)
        made[f"generated {number}"] = _damaged(b"".join(lines), chance) + b"\n"
    return {name: body for name, body in made.items() if list(made.values()).count(body) == 1}


def _damaged(body: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, lost or doubled."""
    damaged = bytearray(body)
    for _ in range(chance.randrange(12)):
        at = chance.randrange(len(damaged))
        match chance.randrange(4):
            case 0:
                damaged[at] = chance.randrange(256)
            case 1:
                del damaged[at : at + chance.randrange(1, 20)]
            case 2:
                damaged[at:at] = damaged[at : at + 20]
            case _:
                damaged[at:at] = chance.choice(
                    [b'"', b"\\", b"{", b"}", b"\n", b"\r", b"\0", b",", b"=", b" ", b"#", b"\xe9", b"\x1c"]
                )
    return bytes(damaged)
