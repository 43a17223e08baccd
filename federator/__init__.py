# SPDX-License-Identifier: GPL-3.0-or-later
"""One /metrics for every exporter of every qube."""

__version__ = "0.3.0.dev0"
