#!/usr/bin/env -S python3 -IS
# SPDX-License-Identifier: GPL-3.0-or-later
"""
Stands in for qrexec-client-vm and a qube behind it, at next to no cost: version 2 of the protocol, answered from files.

Called as `feeder.py … ruddo.PrometheusProxy+PORT…`, a copy of it in a folder with the bodies: bodies/PORT/0, 1, …,
one for each scrape, round and round. What is asked of dom0, the stand-in qrexec-client-vm beside it answers.
"""

import os
import sys
from pathlib import Path


def main() -> None:
    """Answer until stdin ends."""
    if sys.argv[-1].startswith("admin."):
        os.execv(Path(sys.argv[0]).with_name("qrexec-client-vm"), sys.argv)  # noqa: S606 - there must be no shell
    folder = Path(sys.argv[0]).parent / "bodies"
    bodies = {
        port: [
            path.read_bytes().replace(b"@qube@", b"%d-" % os.getpid())
            for path in sorted((folder / port).iterdir(), key=lambda path: int(path.name))
        ]
        for port in sys.argv[-1].split("+")[1:]
    }
    sys.stdin.buffer.readline()
    out = sys.stdout.buffer
    out.write(b"=2\n")
    out.flush()
    for scrape, request in enumerate(sys.stdin.buffer):
        for port in request.decode().split()[2:]:
            body = bodies[port][scrape % len(bodies[port])]
            out.write(f"{port} 200 {len(body)} 0.001 text/plain\n".encode())
            out.write(body)
        out.flush()


main()
