# SPDX-License-Identifier: GPL-3.0-or-later
"""
What a person can do about each reason, for a page that has room for it.

Owns these texts. Must not know where they are shown. What exactly happened is said in `reasons`.
"""

from collections.abc import Iterable, Mapping, Sequence

from federator.errors import ScrapeError
from federator.model import Config, Qube
from federator.policy import Need, dom0_rules, only, rules
from federator.reasons import BugError, NoAgentError, NotStartedError, TextBugError
from federator.targets import DOM0

REMEDIES: Mapping[str, str] = {
    "refused": "Add this line to dom0's policy, in /etc/qubes/policy.d/30-user.policy. If it is there: does the qube"
    " run, and is its name right? In dom0, journalctl -t qrexec-policy-daemon says why the call was refused. If it says"
    " `would require autostart` of a qube that runs, the qube was paused and resumed: dom0 notices that only when some"
    " qube is started, stopped or tagged.",
    "no_service": "Install the package prometheus-qubes-proxy-service in the qube's template, or update it, and restart"
    " the qube.",
    "not_running": "Nothing, if the qube may be off. Otherwise start it.",
    "closed": "Look at the qube: was it shut down, or killed? Otherwise its service failed; the daemon's log has the"
    " last line that it wrote.",
    "timeout": "See whether the qube is paused or overloaded, or its exporter slow. Otherwise raise scrape_timeout in"
    " Prometheus.",
    "protocol": "See what is installed in the qube as /etc/qubes-rpc/ruddo.PrometheusProxy. If it is our service, do"
    " not trust the qube.",
    "endpoint": "In the qube or its template, write or correct the endpoint's file. The failure names the file and the"
    " line; /usr/share/doc/prometheus-qubes-proxy-service/endpoint.example there has all that may stand in it.",
    "connection": "Start the exporter in the qube. It must listen on this port of the qube's loopback, or where the"
    " file of its endpoint says.",
    "http": "See what listens there in the qube: is it the exporter? If it wants a token or a password, is that in the"
    " file of its endpoint?",
    "exposition": "See what this port of the qube serves at /metrics, or its endpoint: is it an exporter, and"
    " is its answer complete?",
    "body_size_limit": "Make the exporter send less, or raise scrape.body_size_limit or scrape.memory_limit.",
    "sample_limit": "Leave metrics out with `drop`, or raise scrape.sample_limit.",
    "label_limit": "Leave the metric out with `drop`, or raise the limit in [scrape].",
}
_REPORT = "Report it, with the lines of the daemon's log."
# Where the qube is not to blame: there is nothing to look at in it.
_NOT_OF_THE_QUBE: Mapping[type[ScrapeError], str] = {
    NoAgentError: "Run it in a qube, as a user of the group qubes: from elsewhere, no qube can be called. If it runs in"
    " a qube, start the agent: sudo systemctl restart qubes-qrexec-agent",
    NotStartedError: "See whether the program is there and may be run: that of qrexec.client or, for a qube with"
    ' transport = "local", that of qrexec.local_service.',
    BugError: _REPORT,
    TextBugError: _REPORT,
}
# Where the qube is dom0, which always runs and has no template.
_DOM0_AS_QUBE: Mapping[str, str] = {
    "refused": "Add this line to dom0's policy, in /etc/qubes/policy.d/30-user.policy.",
    "no_service": "Install the package prometheus-qubes-proxy-service in dom0, or update it.",
}
# Where it is dom0 that does not answer one of [dom0]'s calls.
DOM0_REMEDIES: Mapping[str, str] = {
    "refused": "Allow it in dom0's policy, in /etc/qubes/policy.d/30-user.policy, or switch these figures off in"
    " [dom0].",
    "closed": "Look at qubesd in dom0: systemctl status qubesd. If it was restarted, nothing is to be done.",
    "timeout": "See whether dom0 is overloaded, or qubesd hangs: in dom0, systemctl status qubesd.",
    "protocol": "See what qubesd wrote: in dom0, journalctl -u qubesd. If nothing is wrong there, please report it with"
    " this line: this release of Qubes may answer in another way.",
    "no_service": "Switch these figures off in [dom0]: this release of Qubes does not have them.",
}


def remedy(error: ScrapeError, qube: str) -> str:
    """What to do about it."""
    return here(error) or (_DOM0_AS_QUBE.get(error.reason) if qube == DOM0 else None) or REMEDIES[error.reason]


def here(error: ScrapeError) -> str:
    """What to do on this machine, which is to blame; empty where it is not."""
    return _NOT_OF_THE_QUBE.get(type(error), "")


def dom0_remedy(error: ScrapeError) -> str:
    """The same for one of [dom0]'s calls."""
    return here(error) or DOM0_REMEDIES.get(error.reason, "See the daemon's log.")


def lines_for_policy(config: Config, qube: Qube, own_name: str) -> Sequence[str]:
    """What dom0's policy has to say so that this qube can be scraped; nothing where it is not called over qrexec."""
    return rules(only(config, qube), own_name)


def dom0_lines(error: ScrapeError | None, needs: Iterable[Need], own_name: str) -> list[str]:
    """What dom0's policy has to say so that dom0 answers such calls of [dom0]; nothing where it is not that."""
    return dom0_rules(needs, own_name) if error is not None and error.reason == "refused" else []
