"""Signatures of files in the format of minisign (https://jedisct1.github.io/minisign), by Ed25519.

A file that is signed here is verified by ``minisign -V``, and the reverse: the signature is over the
BLAKE2b-512 of the file, a second one binds the comment that is to be believed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normscan.errors import ArgumentError, OutputError
from normscan.io.atomic import atomic_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ENDING = ".minisig"
_KEY, _HASHED, _PLAIN, _CHECKSUM = b"Ed", b"ED", b"\0\0", b"B2"
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "
_LARGEST = 10_000  # bytes of a key or a signature


@dataclass(frozen=True)
class PublicKey:
    """Who may have signed.

    Attributes:
        id: 8 bytes that tell keys apart.
        key: 32 bytes.
        path: where it was read.
    """

    id: bytes
    key: bytes
    path: Path

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """Read the file that ``minisign -G`` or ``make_key`` wrote.

        Raises:
            ArgumentError: no such file, or no public key.
        """
        data = _decoded(_lines(path, 2)[1], path)
        if len(data) != 42 or data[:2] != _KEY:
            raise ArgumentError(f"{path}: is no public key. Name the .pub file beside the key.")
        return cls(data[2:10], data[10:], path)


def make_key(path: Path) -> None:
    """Write a new key without a password, and its public half as ``PATH.pub`` beside it.

    Raises:
        OutputError: one of the two is there.
        ArgumentError: cryptography isn't installed.
    """
    private = _ed25519().generate()
    public, id = private.public_key().public_bytes_raw(), secrets.token_bytes(8)
    beside = public_of(path)
    for each in (path, beside):
        if each.exists():
            raise OutputError(f"{each}: is there already. A key is made once; choose another name.")
    inner = id + private.private_bytes_raw() + public
    checksum = hashlib.blake2b(_KEY + inner, digest_size=32).digest()
    written = _KEY + _PLAIN + _CHECKSUM + bytes(48) + inner + checksum
    number = id[::-1].hex().upper()
    text = f"{_UNTRUSTED}minisign secret key {number}\n{base64.b64encode(written).decode()}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    told = base64.b64encode(_KEY + id + public).decode()
    beside.write_text(f"{_UNTRUSTED}minisign public key {number}\n{told}\n", encoding="utf-8")


def public_of(path: Path) -> Path:
    """Return where the public half of a key lies."""
    return path.with_name(f"{path.name}.pub")


def sign(file: Path, key: Path, comment: str) -> Path:
    """Write the signature of a file beside it.

    Args:
        file: what to sign.
        key: secret key without a password.
        comment: one line that is signed, too.

    Raises:
        ArgumentError: no such key, one with a password, or cryptography isn't installed.
    """
    id, private = _secret(key)
    signature = private.sign(_digest(file))
    lines = [
        f"{_UNTRUSTED}signature by normscan, key {id[::-1].hex().upper()}",
        base64.b64encode(_HASHED + id + signature).decode(),
        f"{_TRUSTED}{comment}",
        base64.b64encode(private.sign(signature + comment.encode())).decode(),
    ]
    beside = file.with_name(f"{file.name}{ENDING}")
    with atomic_path(beside) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return beside


def verify(file: Path, keys: list[PublicKey]) -> str:
    """Return the trusted comment of a file's signature by any of the keys.

    Raises:
        OutputError: no signature, one by another key, or of another content.
        ArgumentError: cryptography isn't installed.
    """
    load = _ed25519().public
    beside = file.with_name(f"{file.name}{ENDING}")
    if not beside.is_file():
        raise OutputError(
            f"{file}: isn't signed ({beside.name} is missing). Sign it: normscan sign."
        )
    _, first, said, second = _lines(beside, 4)
    data, bound = _decoded(first, beside), _decoded(second, beside)
    if len(data) != 74 or data[:2] != _HASHED or len(bound) != 64 or not said.startswith(_TRUSTED):
        raise OutputError(f"{beside}: is no signature of minisign's hashed form. Sign again.")
    comment = said.removeprefix(_TRUSTED)
    fitting = [key for key in keys if key.id == data[2:10]]
    if not fitting:
        raise OutputError(
            f"{file}: is signed by another key ({data[9:1:-1].hex().upper()}) than "
            f"{', '.join(str(k.path) for k in keys) or 'any that is trusted'}."
        )
    from cryptography.exceptions import InvalidSignature

    for key in fitting:
        with contextlib.suppress(InvalidSignature):
            public = load(key.key)
            public.verify(data[10:], _digest(file))
            public.verify(bound, data[10:] + comment.encode())
            return comment
    raise OutputError(f"{file}: isn't what was signed. Take the files of who signed them.")


class _Ed25519:
    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric import ed25519

        self.generate = ed25519.Ed25519PrivateKey.generate
        self.private = ed25519.Ed25519PrivateKey.from_private_bytes
        self.public = ed25519.Ed25519PublicKey.from_public_bytes


def _ed25519() -> _Ed25519:
    try:
        return _Ed25519()
    except ImportError:
        raise ArgumentError(
            "signatures need cryptography, which isn't installed: pip install 'normscan[sign]'."
        ) from None


def _secret(path: Path) -> tuple[bytes, Ed25519PrivateKey]:
    data = _decoded(_lines(path, 2)[1], path)
    if len(data) != 158 or data[:2] != _KEY or data[4:6] != _CHECKSUM:
        raise ArgumentError(f"{path}: is no secret key of minisign's. Make one: --make-key.")
    if data[2:4] != _PLAIN:
        raise ArgumentError(
            f"{path}: the key has a password, which isn't asked for here. Sign the list of files "
            "with `minisign -S`, or make a key without one."
        )
    inner, checksum = data[54:126], data[126:]
    if checksum not in (hashlib.blake2b(_KEY + inner, digest_size=32).digest(), bytes(32)):
        raise ArgumentError(f"{path}: is damaged: its checksum doesn't fit.")
    return inner[:8], _ed25519().private(inner[8:40])


def _digest(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, hashlib.blake2b).digest()


def _lines(path: Path, count: int) -> list[str]:
    try:
        with path.open("rb") as file:
            lines = file.read(_LARGEST).decode().splitlines()
    except OSError as error:
        raise ArgumentError(f"{path}: can't be read ({error.strerror}). Name a key.") from None
    except UnicodeDecodeError:
        lines = []
    if len(lines) < count or not lines[0].startswith(_UNTRUSTED):
        raise ArgumentError(f"{path}: is no key or signature of minisign's.")
    return lines[:count]


def _decoded(line: str, path: Path) -> bytes:
    try:
        return base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise ArgumentError(f"{path}: is no key or signature of minisign's.") from None
