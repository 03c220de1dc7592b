"""TLS to the database: with `ssl_ca` nothing is said to a server for which nobody vouches."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from devstack import LocalStack, StackError, StackSettings
from rmq_txn import Database, schema
from rmq_txn.database.session import Session
from rmq_txn.errors import DatabaseUnavailableError

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]


class Authority:
    """A certificate authority of one's own, which vouches for servers on 127.0.0.1."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        own = self._certificate(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))
        self.file = self._write(f"{name}.pem", own.public_bytes(serialization.Encoding.PEM))

    def vouch(self) -> tuple[Path, Path]:
        """Return the certificate and the key of a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "database")])
        shown = self._certificate(name, key, x509.BasicConstraints(ca=False, path_length=None))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return (
            self._write("server.pem", shown.public_bytes(serialization.Encoding.PEM)),
            self._write("server-key.pem", private),
        )

    def _certificate(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, constraints: x509.BasicConstraints
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        hosts = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(constraints, critical=True)
            .add_extension(hosts, critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the authority that vouches for the server."""
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@contextmanager
def server(request: pytest.FixtureRequest, folder: Path, options: dict[str, str]) -> Iterator[str]:
    """Run a database server alone; yield the URL of a database with our tables."""
    stack = LocalStack(StackSettings.for_tests(folder, database_options=options))
    try:
        stack.database.start()
    except StackError as error:
        if request.config.getoption("--require-servers"):
            raise
        pytest.skip(f"the database can't be started here: {error}")
    try:
        url = stack.database_url("tls")
        database = Database.mysql(url)
        schema.apply(database)
        database.close()
        yield url
    finally:
        stack.database.end()


@pytest.fixture(scope="module")
def url(
    authority: Authority, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Return the URL of a database on a server that offers TLS."""
    certificate, key = authority.vouch()
    options = {
        "tls-version": "TLSv1.2,TLSv1.3",
        "ssl-ca": str(authority.file),
        "ssl-cert": str(certificate),
        "ssl-key": str(key),
    }
    with server(request, tmp_path_factory.mktemp("stack"), options) as url:
        yield url


def cipher(session: Session) -> str:
    """Return the cipher of a connection, as the server sees it; empty: plain text."""
    try:
        session.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        ((_, value),) = session.cursor.fetchall()
    finally:
        session.rollback()
    return str(value)


def test_with_the_right_authority_everything_is_encrypted(
    url: str, authority: Authority, open_database: Callable[..., Database]
) -> None:
    """Transactions as well as check-backs, which have connections of their own."""
    database = open_database(f"{url}?ssl_ca={authority.file}")
    assert cipher(database.begin("transaction"))
    with database.check_session("check-back") as session:
        assert cipher(session)
    assert schema.check(database).database_id


def test_a_server_of_another_authority_is_not_spoken_to(
    url: str, tmp_path: Path, open_database: Callable[..., Database]
) -> None:
    """No password is sent, and the error says what is wrong: not that the server is silent."""
    other = Authority(tmp_path, "theirs")
    database = open_database(f"{url}?ssl_ca={other.file}")
    with (
        pytest.raises(DatabaseUnavailableError, match=r"failed the TLS handshake.*certificate verify failed"),
        database.transaction(),
    ):
        pytest.fail("a transaction on a server that nobody vouches for")


def test_the_name_of_the_host_counts_when_asked_for(
    url: str, authority: Authority, open_database: Callable[..., Database]
) -> None:
    """An authority that vouches for many servers vouches for the neighbour's, too."""
    elsewhere = url.replace("127.0.0.1", "localhost")  # the certificate is made out to the address
    assert cipher(open_database(f"{url}?ssl_ca={authority.file}&ssl_verify_identity=true").begin("named"))
    assert cipher(open_database(f"{elsewhere}?ssl_ca={authority.file}").begin("not asked"))
    database = open_database(f"{elsewhere}?ssl_ca={authority.file}&ssl_verify_identity=true")
    with (
        pytest.raises(DatabaseUnavailableError, match=r"failed the TLS handshake.*Hostname mismatch"),
        database.transaction(),
    ):
        pytest.fail("a transaction on a server with another's certificate")


def test_a_server_without_tls_is_not_spoken_to_in_plain_text(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    authority: Authority,
    open_database: Callable[..., Database],
) -> None:
    """Whoever stands in the line can take the offer of TLS out of the server's greeting."""
    with server(request, tmp_path, {}) as plain:
        assert cipher(open_database(plain).begin("transaction")) == ""
        database = open_database(f"{plain}?ssl_ca={authority.file}")
        with (
            pytest.raises(DatabaseUnavailableError, match=r"offers no TLS, which ssl_ca demands"),
            database.transaction(),
        ):
            pytest.fail("a transaction in plain text")
