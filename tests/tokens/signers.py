"""Backends that sign tokens: a key of each kind, and what a node needs to verify what it signs."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

SECRET = b"a-secret-that-only-the-backend-and-the-nodes-have"
ID = "12345678"
NOW = 1_800_000_000
SOON = NOW + 600


class Signer(NamedTuple):
    """One key of a backend."""

    algorithm: str
    private: Any

    def token(self, *, headers: dict[str, Any] | None = None, **claims: object) -> str:
        """A token for ID that expires SOON, with these claims in place of those. None leaves one out."""
        body = {"sub": ID, "exp": SOON, **claims}
        kept = {name: value for name, value in body.items() if value is not None}
        return sign(self.algorithm, self.private, kept, headers)

    @property
    def file(self) -> bytes:
        """What a node's file has: PEM, or the secret."""
        if isinstance(self.private, bytes):
            return self.private
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        pem: bytes = self.private.public_key().public_bytes(encoding, form)
        return pem

    @property
    def private_file(self) -> bytes:
        """What no node's file should have."""
        pem: bytes = self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return pem

    def jwk(self, *, private: bool = False, **members: object) -> dict[str, Any]:
        """The key as a JWK, with further members."""
        key = self.private if private or isinstance(self.private, bytes) else self.private.public_key()
        known = jwt.get_algorithm_by_name(self.algorithm).to_jwk(key, as_dict=True)
        return {**{name: value for name, value in known.items() if name != "key_ops"}, **members}


def sign(algorithm: str, key: Any, claims: dict[str, Any], headers: dict[str, Any] | None = None) -> str:
    return jwt.encode(claims, key, algorithm, headers=headers)


@cache
def signer(algorithm: str, number: int = 0) -> Signer:
    """A key for `algorithm`; `number` tells several apart."""
    if algorithm == "HS256":
        return Signer(algorithm, SECRET + b"!" * number)
    if algorithm == "RS256":
        return Signer(algorithm, rsa.generate_private_key(65_537, 2_048))
    if algorithm == "ES256":
        return Signer(algorithm, ec.generate_private_key(ec.SECP256R1()))
    assert algorithm == "EdDSA"
    return Signer(algorithm, ed25519.Ed25519PrivateKey.generate())


ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")


def part(value: object) -> str:
    """A value, or bytes, as a part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()
