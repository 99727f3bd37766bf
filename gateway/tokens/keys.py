"""The keys that verify the tokens of `--registration signed`, from the file that `--registration-keys` names.

Each key fixes the algorithms of the tokens that it verifies; a token chooses among the keys and never among
the algorithms of a key. So no secret is a public key that somebody knows, and there is no `none`.

PyJWT (with cryptography) reads keys and verifies signatures: it is the most used library for this, and does
nothing else. joserfc also has encryption and more serialisations, where most of its holes of 2026 lay. This
module is imported only if the setting is on.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from binascii import unhexlify
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import HMACAlgorithm, OKPAlgorithm

MAX_FILE: Final = 65_536
"""Bytes of the file. An RSA key of 4,096 bits has 800."""

MAX_KEYS: Final = 8
"""Keys of the file. A token that names none may be tried with each of its algorithm; a rotation needs two."""

MIN_SECRET: Final = 32
"""Bytes: RFC 7518 section 3.2."""

MAX_SECRET: Final = 1_024
"""Bytes: a longer file is most probably another one."""

MIN_RSA: Final = 2_048
"""Bits: RFC 7518 section 3.3."""

HMAC: Final = ("HS256",)
RSA: Final = ("RS256",)
ECDSA: Final = ("ES256",)
EDDSA: Final = ("EdDSA", "Ed25519")
"""RFC 9864 gives the algorithm of RFC 8037 the name of its curve."""

SECRET_HINT: Final = (
    f"a secret is one line of {MIN_SECRET} to {MAX_SECRET} printable ASCII characters without spaces and "
    "without < { [, as openssl rand -base64 32 writes it"
)

PUBLIC_KEY_HINT: Final = "write its public key, as openssl pkey -in private.pem -pubout does"

_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_BEGIN: Final = b"-----BEGIN"
_SECRET: Final = re.compile(rb"([!-;=-Z\\-z|-~]+)(?:\r?\n)?")  # an editor ends the line
_KINDS: Final = {
    "RSA": RSA,
    "EC P-256": ECDSA,
    "OKP Ed25519": EDDSA,
    "oct": HMAC,
}
"""Algorithms by the members `kty` and `crv` of a JWK."""


Version = tuple[int, ...]
"""What changes with a file; empty if there is none."""


class Key(NamedTuple):
    """One key."""

    kid: str | None
    """Its name. A key without one is tried whatever name a token gives."""
    algorithms: tuple[str, ...]
    """What `alg` may be in the header of its tokens."""
    material: Any
    """As PyJWT takes it."""


class KeySet:
    """The keys of one file."""

    def __init__(self, keys: list[Key]) -> None:
        """Raises ValueError if there are too many."""
        self.version: Version = ()
        """That of the file."""
        if len(keys) > MAX_KEYS:
            raise ValueError(f"the file may have {MAX_KEYS} keys, and has {len(keys)}: remove old ones")
        self.keys = tuple(keys)
        self.algorithms = frozenset(name for key in keys for name in key.algorithms)
        self._jws = jwt.PyJWS(algorithms=sorted(self.algorithms))
        if "Ed25519" in self.algorithms:
            self._learn_newer_name()

    def _learn_newer_name(self) -> None:
        try:
            self._jws.get_algorithm_by_name("Ed25519")
        except NotImplementedError:  # PyJWT 2.15 knows the older name only
            self._jws.register_algorithm("Ed25519", OKPAlgorithm())

    def candidates(self, algorithm: object, kid: object) -> list[Key]:
        """The keys that may have signed a token with this header."""
        return [
            key
            for key in self.keys
            if algorithm in key.algorithms and (kid is None or key.kid is None or key.kid == kid)
        ]

    def verified(self, token: str, key: Key) -> bytes | None:
        """The payload of `token` if it is one that `key` has signed."""
        try:
            payload = self._jws.decode(token, key.material, algorithms=key.algorithms)
        except jwt.PyJWTError:
            return None
        return payload if isinstance(payload, bytes) else None


def read_keys(path: str, before: KeySet | None = None) -> KeySet:
    """The keys in a file. Raises ValueError, whose message says what to write and never quotes the file.

    `before` are those that the file had. Public keys do not become a secret then: everybody may know the new
    content, if somebody has put a public file there in a form that is not recognised.
    """
    try:
        with Path(path).open("rb") as file:
            version = version_of(os.fstat(file.fileno()))
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise ValueError(f"the file may have {MAX_FILE} bytes")
    keys = parse_keys(data)
    if before is not None and not before.algorithms.issuperset(HMAC) and keys.algorithms.issuperset(HMAC):
        raise ValueError("the file had public keys and now has a secret: if it should, start the node again")
    keys.version = version
    return keys


def version_of(found: os.stat_result) -> Version:
    """The version of a file, from its status."""
    return found.st_mtime_ns, found.st_dev, found.st_ino, found.st_size


def parse_keys(data: bytes) -> KeySet:
    """The keys in the content of a file: PEM, a JWK, a JWKS or a secret. Raises ValueError as `read_keys`."""
    if not data.strip():
        raise ValueError("the file is empty")
    if data.lstrip()[:1] == b"{":
        return KeySet(_json_keys(data))
    if _BEGIN in data:
        return KeySet(_pem_keys(data))
    line = _SECRET.fullmatch(data)
    if line is None:
        raise _unread()
    return KeySet([_secret(None, line[1])])


def _unread() -> ValueError:
    return ValueError(
        "what the file has is in a form that is not read: write a public key as PEM or JWK, or a secret; "
        + SECRET_HINT
    )


def _pem_keys(data: bytes) -> list[Key]:
    blocks = list(_PEM.finditer(data))
    if len(blocks) != data.count(_BEGIN):
        raise ValueError("the file has the beginning of a PEM block without its end")
    keys = []
    for block in blocks:
        label = block[1].decode()
        if "PRIVATE" in label:
            raise ValueError(f"the file has a private key, which can sign: {PUBLIC_KEY_HINT}")
        if "PUBLIC" not in label:
            raise ValueError(f"the file has a PEM block {label}: write PUBLIC KEY")
        try:
            key = load_pem_public_key(block[0])
        except Exception:  # cryptography names no class for all that can be wrong with a key
            raise ValueError("a public key in the file cannot be read") from None
        keys.append(_public_key(None, key))
    return keys


def _public_key(kid: str | None, key: object) -> Key:
    if isinstance(key, RSAPublicKey):
        if key.key_size < MIN_RSA:
            raise ValueError(f"an RSA key has {key.key_size} bits: it must have {MIN_RSA} or more")
        return Key(kid, RSA, key)
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return Key(kid, ECDSA, key)
    if isinstance(key, Ed25519PublicKey):
        return Key(kid, EDDSA, key)
    raise ValueError("a key in the file is none for RS256, ES256 (P-256) or EdDSA (Ed25519)")


def _secret(kid: str | None, secret: bytes) -> Key:
    if not MIN_SECRET <= len(secret) <= MAX_SECRET:
        raise ValueError(
            f"a secret for HS256 has {len(secret)} bytes: it must have {MIN_SECRET} to {MAX_SECRET}, as "
            "openssl rand -base64 32 writes them"
        )
    if _is_key_file(secret):  # everybody may know it
        raise _unread()
    try:
        return Key(kid, HMAC, HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret))
    except jwt.InvalidKeyError:  # PyJWT knows forms too
        raise _unread() from None


def _is_key_file(data: bytes) -> bool:
    """Whether programs write keys or certificates so, perhaps as base64 or hex. Random bytes never are."""
    if len(data) < MIN_SECRET:
        return False
    text = b"".join(data.replace(b"\0", b"").split())  # UTF-16 of ASCII; lines
    return (
        _BEGIN in text
        or data[4:].startswith((b"ssh-", b"ecdsa-"))  # RFC 4253 section 6.6
        or _is_der(data)
        or _is_point(data)
        or _is_json(text)
        or any(map(_is_key_file, _decoded(text)))
    )


def _is_der(data: bytes) -> bool:
    """Whether it is a SEQUENCE that begins with a SEQUENCE or an INTEGER, as keys and certificates are."""
    size = data[1]
    begin = 2 if size < 0x80 else 2 + (size & 0x7F)  # X.690 section 8.1.3: the long form
    length = size if begin == 2 else int.from_bytes(data[2:begin], "big")
    inner = data[begin : begin + 1]
    return data[0] == 0x30 and begin + length == len(data) and inner in (b"\x30", b"\x02")


def _is_point(data: bytes) -> bool:
    """Whether it is a public key for ES256, as JavaScript's Web Crypto exports it."""
    if len(data) != 65:
        return False
    try:
        EllipticCurvePublicKey.from_encoded_point(SECP256R1(), data)
    except ValueError:
        return False
    return True


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(orjson.loads(text), (dict, list))
    except ValueError:
        return False


