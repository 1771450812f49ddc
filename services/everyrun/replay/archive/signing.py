"""Ed25519 over the newest manifest's hash: who holds the public key can tell that the archive is the signer's."""

from __future__ import annotations

import base64
import errno
import os
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from everyrun.atomic_file import write_bytes
from everyrun.errors import Invalid


class KeyFileError(Invalid):
    """The file holds no such key; the text says what it should hold."""


class Signature(msgspec.Struct, frozen=True):
    """What is stored beside a manifest. ``key`` is the public key and ``signature`` the signature, base64."""

    archive: str
    number: int
    manifest: str
    key: str
    signature: str


def _statement(archive: str, number: int, manifest: str) -> bytes:
    return f"everyrun archive 1\n{archive}\n{number}\n{manifest}\n".encode()


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def sign(key: Ed25519PrivateKey, archive: str, number: int, manifest: str) -> Signature:
    """Sign the hash of a manifest."""
    made = key.sign(_statement(archive, number, manifest))
    public = base64.b64encode(_raw(key.public_key())).decode()
    return Signature(archive, number, manifest, public, base64.b64encode(made).decode())


def problem(signature: Signature, key: Ed25519PublicKey, archive: str, number: int, manifest: str) -> str | None:
    """None where the signature is this key's, over this manifest; else what is wrong with it."""
    if signature.key != base64.b64encode(_raw(key)).decode():
        return "it was made with another key"
    try:
        key.verify(base64.b64decode(signature.signature, validate=True), _statement(archive, number, manifest))
    except (InvalidSignature, ValueError):
        return "it is not a signature of this manifest"
    return None


def make_keys(path: Path) -> Path:
    """Write a new private key to ``path``, for its owner alone, and the public key beside it; the latter's path.

    Raises FileExistsError rather than write over a key; neither file is left behind then.
    """
    key = Ed25519PrivateKey.generate()
    public = path.with_name(path.name + ".pub")
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    if public.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(public))
    write_bytes(path, private_pem, mode=0o600, new=True)
    try:
        write_bytes(public, public_pem, mode=0o644, new=True)
    except BaseException:
        path.unlink()
        raise
    return public


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key as ``make_keys`` writes it. Raises KeyFileError or OSError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{path}: not a private key in PEM without a password ({error})") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: not an Ed25519 key; make one with: everyrun archive keygen FILE")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key as ``make_keys`` writes it. Raises KeyFileError or OSError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{path}: not a public key in PEM ({error})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: not an Ed25519 key; make one with: everyrun archive keygen FILE")
    return key
