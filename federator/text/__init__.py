# SPDX-License-Identifier: GPL-3.0-or-later
"""One target's text, from bytes that nobody trusts to finished lines of the page. Bytes in, bytes out."""
