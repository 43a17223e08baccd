# SPDX-License-Identifier: GPL-3.0-or-later
"""
Why a qube or an exporter is down, in Qubes' words, with the remedy: one function for each kind of failure.

Owns these texts, and which exit status and which words of a service mean what. Must not know processes or clocks, nor
what is done about a failure. Two kinds of text are written elsewhere: what breaks the protocol in `wire`, and what is
wrong with an exposition in `text`.
"""

import re
from collections.abc import Collection
from typing import Any

from federator.errors import (
    BodySizeLimitError,
    ClosedError,
    EndpointError,
    ExporterUnreachableError,
    ExpositionError,
    HttpError,
    NoServiceError,
    NotRunningError,
    ProtocolError,
    RefusedError,
    SampleLimitError,
    ScrapeError,
    TimedOutError,
    shown,
)
from federator.model import Answer, Callee, Endpoint, in_order, where
from federator.wire import (
    BODY_LARGER,
    CANNOT_READ,
    COMPRESSED,
    CUT_SHORT,
    HEAD_LARGER,
    NO_ANSWER_AT_ALL,
    NO_FILES,
    NOT_DEFINED,
    NOT_HTTP,
    SERVICE,
    TIMED_OUT,
    TLS_FAILED,
    WRONG_FILE,
    Version1,
    Version2,
    Wire,
    argument,
)

# The first part of the names of dom0's own services. dom0 answers them in the place of the qube that is called.
_ADMIN_API = "admin."
# How a service that knows only version 1 ends at our greeting: upstream's bash says 0, 116 or 117, by release.
VERSION_1_STATUSES = frozenset({0, 116, 117})
# What our service ends with, and says, where it does not understand the argument.
_UNKNOWN_ARGUMENT = 3
_UNKNOWN_ARGUMENT_WORDS = b"the argument must be the permitted ports"
# What upstream's service ends with at a request where its curl gives it no text: its own status, by release, or curl's.
# Statuses from 125 on are qrexec's, and of services that a signal ended.
_V1_NO_TEXT_STATUSES = range(125)
# Statuses of curl, and what they say of the exporter. It is asked "is the exporter up?" where there is nothing to say.
_CURL_SAYS = {
    7: "nothing listens on its port; does it run?",
    8: "it does not speak HTTP; is that the exporter's port?",
    18: "it ended in the middle of its answer",
    22: "it answered with an HTTP error",
    28: "it did not answer in time",
    52: "it closed the connection without an answer; is that the exporter's port?",
    56: "the connection to it broke in the middle of its answer",
    61: "it compresses its answer in a way that curl does not know",
}


class OnlyVersion1Error(ClosedError):
    """The service ended at the greeting of version 2, as upstream's does. The caller greets in version 1 then."""


class OnePortError(RefusedError):
    """dom0 allows one call for all ports, to a service that knows one port a call."""


class NoAgentError(ClosedError):
    """No qube can be called from here."""


class NotStartedError(ClosedError):
    """The system does not start the client, or the local service."""


class BugError(ClosedError):
    """Our own mistake in asking a qube."""


class TextBugError(ExpositionError):
    """Our own mistake in reading a text."""


class SlowExporterError(TimedOutError):
    """The service answered that the exporter did not, in time."""


class LateTextError(TimedOutError):
    """The exporter's text came, and the time was over before it was read."""


class OldServiceError(NoServiceError):
    """The service knows ports, and no names of endpoints."""


def not_running(qube: str, state: str) -> NotRunningError:
    """dom0 says that the qube does not run."""
    return NotRunningError(f"{qube} does not run (dom0: {state}), and was not called; start it, or leave it as it is")


def late(qube: str) -> TimedOutError:
    """The qube was called, and there is no answer in time."""
    return TimedOutError(f"no answer of {qube} in time; is it paused, or busy?")


def old_service(qube: str) -> OldServiceError:
    """The service is upstream's, or ours from before there were endpoints."""
    return OldServiceError(
        f"the service in {qube} is older than this daemon, and knows ports but no endpoints; install or update"
        f" prometheus-qubes-proxy-service in the template of {qube}, and restart the qube"
    )


def one_port_a_call(qube: str, endpoints: Collection[Endpoint]) -> OnePortError:
    """dom0 allows one call for all endpoints, and the service there needs one for each port."""
    arguments = " and ".join(f"+{one}" for one in in_order(endpoints) if isinstance(one, int))
    return OnePortError(
        f"dom0 allows {SERVICE}+{argument(endpoints)} to {qube}, but the service there is upstream's, which knows one"
        f" port a call: dom0's policy needs a line for each of {arguments}, or {qube} needs this project's service"
    )


