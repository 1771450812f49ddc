"""Sign the hash of an archive's newest manifest with an Ed25519 key, and check signatures with the public key."""

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
    """The file does not contain a key of the expected kind."""


class Signature(msgspec.Struct, frozen=True):
    """The signature of a manifest, as it is stored.

    ``archive`` is the id of the archive, ``number`` the number of the manifest, and ``manifest`` the hash of the
    manifest in hexadecimal. ``key`` is the public key that checks the signature. ``key`` and ``signature`` are base64.
    """

    archive: str
    number: int
    manifest: str
    key: str
    signature: str


def _signed_bytes(archive: str, number: int, manifest_hash: str) -> bytes:
    return f"everyrun archive 1\n{archive}\n{number}\n{manifest_hash}\n".encode()


def _in_base64(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def sign(key: Ed25519PrivateKey, archive: str, number: int, manifest_hash: str) -> Signature:
    """Sign the hash of a manifest, together with the manifest's number and the id of the archive."""
    signature = base64.b64encode(key.sign(_signed_bytes(archive, number, manifest_hash))).decode()
    return Signature(archive, number, manifest_hash, _in_base64(key.public_key()), signature)


def problem(signature: Signature, key: Ed25519PublicKey, archive: str, number: int, manifest_hash: str) -> str | None:
    """Return what is wrong with a signature; None if the key confirms that it is a signature of this manifest."""
    if signature.key != _in_base64(key):
        return "it was made with another key"
    try:
        key.verify(base64.b64decode(signature.signature, validate=True), _signed_bytes(archive, number, manifest_hash))
    except (InvalidSignature, ValueError):
        return "it is not a signature of this manifest"
    return None


def make_keys(path: Path) -> Path:
    """Write a new private key to ``path``, readable only by the owner, and its public key to ``path``.pub.

    Returns the path of the public key. If one of the two files exists already, raises FileExistsError and writes
    nothing.
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
    """Read a private key that ``make_keys`` wrote. Raises KeyFileError or OSError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{path}: not an unencrypted private key in PEM format ({error})") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: not an Ed25519 key; make one with: everyrun archive keygen FILE")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key that ``make_keys`` wrote. Raises KeyFileError or OSError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{path}: not a public key in PEM format ({error})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: not an Ed25519 key; make one with: everyrun archive keygen FILE")
    return key
