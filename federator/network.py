# SPDX-License-Identifier: GPL-3.0-or-later
"""
Whose address it is, as far as limits go.

Owns which addresses count as one client. Must not know what is limited.
"""

import ipaddress

# One host has a whole network of this size (RFC 6177), and can come from any address in it.
IPV6_PREFIX = 64


def network_of(address: str) -> str:
    """What counts together with this address: an IPv4 address alone, an IPv6 address with its network."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # all of a Unix socket
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(ip), IPV6_PREFIX), strict=False))
        ip = ip.ipv4_mapped  # an IPv4 client of a socket for both
    return str(ip)
