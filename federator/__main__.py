# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m federator` is the command."""

import signal
import sys

# Until the daemon can reload, which takes a moment of importing, SIGHUP must not end it.
signal.signal(signal.SIGHUP, signal.SIG_IGN)

from federator.cli import main  # noqa: E402 - see above

sys.exit(main())
