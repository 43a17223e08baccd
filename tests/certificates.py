# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates for tests, made by the program openssl."""

import subprocess
from pathlib import Path

from tests.parts import debian_program


class Authority:
    """
    Signs certificates. All files of it are in one folder: NAME.crt and NAME.key, its own are ca.crt and ca.key.

    A folder that has these is taken as it is.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        if (folder / "ca.crt").exists():
            return
        self._openssl(
            *("req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test authority", *_new_key(folder / "ca.key")),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"),
            *("-out", folder / "ca.crt"),
        )

    def sign(self, name: str, *alternatives: str) -> tuple[Path, Path]:
        """A new certificate and its key; `alternatives` as openssl writes them, such as DNS:localhost."""
        cert, key, extensions = (self.folder / f"{name}.{suffix}" for suffix in ("crt", "key", "ext"))
        extensions.write_text(
            f"subjectAltName={','.join(alternatives)}\nextendedKeyUsage=serverAuth,clientAuth\n", encoding="ascii"
        )
        request = self._openssl("req", "-nodes", "-subj", f"/CN={name}", *_new_key(key), "-out", "-")
        self._openssl(
            *("x509", "-req", "-days", "2", "-CA", self.folder / "ca.crt", "-CAkey", self.folder / "ca.key"),
            *("-CAcreateserial", "-extfile", extensions, "-out", cert),
            text=request,
        )
        return cert, key

    def server(self) -> tuple[Path, Path]:
        """The certificate of a server on loopback."""
        return self.sign("server", "IP:127.0.0.1", "DNS:localhost")

    def _openssl(self, *words: str | Path, text: bytes = b"") -> bytes:
        done = subprocess.run([debian_program("openssl"), *words], input=text, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


def _new_key(file: Path) -> tuple[str | Path, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", file)
