# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m federator` is the command."""

import sys

from federator.cli import main

sys.exit(main())
