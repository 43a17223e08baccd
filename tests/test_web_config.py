# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys of [web]: who is let in, in the words of Prometheus' exporter-toolkit."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from federator import config
from federator.errors import ConfigError
from federator.model import RateLimit, Secret, Tls, Web
from tests.test_config import FILE, WORK

HASH = "$2y$10$" + "a" * 53
TLS = "[web.tls_server_config]\ncert_file = 'c'\nkey_file = 'k'\n"
VERIFY = TLS + "client_auth_type = 'RequireAndVerifyClientCert'\nclient_ca_file = 'ca'\n"


def web(text: str) -> Web:
    """The section of a file."""
    return config.parse(text + WORK, FILE).web


def test_who_is_let_in_is_read_whole() -> None:
    """Every key; files are relative to the configuration's folder."""
    settings = web(
        f"""
        [web]
        listen_addresses = ["unix:/run/proxy.sock", ":8199"]
        hosts = ["Proxy.example.org"]
        [web.tls_server_config]
        cert_file = "tls/server.crt"
        key = "-----BEGIN"
        client_ca_file = "/ca.crt"
        client_auth_type = "RequireAndVerifyClientCert"
        client_allowed_sans = ["prometheus"]
        min_version = "TLS12"
        max_version = "TLS12"
        cipher_suites = ["TLS_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]
        prefer_server_cipher_suites = false
        [web.basic_auth_users]
        alice = "{HASH}"
        [web.rate_limit]
        interval = "1s"
        burst = 5
        """
    )
    assert settings == Web(
        listen_addresses=(Path("/run/proxy.sock"), ("", 8199)),
        hosts=("proxy.example.org",),
        tls=Tls(
            where="/etc/here/p.toml: web.tls_server_config",
            cert=Path("/etc/here/tls/server.crt"),
            key=Secret("-----BEGIN"),
            client_ca=Path("/ca.crt"),
            client_auth="RequireAndVerifyClientCert",
            client_allowed_sans=("prometheus",),
            min_version="TLS12",
            max_version="TLS12",
            ciphers=("ECDHE-RSA-AES256-GCM-SHA384",),
            prefer_server_ciphers=False,
        ),
        users=(("alice", Secret(HASH)),),
        rate_limit=RateLimit(1.0, 5),
    )


def test_secrets_are_never_shown() -> None:
    """Whoever prints a configuration, or logs it, does not print them."""
    settings = web(f'{TLS}key = "my key"\n[web.basic_auth_users]\nalice = "{HASH}"\n')
    for shown in (repr(settings), str(settings), f"{settings}", str([settings.users])):
        assert "<secret>" in shown
        assert HASH not in shown
    settings = web(f'{TLS.replace("key_file", "key")}[web.basic_auth_users]\nalice = "{HASH}"\n')
    assert settings.tls
    assert "key=<secret>" in repr(settings.tls)


@pytest.mark.parametrize("wrong", ["secret word", "$2y$31$" + "a" * 53, "$2y$10$" + "a" * 52, "$2x$10$" + "a" * 53])
def test_a_wrong_hash_is_not_shown_in_the_error(wrong: str) -> None:
    """It may be the password itself."""
    with pytest.raises(ConfigError, match=r"^/etc/here/p.toml: web.basic_auth_users.alice: ") as caught:
        web(f'[web.basic_auth_users]\nalice = "{wrong}"\n')
    assert wrong not in str(caught.value)


