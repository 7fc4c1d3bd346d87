"""Certificates of an authority that the tests make up."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Certificates:
    """PEM files of an authority, a server and a client."""

    folder: Path

    @property
    def server(self) -> dict[str, Path]:
        """As the node's configuration names them."""
        names = {"certificate": "server.pem", "key": "server.key", "authorities": "ca.pem"}
        return {key: self.folder / name for key, name in names.items()}

    def anonymous(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / "ca.pem")

    def client(self, trust: Certificates | None = None) -> ssl.SSLContext:
        context = (trust or self).anonymous()
        context.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
        return context


def make_certificates(folder: Path) -> Certificates:
    """Write them."""
    folder.mkdir()
    authority = ec.generate_private_key(ec.SECP256R1())
    _write(folder, "ca", authority, "authority", authority, "authority", True)
    for name in ("server", "client"):
        own = ec.generate_private_key(ec.SECP256R1())
        _write(folder, name, own, "localhost", authority, "authority", False)
    return Certificates(folder)


def _write(folder: Path, file: str, own, name: str, signer, issuer: str, ca: bool) -> None:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    build = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    made = build.sign(signer, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / f"{file}.pem").write_bytes(made.public_bytes(pem))
    plain = serialization.NoEncryption()
    key = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    (folder / f"{file}.key").write_bytes(key)
