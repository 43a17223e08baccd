# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS: which clients get as far as a request, and which certificate they see."""

import asyncio
import logging
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federator import connections
from federator.connections import Connections
from federator.errors import ConfigError
from federator.model import Secret, Tls
from federator.tls import MAX_PEM_BYTES, ServerTls
from tests.certificates import Authority
from tests.parts import eventually

Serve = Callable[[ServerTls], "asyncio.Task[Connections]"]


class Echo(asyncio.Protocol):
    """In place of the HTTP library: sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """It said something."""
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.write(data)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an authority that has signed the server's certificate; openssl takes a while to make it."""
    one = Authority(tmp_path_factory.mktemp("tls") / "ca")
    one.server()
    return one.folder


@pytest.fixture
def authority(signed: Path, tmp_path: Path) -> Authority:
    """A copy of it, which the test may change."""
    return Authority(Path(shutil.copytree(signed, tmp_path / "ca")))


@pytest.fixture
def settings(authority: Authority) -> Tls:
    """The server's certificate, and nothing else."""
    return Tls(where="f.toml: tls", cert=authority.folder / "server.crt", key=authority.folder / "server.key")


@pytest.fixture
def mutual(settings: Tls, authority: Authority) -> Tls:
    """With certificates of clients, too."""
    return replace(settings, client_auth="RequireAndVerifyClientCert", client_ca=authority.folder / "ca.crt")


@pytest.fixture
async def serve(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serve]:
    """Makes connections that have to use TLS."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1000.0)  # who is refused is refused at once
    made: list[Connections] = []

    async def start(tls: ServerTls) -> Connections:
        made.append(Connections(Echo, 10, tls=lambda: tls))
        await made[-1].listen("127.0.0.1", 0)
        return made[-1]

    yield lambda tls: asyncio.create_task(start(tls))
    for one in made:
        await one.close(0.5)


def client(authority: Authority, name: str = "") -> ssl.SSLContext:
    """A client that trusts the authority, with a certificate or without."""
    context = ssl.create_default_context(cafile=authority.folder / "ca.crt")
    if name:
        context.load_cert_chain(authority.folder / f"{name}.crt", authority.folder / f"{name}.key")
    return context


async def talk(to: Connections, context: ssl.SSLContext) -> tuple[bytes, ssl.SSLObject]:
    """Say something and hear it back; and what is known of the encryption. Raises OSError where there is no answer."""
    reader, writer = await asyncio.open_connection(*to.addresses[0], ssl=context)
    try:
        writer.write(b"hello")
        answer = await reader.read(100)
        return answer, writer.get_extra_info("ssl_object")
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def is_refused(to: Connections, context: ssl.SSLContext) -> bool:
    """Is there no answer?"""
    try:
        return (await talk(to, context))[0] == b""
    except OSError:
        return True


async def test_a_client_talks_encrypted(serve: Serve, settings: Tls, authority: Authority) -> None:
    """It sees the certificate that is configured, and what it sends gets through."""
    listening = await serve(ServerTls(settings))
    answer, encryption = await talk(listening, client(authority))
    assert answer == b"hello"
    assert encryption.version() == "TLSv1.3"
    await asyncio.to_thread(eventually, "it is gone", lambda: len(listening) == 0)


async def test_contents_in_the_configuration(serve: Serve, settings: Tls, authority: Authority) -> None:
    """In place of files."""
    cert, key = (
        Secret(file.read_text(encoding="ascii")) for file in (settings.cert, settings.key) if isinstance(file, Path)
    )
    listening = await serve(ServerTls(replace(settings, cert=cert, key=key)))
    assert (await talk(listening, client(authority)))[0] == b"hello"


async def test_a_new_certificate_is_used_without_a_restart(
    serve: Serve, settings: Tls, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the next connection on; and while the files do not fit together, the old one."""
    listening = await serve(ServerTls(settings))
    new = Authority(tmp_path / "new")
    new.server()
    assert await is_refused(listening, client(new))
    (new.folder / "server.crt").replace(authority.folder / "server.crt")
    with caplog.at_level(logging.ERROR):
        assert (await talk(listening, client(authority)))[0] == b"hello"
        assert (await talk(listening, client(authority)))[0] == b"hello"
    assert [record.message for record in caplog.records] == ["the new certificates are not usable; the old ones stay"]
    (new.folder / "server.key").replace(authority.folder / "server.key")
    assert (await talk(listening, client(new)))[0] == b"hello"
    assert await is_refused(listening, client(authority))