def _decoded(text: bytes) -> Iterator[bytes]:
    """What `text` may encode. Shorter than `text`."""
    with suppress(ValueError):
        yield unhexlify(text)
    digits = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    with suppress(ValueError):
        yield b64decode(digits + b"=" * (-len(digits) % 4), validate=True)


def _json_keys(data: bytes) -> list[Key]:
    try:
        body = orjson.loads(data)
    except ValueError:
        raise ValueError("the file begins with { and is no JSON: write a JWK or a JWKS") from None
    if "keys" not in body:
        return [_jwk(body)]
    if not isinstance(body["keys"], list):
        raise ValueError("the member keys of a JWKS must be an array")  # noqa: TRY004 - as everything here
    for jwk in body["keys"]:
        _check_public(jwk)
    # RFC 7517 section 5: a set may have keys for others.
    keys = [_jwk(jwk) for jwk in body["keys"] if _is_ours(jwk)]
    if not keys:
        raise ValueError("the file has no key for RS256, ES256 (P-256), EdDSA (Ed25519) or HS256")
    return keys


def _check_public(jwk: object) -> None:
    if isinstance(jwk, dict) and "d" in jwk:  # RFC 7518 sections 6.2.2 and 6.3.2, RFC 8037 section 2
        raise ValueError("the file has a private key, which can sign: remove its member d and those after it")


