# SPDX-License-Identifier: GPL-3.0-or-later
"""Which addresses count as one client."""

import pytest

from federator.network import network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_host_counts_once(address: str, network: str) -> None:
    """However many addresses it has; and IPv4 clients of a socket for both are not one client."""
    assert network_of(address) == network