async def test_an_authority_that_was_taken_out_signs_nobody_in(
    serve: Serve, mutual: Tls, authority: Authority, tmp_path: Path
) -> None:
    """From the moment on when its file has changed."""
    authority.sign("alice", "DNS:alice")
    listening = await serve(ServerTls(mutual))
    context = client(authority, "alice")
    assert (await talk(listening, context))[0] == b"hello"
    Authority(tmp_path / "new")
    (tmp_path / "new" / "ca.crt").replace(authority.folder / "other.crt")
    (authority.folder / "other.crt").replace(authority.folder / "ca.crt")
    assert await is_refused(listening, context)


async def test_client_certificates(
    serve: Serve, mutual: Tls, settings: Tls, authority: Authority, tmp_path: Path
) -> None:
    """None, one of ours, and one of a stranger's, with each of the types."""
    stranger = Authority(tmp_path / "stranger")
    for of in (authority, stranger):
        of.sign("alice", "DNS:alice")
    without, ours, theirs = client(authority), client(authority, "alice"), client(authority)
    theirs.load_cert_chain(stranger.folder / "alice.crt", stranger.folder / "alice.key")
    kinds = {
        settings: [True, True, True],
        replace(mutual, client_auth="VerifyClientCertIfGiven"): [True, True, False],
        mutual: [False, True, False],
    }
    for kind, let_in in kinds.items():
        listening = await serve(ServerTls(kind))
        assert [not await is_refused(listening, one) for one in (without, ours, theirs)] == let_in, kind.client_auth


@pytest.mark.parametrize(
    ("names", "allowed", "let_in"),
    [
        (("DNS:alice",), "alice", True),
        (("DNS:bob", "DNS:alice"), "alice", True),
        (("DNS:bob",), "alice", False),
        (("DNS:alice.example.org",), "alice", False),
        (("IP:192.0.2.1",), "192.0.2.1", True),
        (("IP:2001:db8::1",), "2001:DB8:0::1", True),
        (("IP:192.0.2.2",), "192.0.2.1", False),
        (("email:a@example.org",), "a@example.org", True),
        (("URI:spiffe://x/prometheus",), "spiffe://x/prometheus", True),
        (("RID:1.2.3",), "1.2.3", False),
    ],
)
async def test_names_in_the_certificates_of_clients(
    serve: Serve, mutual: Tls, authority: Authority, names: tuple[str, ...], allowed: str, *, let_in: bool
) -> None:
    """One of them must be allowed; the name in the subject does not count."""
    authority.sign("alice", *names)
    listening = await serve(ServerTls(replace(mutual, client_allowed_sans=("nobody", allowed))))
    assert await is_refused(listening, client(authority, "alice")) is not let_in
    await asyncio.to_thread(eventually, "it is gone", lambda: len(listening) == 0)


