# SPDX-License-Identifier: GPL-3.0-or-later
"""The text of a target, from bytes that are not trusted to finished lines of the page. Bytes in, bytes out."""
