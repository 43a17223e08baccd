# SPDX-License-Identifier: GPL-3.0-or-later
"""
Which Content-Types are expositions that every Prometheus takes, whether such a text is whole, what is a web page.

Owns these names. Must not know what is in a text.
"""

# Every Prometheus takes this for every Accept header (3.x takes nothing less exact).
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version={}; charset=utf-8"

_OPENMETRICS_VERSIONS = ("1.0.0", "0.0.1")
# A web page shows in so many bytes, behind a byte order mark and blank lines.
_START = 1024


def exposition_type(untrusted_content_type: str) -> str | None:
    """
    The Content-Type under which a text may be passed on; None where it is no exposition, such as text/html.

    A service that says none (`-`, and version 1 always) means the text format: that is what was asked for.
    """
    media_type, *parameters = (part.strip().lower() for part in untrusted_content_type.split(";"))
    if media_type in ("text/plain", "-", ""):
        return TEXT_FORMAT
    if media_type == "application/openmetrics-text":
        said = next((one.removeprefix("version=") for one in parameters if one.startswith("version=")), "")
        return OPENMETRICS.format(said if said in _OPENMETRICS_VERSIONS else _OPENMETRICS_VERSIONS[0])
    return None


def is_cut(untrusted_body: bytes, content_type: str) -> bool:
    """Is the end missing? Prometheus would take the beginning of a number for the whole. An empty text is whole."""
    if content_type == TEXT_FORMAT:
        return bool(untrusted_body) and not untrusted_body.endswith(b"\n")
    return not untrusted_body.endswith((b"# EOF\n", b"# EOF"))


def is_html(untrusted_content_type: str) -> bool:
    """Does the exporter call its text a web page?"""
    return untrusted_content_type.partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


def looks_like_web_page(untrusted_body: bytes) -> bool:
    """Does it start with a tag? No line of an exposition does; lines further down may look like samples."""
    return untrusted_body[:_START].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