async def test_versions(serve: Serve, settings: Tls, authority: Authority) -> None:
    """No older one than min_version, no newer one than max_version."""
    old = client(authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    listening = await serve(ServerTls(replace(settings, min_version="TLS13")))
    assert await is_refused(listening, old)
    listening = await serve(ServerTls(replace(settings, max_version="TLS12")))
    assert (await talk(listening, client(authority)))[1].version() == "TLSv1.2"


async def test_ciphers(serve: Serve, settings: Tls, authority: Authority) -> None:
    """Those alone that are configured."""
    name = "ECDHE-ECDSA-AES256-GCM-SHA384"
    listening = await serve(ServerTls(replace(settings, max_version="TLS12", ciphers=(name,))))
    cipher = (await talk(listening, client(authority)))[1].cipher()
    assert cipher
    assert cipher[0] == name
    other = client(authority)
    other.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    assert await is_refused(listening, other)


def test_suites_that_openssl_does_not_have(settings: Tls) -> None:
    """Its policy may have switched them off; the error names the key and what to do."""
    with pytest.raises(ConfigError, match=r"cipher_suites: this qube's OpenSSL has none of them; leave the list out"):
        ServerTls(replace(settings, ciphers=("NULL-OF-NOTHING",)))


async def test_plain_http_is_one_line_without_a_traceback(
    serve: Serve, settings: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it comes; the connection is closed."""
    listening = await serve(ServerTls(settings))
    for _ in range(20):
        reader, writer = await asyncio.open_connection(*listening.addresses[0])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
    await asyncio.to_thread(eventually, "they are gone", lambda: len(listening) == 0)
    records = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert [record.message for record in records] == ["a client failed at TLS; further ones are not logged for 60 s"]
    assert vars(records[0])["error"] == "it speaks plain HTTP; use https:// in its configuration"


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"], ids=["silent", "half a handshake"])
async def test_a_handshake_that_does_not_end_is_cut(
    serve: Serve, settings: Tls, authority: Authority, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the same time as the head of a request, and counts as a connection from the first moment."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    listening = await serve(ServerTls(settings))
    silent = [await asyncio.open_connection(*listening.addresses[0]) for _ in range(30)]
    for _, writer in silent:
        writer.write(said)
    assert (await talk(listening, client(authority)))[0] == b"hello"
    assert len(listening) <= 10
    for reader, writer in silent:
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    await asyncio.to_thread(eventually, "they are gone", lambda: len(listening) == 0)


async def test_a_client_that_goes_away_in_the_handshake_leaves_nothing(serve: Serve, settings: Tls) -> None:
    """With a reset, and with an end."""
    listening = await serve(ServerTls(settings))
    for said in (b"", b"\x16\x03\x01"):
        for abort in (False, True):
            _, writer = await asyncio.open_connection(*listening.addresses[0])
            writer.write(said)
            if abort:
                writer.transport.abort()
            else:
                writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    await asyncio.to_thread(eventually, "they are gone", lambda: len(listening) == 0)


async def test_what_comes_with_the_end_of_the_handshake_is_not_lost(
    serve: Serve, settings: Tls, authority: Authority
) -> None:
    """A client sends its request together with its last message of the handshake."""
    listening = await serve(ServerTls(settings))

    def talk_at_once() -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(listening.addresses[0], 10) as sock:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65536))
            tls.write(b"hello")
            sock.sendall(outgoing.read())
            while True:
                try:
                    return tls.read(100)
                except ssl.SSLWantReadError:
                    incoming.write(sock.recv(65536))

    for _ in range(20):
        assert await asyncio.to_thread(talk_at_once) == b"hello"


def test_an_authority_may_have_comments(mutual: Tls, authority: Authority, tmp_path: Path) -> None:
    """In any encoding, as the file of a certificate may."""
    file = tmp_path / "ca.crt"
    for comment in ("Ämter".encode(), b"\xff"):
        file.write_bytes(b"# %s\n%s" % (comment, (authority.folder / "ca.crt").read_bytes()))
        ServerTls(replace(mutual, client_ca=file))


FAULTS = {
    "no certificate": ("cert", None, "f.toml: tls.cert_file: {file}: No such file or directory; the daemon must be"),
    "no key": ("key", None, "f.toml: tls.key_file: {file}: No such file or directory"),
    "no authority": ("client_ca", None, "f.toml: tls.client_ca_file: {file}: No such file or directory"),
    "not PEM": ("cert", b"hello", "f.toml: tls.cert_file, key_file: both must be PEM and belong together"),
    "no key in it": ("key", b"", "f.toml: tls.cert_file, key_file: both must be PEM and belong together"),
    "no authority in it": ("client_ca", b"hello", "f.toml: tls.client_ca_file: it must have one or more certificates"),
    "an empty authority": ("client_ca", b"", "f.toml: tls.client_ca_file: it must have one or more certificates"),
    "bytes": ("client_ca", b"\xff", "f.toml: tls.client_ca_file: it must have one or more certificates"),
    "too large": ("cert", b"x" * (MAX_PEM_BYTES + 1), "f.toml: tls.cert_file: {file}: larger than 1048576 bytes"),
}


@pytest.mark.parametrize(("key", "contents", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_file_that_is_not_usable_is_named(
    mutual: Tls, tmp_path: Path, key: str, contents: bytes | None, words: str
) -> None:
    """With its key, and what is wrong."""
    file = tmp_path / "file"
    files: dict[str, Any] = {key: file}
    if contents is not None:
        file.write_bytes(contents)
    with pytest.raises(ConfigError) as caught:
        ServerTls(replace(mutual, **files))
    assert words.format(file=file) in str(caught.value)


def test_a_fifo_does_not_stop_the_daemon(settings: Tls, tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        ServerTls(replace(settings, cert=tmp_path / "fifo"))


def test_another_key_and_an_encrypted_one_are_refused(settings: Tls, authority: Authority) -> None:
    """An encrypted one would ask for its password on the terminal."""
    _, other = authority.sign("other", "DNS:other")
    for key in (other, Secret("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")):
        with pytest.raises(ConfigError, match="cert_file, key_file: both must be PEM and belong together"):
            ServerTls(replace(settings, key=key))