def not_its_turn(qube: str) -> TimedOutError:
    """The time was over before the qube could be called: other calls came first."""
    return TimedOutError(f"{qube}'s turn did not come in time: others were being called")


def read_too_late() -> LateTextError:
    """The text came, and the time was over before it was read."""
    return LateTextError("its text came too late to be read in time")


def is_lack_of_memory(error: BaseException) -> bool:
    """Is it that, and nothing else? Tasks that end together put it into groups."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(MemoryError)[1] is None
    return isinstance(error, MemoryError)


def of_ours(error: BaseException, bug_is: type[ScrapeError] = BugError) -> ScrapeError:
    """No fault of the qube: see mishap.py. The log has the traceback of a bug."""
    if is_lack_of_memory(error):
        return too_much_at_once()
    return bug_is("a bug in the proxy; its log has the details, please report them")


def not_started(program: str, why: str | None) -> NotStartedError:
    """The system does not start the client, or the local service."""
    return NotStartedError(f"{program} cannot be started: {why}")


def no_agent(*, is_closed: bool) -> NoAgentError:
    """What passes calls on is not here, or not for this user."""
    if is_closed:
        return NoAgentError("this user may not use the qrexec agent; the daemon's has to be in the group qubes")
    return NoAgentError("there is no qrexec agent here; the daemon has to run in a qube")


def too_much_at_once() -> BodySizeLimitError:
    """The texts of all qubes are more than may be in memory at one time, and this qube has most of them."""
    return BodySizeLimitError(
        "too many large texts at one time, and this qube has most of them; if all of them are wanted,"
        " raise scrape.memory_limit"
    )


def page_too_large(limit: int) -> BodySizeLimitError:
    """The texts of all qubes are larger than a page may be, and this qube has most of them."""
    return BodySizeLimitError(
        f"all texts together are larger than {limit} bytes, and this qube has most of them; if all of them are wanted,"
        " raise scrape.memory_limit, of which a page may be a sixth"
    )


def page_of_too_many_samples(limit: int) -> SampleLimitError:
    """The texts of all qubes have more samples than a page may have, and this qube has most of them."""
    return SampleLimitError(
        f"all texts together have more than {limit} samples, and this qube has most of them; if all of them are wanted,"
        " raise scrape.sample_limit: a page may have four times as many"
    )


def too_much_stderr(limit: int, untrusted_words: bytes) -> ProtocolError:
    """The service writes more to stderr than a scrape allows."""
    return ProtocolError(f"sent more than {limit} bytes on stderr: {shown(untrusted_words)}")


# What our service says where there is no HTTP answer (status 0): how its line starts, and what it comes to.
_SERVICE_SAYS: tuple[tuple[str, type[ScrapeError], str], ...] = (
    (TIMED_OUT, SlowExporterError, "the exporter did not answer in time"),
    # The number is the service's own limit where that is smaller.
    (BODY_LARGER, BodySizeLimitError, "{words}; scrape.body_size_limit is {limit} bytes"),
    (COMPRESSED, HttpError, "the exporter on {place} compresses its answer, which is of no use here: {words}"),
    (CUT_SHORT, HttpError, "the exporter on {place} ended in the middle of its answer: {words}"),
    (HEAD_LARGER, HttpError, "the exporter on {place} sends too many HTTP headers: {words}"),
    (NOT_HTTP, HttpError, "what listens on {place} does not speak HTTP ({words}); is that the exporter's {kind}?"),
    (
        NO_ANSWER_AT_ALL,
        ExporterUnreachableError,
        "what listens on {place} closed the connection without an answer; is that the exporter's {kind}?",
    ),
    (NOT_DEFINED, EndpointError, "the qube has no file for {place}: {words}; write it there, or in its template"),
    (WRONG_FILE, EndpointError, "the qube's file for {place} has to be corrected: {words}"),
    (
        CANNOT_READ,
        EndpointError,
        "a file of {place} is of no use: {words}; the service runs as the qube's user, who must be able to read it",
    ),
    (NO_FILES, ExporterUnreachableError, "nothing to read for {place}: {words}; does the program run that writes it?"),
    (
        TLS_FAILED,
        ExporterUnreachableError,
        "no TLS with what listens on {place}: {words}; the endpoint's ca_file must name the CA of its certificate",
    ),
    # All else is what the system says of a connection, such as "Connection refused".
    ("", ExporterUnreachableError, "no answer of the exporter on {place}: {words}; does it run there?"),
)


def no_text(answer: Answer, body_size_limit: int) -> ScrapeError | None:
    """Why this answer has no text that could be read; None where it has one."""
    if answer.status == 200:
        return None
    if answer.status:
        untrusted_start = f": {shown(answer.body[:80])}" if answer.body else ""
        return HttpError(f"the exporter answered with HTTP status {answer.status}{untrusted_start}{_asks_who(answer)}")
    untrusted_line = answer.body.decode("ascii", "replace")
    error, text = next((error, text) for start, error, text in _SERVICE_SAYS if untrusted_line.startswith(start))
    kind = "port" if isinstance(answer.endpoint, int) else "endpoint"
    return error(text.format(kind=kind, place=where(answer.endpoint), limit=body_size_limit, words=shown(answer.body)))


def _asks_who(answer: Answer) -> str:
    if answer.status not in {401, 403}:
        return ""
    if isinstance(answer.endpoint, int):
        return "; if it wants a token or a password, define an endpoint for it in the qube"
    return f"; is the token or the password that the file of {where(answer.endpoint)} names the right one?"


def call_ended(
    status: int | None, untrusted_words: bytes, callee: Callee, wire: Wire[Any], *, spoke: bool
) -> ScrapeError:
    """
    Why a call ended, from its exit status and the last line it wrote on stderr. `spoke`: it had written to stdout.

    What the statuses mean is qrexec's (QubesOS/qubes-core-qrexec, agent/qrexec-client-vm.c); the service may use the
    same numbers, so "refused" is believed only together with the client's words and before any output.
    """
    name = callee.name
    words = f": {shown(untrusted_words)}" if untrusted_words else ""
    if callee.transport == "qrexec" and not spoke and (error := _never_connected(status, untrusted_words, callee)):
        return error
    if isinstance(wire, Version2) and not spoke and (error := _too_old(status, untrusted_words, name)):
        return error
    how = f"killed by signal {-status}" if status is not None and status < 0 else f"status {status}"
    if isinstance(wire, Version1) and wire.owed and status is not None and status in _V1_NO_TEXT_STATUSES:
        why = _CURL_SAYS.get(status, "is the exporter up?")
        return ExporterUnreachableError(
            f"upstream's service in {name} got no text of the exporter and ended ({how}): {why}{words}"
        )
    if callee.service != SERVICE:
        there = "dom0" if callee.service.startswith(_ADMIN_API) else name
        return ClosedError(
            f"{callee.service} in {there} ended without an answer ({how}); {there}'s journal may say why{words}"
        )
    if callee.transport == "qrexec" and status == 255:
        return ClosedError(f"{name} went away in the middle of the call; was it shut down or killed?{words}")
    return ClosedError(f"the call to {name} ended by itself ({how}){words}")


def _too_old(status: int | None, untrusted_words: bytes, name: str) -> ScrapeError | None:
    """How a service ends that knows less than we do."""
    if status == _UNKNOWN_ARGUMENT and _UNKNOWN_ARGUMENT_WORDS in untrusted_words:
        return old_service(name)
    return OnlyVersion1Error(f"the service in {name} speaks version 1 only") if status in VERSION_1_STATUSES else None


def _no_service(status: int, words: str, callee: Callee) -> NoServiceError:
    name, service = callee.name, callee.service
    if service.startswith(_ADMIN_API):
        return NoServiceError(f"this release of Qubes does not have {service}{words}")
    if status == 125:
        return NoServiceError(f"{service} is in {name}, but cannot be run there; is it executable?{words}")
    where = name if name == "dom0" else f"the template of {name}"
    return NoServiceError(f"{service} is not installed in {name}; install it in {where}")


def _refused(name: str, service: str) -> RefusedError:
    if service != SERVICE:
        return RefusedError(
            f"dom0's policy does not allow {service}; `prometheus-qubes-proxy policy` prints the line for it"
        )
    more = "" if name == "dom0" else ", or the qube does not run or does not exist; dom0's journal says which"
    return RefusedError(f"qrexec refused the call to {name}: dom0's policy does not allow it{more}")


def _never_connected(status: int | None, untrusted_words: bytes, callee: Callee) -> ScrapeError | None:
    """What qrexec-client-vm says where it did not reach the service."""
    name, service = callee.name, callee.service
    words = f": {shown(untrusted_words)}" if untrusted_words else ""
    if status == 126 and untrusted_words.endswith(b"Request refused"):
        return _refused(name, service)
    if status in {125, 127}:
        return _no_service(status, words, callee)
    if status == 1 and (why := re.search(rb"connect: (No such file|Connection refused|Permission)", untrusted_words)):
        return no_agent(is_closed=why[1] == b"Permission")
    if status == 1 and b"Data vchan connection failed" in untrusted_words:
        return ClosedError(f"{name} accepted the call but did not connect; restart the qube if it stays so")
    return None
