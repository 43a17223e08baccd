#!/usr/bin/python3 -I
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installed as `prometheus-qubes-proxy`: runs the package from its own folder, with the distribution's libraries."""

import signal
import sys

# Until the daemon can reload, which takes a moment of importing, SIGHUP must not end it.
signal.signal(signal.SIGHUP, signal.SIG_IGN)

sys.path.insert(0, "/usr/share/prometheus-qubes-proxy")

from federator.cli import main  # noqa: E402 - it is found only now

sys.exit(main())