FAULTS = {
    "a user that cannot be sent": (f'[web.basic_auth_users]\n"a:b" = "{HASH}"\n', "'a:b': not a name that a client"),
    "no certificate": ("[web.tls_server_config]\n", "tls_server_config.cert_file: missing; name the file"),
    "no key": ("[web.tls_server_config]\ncert_file = 'c'\n", "tls_server_config.key_file: missing; name the file"),
    "an authority for nothing": (TLS + "client_ca_file = 'x'\n", "tls_server_config.client_auth_type: missing; "),
    "no authority": (
        TLS + "client_auth_type = 'VerifyClientCertIfGiven'\n",
        "tls_server_config.client_ca_file: missing",
    ),
    "no such type": (TLS + "client_auth_type = 'x'\n", "client_auth_type: 'x' is none of NoClientCert, Verify"),
    "what Python cannot do": (TLS + "client_auth_type = 'RequestClientCert'\n", "cannot do RequestClientCert"),
    "nor this": (TLS + "client_auth_type = 'RequireAnyClientCert'\n", "cannot do RequireAnyClientCert"),
    "nor its other name": (TLS + "client_auth_type = 'RequireClientCert'\n", "cannot do RequireClientCert"),
    "nor curves": (TLS + "curve_preferences = ['X25519']\n", "curve_preferences: Python's ssl cannot choose curves"),
    "names of nobody": (TLS + "client_allowed_sans = ['x']\n", "client_allowed_sans: needs client_auth_type"),
    "an old version": (TLS + "min_version = 'TLS10'\n", "min_version: TLS10 is not safe"),
    "no version": (TLS + "max_version = '1.3'\n", "max_version: '1.3' is neither TLS12 nor TLS13"),
    "no versions": (TLS + "min_version = 'TLS13'\nmax_version = 'TLS12'\n", "min_version: newer than max_version"),
    "no such cipher": (
        TLS + "cipher_suites = ['AES']\n",
        "cipher_suites[0]: unknown cipher suite 'AES'; those of TLS 1.2 are TLS_ECDHE",
    ),
    "suites of TLS 1.3 alone": (
        TLS + "cipher_suites = ['TLS_AES_128_GCM_SHA256']\n",
        "cipher_suites: these are all of TLS 1.3, which are always on; add one of TLS 1.2, or leave the list out",
    ),
    "an unknown key": (TLS + "cert_fil = 'x'\n", "tls_server_config.cert_fil: unknown key; did you mean cert_file?"),
    "headers": ("[web.http_server_config]\nhttp2 = true\n", "web.http_server_config: not supported"),
    "a host with a port": ("[web]\nhosts = ['x:1']\n", "web.hosts[0]: 'x:1' is not the name of a host"),
    "a relative socket": ("[web]\nlisten_addresses = ['unix:x']\n", "'unix:x' is not unix:/PATH with at most 107"),
    "a host with an empty part": ("[web]\nlisten_addresses = ['a..b:80']\n", "'a..b' is not the name of a host"),
    "a host with a long part": (f"[web]\nlisten_addresses = ['{64 * 'a'}:80']\n", "aa' is not the name of a host"),
    "a host with NUL": ('[web]\nlisten_addresses = ["a\\u0000b:80"]\n', r"'a\x00b' is not the name of a host"),
    "no burst": ("[web.rate_limit]\nburst = 0\n", "web.rate_limit.burst: 0 is out of range"),
}


@pytest.mark.parametrize(("text", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_names_the_key_and_the_remedy(text: str, words: str) -> None:
    """What cannot be in force is refused."""
    with pytest.raises(ConfigError) as caught:
        web(text)
    assert str(caught.value).startswith("/etc/here/p.toml: web.")
    assert words in str(caught.value)


def test_a_file_of_its_own(tmp_path: Path) -> None:
    """--web.config.file has the same tables, at the top; its paths are relative to its own folder."""
    path, web_file = tmp_path / "p.toml", tmp_path / "web" / "web.toml"
    web_file.parent.mkdir()
    path.write_text("[web]\nhosts = ['x']\n" + WORK, encoding="utf-8")
    web_file.write_text(f"{TLS.replace('web.', '')}[basic_auth_users]\nalice = '{HASH}'\n", encoding="utf-8")
    settings = config.load(path, web_file).web
    assert settings.tls
    assert (settings.tls.cert, settings.tls.where) == (web_file.parent / "c", f"{web_file}: tls_server_config")
    assert (settings.users, settings.hosts) == ((("alice", Secret(HASH)),), ("x",))
    web_file.write_text("", encoding="utf-8")
    assert config.load(path, web_file).web.tls is None


def test_two_files_that_say_who_is_let_in(tmp_path: Path) -> None:
    """Which of them is in force would be a guess. And there may be no third thing in the other file."""
    path, web_file = tmp_path / "p.toml", tmp_path / "web.toml"
    path.write_text(TLS + WORK, encoding="utf-8")
    web_file.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"web.tls_server_config: --web.config.file names .*web.toml for this"):
        config.load(path, web_file)
    path.write_text(WORK, encoding="utf-8")
    web_file.write_text("[scrape]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"web.toml: scrape: unknown key"):
        config.load(path, web_file)
    with pytest.raises(ConfigError, match=r"gone.toml: no such file; write one, or name yours with --web.config.file="):
        config.load(path, tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("one", "other", "excluded"),
    [
        (":1", "127.0.0.1:1", True),
        (":1", "[::1]:1", True),
        (":1", "localhost:1", True),
        ("0.0.0.0:1", "127.0.0.1:1", True),
        ("[::]:1", "[::1]:1", True),
        (":1", "[::]:1", True),
        (":1", "0.0.0.0:1", True),
        ("0.0.0.0:1", "[::]:1", False),
        ("0.0.0.0:1", "[::1]:1", False),
        ("0.0.0.0:1", "127.0.0.1:2", False),
        ("0.0.0.0:1", "six.example:1", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        (":0", "127.0.0.1:0", False),
        (":1", "unix:/run/x", False),
    ],
)
def test_an_address_that_includes_another_one_is_refused(one: str, other: str, *, excluded: bool) -> None:
    """The daemon could listen on each of them, and not on both. A name may have addresses of another kind."""
    for addresses in ([one, other], [other, one]):
        text = f"[web]\nlisten_addresses = {addresses}\n{WORK}"
        with pytest.raises(ConfigError, match="includes the other") if excluded else nullcontext():
            config.parse(text, FILE)