def _algorithms_of(jwk: dict[str, Any]) -> tuple[str, ...]:
    """The algorithms of a JWK; none if its tokens cannot be verified."""
    kty = jwk.get("kty")
    kind = f"{kty} {jwk.get('crv')}" if kty in ("EC", "OKP") else str(kty)
    algorithms = _KINDS.get(kind, ())
    return algorithms if jwk.get("alg", *algorithms[:1]) in algorithms else ()


def _is_ours(jwk: object) -> bool:
    """Whether a JWK is one that verifies signatures of a kind that the gateway knows."""
    if not isinstance(jwk, dict):
        return False
    operations = jwk.get("key_ops", ["verify"])  # RFC 7517 section 4.3
    return (
        jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and bool(_algorithms_of(jwk))
    )


def _jwk(jwk: dict[str, Any]) -> Key:
    _check_public(jwk)
    if not _is_ours(jwk):
        raise ValueError("the JWK is none that verifies RS256, ES256 (P-256), EdDSA (Ed25519) or HS256")
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("the member kid of a JWK must be a string")
    algorithms = _algorithms_of(jwk)
    try:
        material = jwt.PyJWK.from_dict(jwk, algorithms[0]).key
    except Exception:  # its text may quote the key
        raise ValueError(
            f"a JWK for {algorithms[0]} in the file cannot be read: is a member missing?"
        ) from None
    return _secret(kid, material) if algorithms is HMAC else _public_key(kid, material)
