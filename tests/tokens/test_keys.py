"""Which files have keys, what each key verifies, and what is said of the others."""

from __future__ import annotations

import datetime
import json
from base64 import b64decode, b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import OKPAlgorithm, get_default_algorithms

from gateway.tokens.keys import MAX_FILE, MAX_KEYS, MAX_SECRET, MIN_SECRET, parse_keys, read_keys

from .signers import ALGORITHMS, SECRET, Signer, jwks, signer

NAMES = {"HS256": ("HS256",), "RS256": ("RS256",), "ES256": ("ES256",), "EdDSA": ("EdDSA", "Ed25519")}


def pem(private: Any) -> bytes:
    return Signer("", private).file


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_alone_fixes_the_algorithms_of_its_tokens(algorithm: str) -> None:
    own = signer(algorithm)
    for data in (own.file, json.dumps(own.jwk(kid="k")).encode(), jwks(own.jwk(kid="k"))):
        keys = parse_keys(data)
        assert [key.algorithms for key in keys.keys] == [NAMES[algorithm]]
        assert keys.algorithms == set(NAMES[algorithm])
        payload = keys.verified(own.token(), keys.keys[0])
        assert payload is not None
        assert json.loads(payload)["sub"] == "12345678"
    assert [key.kid for key in parse_keys(jwks(own.jwk(kid="k"))).keys] == ["k"]
    assert [key.kid for key in parse_keys(own.file).keys] == [None]


def test_several_pem_blocks_are_several_keys() -> None:
    """Text between them is for people, as openssl writes it."""
    data = b"old:\n" + signer("RS256").file + b"new:\n" + signer("EdDSA").file
    assert [key.algorithms[0] for key in parse_keys(data).keys] == ["RS256", "EdDSA"]


def test_a_key_in_the_older_form_of_rsa_is_read() -> None:
    private: rsa.RSAPrivateKey = signer("RS256").private
    old = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    assert old.startswith(b"-----BEGIN RSA PUBLIC KEY-----")
    assert [key.algorithms for key in parse_keys(old).keys] == [("RS256",)]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_secret_is_the_line_without_its_end(end: bytes) -> None:
    (key,) = parse_keys(SECRET + end).keys
    assert key.material == SECRET


@pytest.mark.parametrize(
    "secret",
    [
        b64encode(bytes(range(32))),
        b64encode(b"\xfb\xff" * 20),
        urlsafe_b64encode(b"\xfb\xff" * 20),
        bytes(range(48)).hex().encode(),
        b"!" * MIN_SECRET,
        b"~" * MAX_SECRET,
        b64encode(b"\x30\x1e" + b"\x05" * 30),  # chance, and no key
        b64encode(b"\x04" * 65),
        b64encode(bytes(24)),
        b"A" * 45,  # no base64 has this length
    ],
)
def test_a_secret_is_the_text_as_it_is(secret: bytes) -> None:
    (key,) = parse_keys(secret + b"\n").keys
    assert key.material == secret


def test_a_secret_in_a_jwk_may_have_any_bytes() -> None:
    secret = bytes(range(224, 256)) + b" <{["
    k = urlsafe_b64encode(secret).decode().rstrip("=")
    (key,) = parse_keys(json.dumps({"kty": "oct", "k": k}).encode()).keys
    assert key.material == secret


def test_a_set_may_have_keys_for_others() -> None:
    """RFC 7517 section 5: an identity provider publishes all its keys in one set."""
    own = signer("ES256").jwk(kid="ours")
    others: list[Any] = [
        signer("RS256").jwk(use="enc"),
        signer("RS256").jwk(alg="RS512"),
        signer("RS256").jwk(alg=["RS256"]),
        signer("ES256").jwk(key_ops=["deriveKey"]),
        signer("ES256").jwk(key_ops="verify"),
        {**own, "crv": "P-384"},
        {**own, "crv": ["P-256"]},
        {"kty": "quantum"},
        {"kty": ["RSA"]},
        {},
        "no object",
    ]
    keys = parse_keys(jwks(*others[:5], own, *others[5:]))
    assert [key.kid for key in keys.keys] == ["ours"]
    with pytest.raises(ValueError, match="no key for RS256, ES256"):
        parse_keys(jwks(*others))


def test_a_key_may_say_for_what_it_is() -> None:
    for members in ({"use": "sig"}, {"alg": "EdDSA"}, {"alg": "Ed25519"}, {"key_ops": ["verify"]}):
        assert parse_keys(json.dumps(signer("EdDSA").jwk(**members)).encode()).algorithms


def test_a_key_is_for_a_header_with_its_algorithm_and_its_name() -> None:
    keys = parse_keys(
        jwks(
            signer("ES256").jwk(kid="a"),
            signer("ES256", 1).jwk(kid="b"),
            signer("ES256", 2).jwk(),
            signer("HS256").jwk(kid="a"),
        )
    )
    first, second, unnamed, secret = keys.keys
    assert keys.candidates("ES256", "a") == [first, unnamed]
    assert keys.candidates("ES256", "b") == [second, unnamed]
    assert keys.candidates("ES256", "c") == [unnamed]
    assert keys.candidates("ES256", None) == [first, second, unnamed]
    assert keys.candidates("HS256", "a") == [secret]
    assert keys.candidates("HS256", "b") == []
    assert keys.candidates("RS256", None) == []


def test_a_token_is_not_one_of_another_key() -> None:
    keys = parse_keys(jwks(signer("ES256").jwk(), signer("ES256", 1).jwk()))
    token = signer("ES256", 1).token()
    assert [keys.verified(token, key) is not None for key in keys.keys] == [False, True]
    assert keys.verified("x.y", keys.keys[0]) is None


# What is no key


def refused(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        parse_keys(data)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_private_key_is_refused(algorithm: str) -> None:
    own = signer(algorithm)
    assert "private key" in refused(own.private_file)
    assert "openssl pkey" in refused(own.file + own.private_file)
    assert "private key" in refused(json.dumps(own.jwk(private=True)).encode())
    assert "private key" in refused(jwks(signer("HS256").jwk(), own.jwk(private=True, use="enc")))


def test_a_small_rsa_key_is_refused() -> None:
    small = rsa.generate_private_key(65_537, 1_024)
    assert refused(pem(small)) == "an RSA key has 1024 bits: it must have 2048 or more"
    jwk = Signer("RS256", small).jwk()
    assert "1024 bits" in refused(json.dumps(jwk).encode())


@pytest.mark.parametrize(
    "private", [ec.generate_private_key(ec.SECP384R1()), ed448.Ed448PrivateKey.generate()]
)
def test_a_key_for_other_algorithms_is_refused(private: Any) -> None:
    assert refused(pem(private)) == "a key in the file is none for RS256, ES256 (P-256) or EdDSA (Ed25519)"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the file is empty"),
        (b" \r\n", "the file is empty"),
        (b"x" * (MIN_SECRET - 1) + b"\n", "31 bytes: it must have 32 to 1024"),
        (b"x" * (MAX_SECRET + 1), "1025 bytes"),
        (b"{", "begins with { and is no JSON"),
        (b'{"keys":{}}', "must be an array"),
        (b'{"keys":[]}', "no key for"),
        (b'{"kty":"RSA"}', "cannot be read: is a member missing?"),
        (b'{"kty":"oct","k":"c2hvcnQ"}', "5 bytes"),
        (b'{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}', "a JWK for ES256 in the file cannot be read"),
        (b'{"kty":"EC","crv":"P-384"}', "the JWK is none that verifies"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "a PEM block CERTIFICATE: write PUBLIC KEY",
        ),
        (
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "a public key in the file cannot be read",
        ),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n", "without its end"),
        (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ" + b"A" * 40, "in a form that is not read"),
    ],
)
def test_the_error_says_what_is_wrong(data: bytes, expected: str) -> None:
    assert expected in refused(data)


PKCS8, SPKI = serialization.PrivateFormat.PKCS8, serialization.PublicFormat.SubjectPublicKeyInfo


def key_files(algorithm: str) -> dict[str, bytes]:
    """A key in forms that programs write, none of which is a secret."""
    private = signer(algorithm).private
    public = private.public_key()
    der, plain = serialization.Encoding.DER, serialization.NoEncryption()
    locked = serialization.BestAvailableEncryption(b"password")
    files = {
        "public": public.public_bytes(der, SPKI),
        "private": private.private_bytes(der, PKCS8, plain),
        "private, older": private.private_bytes(der, serialization.PrivateFormat.TraditionalOpenSSL, plain)
        if algorithm != "EdDSA"
        else b"",
        "private, encrypted": private.private_bytes(der, PKCS8, locked),
        "certificate": certificate(private),
        "OpenSSH": b64decode(
            public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).split()[1]
        ),
        "PEM": signer(algorithm).file,
        "PEM, private": signer(algorithm).private_file,
        "JWK": json.dumps(signer(algorithm).jwk()).encode(),
    }
    if algorithm == "RS256":
        files["public, older"] = public.public_bytes(der, serialization.PublicFormat.PKCS1)
    if algorithm == "ES256":
        point = serialization.PublicFormat.UncompressedPoint
        files["point"] = public.public_bytes(serialization.Encoding.X962, point)
    return {name: data for name, data in files.items() if data}


def certificate(private: Any) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "backend")])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    made = x509.CertificateBuilder(name, name, private.public_key(), 1, day, day.replace(year=2027))
    hashed = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return made.sign(private, hashed).public_bytes(serialization.Encoding.DER)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "bytes": bytes,
    "base64": b64encode,
    "base64, line end": lambda data: b64encode(data) + b"\n",
    "base64, lines": encodebytes,
    "base64url": urlsafe_b64encode,
    "base64url, no padding": lambda data: urlsafe_b64encode(data).rstrip(b"="),
    "base64 twice": lambda data: b64encode(b64encode(data)),
    "hex": lambda data: data.hex().encode(),
    "HEX": lambda data: data.hex().upper().encode(),
    "UTF-16": lambda data: data.decode("latin-1").encode("utf-16"),
    "k of a JWK": lambda data: json.dumps(
        {"kty": "oct", "k": urlsafe_b64encode(data).decode().rstrip("=")}
    ).encode(),
    "base64 in k of a JWK": lambda data: json.dumps(
        {"kty": "oct", "k": urlsafe_b64encode(b64encode(data)).decode().rstrip("=")}
    ).encode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_no_form_of_a_key_becomes_a_secret(algorithm: str, form: str) -> None:
    """Everybody may know it, and could sign with it."""
    for name, data in key_files(algorithm).items():
        if form == "bytes" and name in ("PEM", "PEM, private", "JWK"):
            continue  # these are read
        content = FORMS[form](data)
        text = refused(content)
        assert "openssl rand -base64 32" in text, name
        assert len(content) > MAX_SECRET or "in a form that is not read" in text or "bytes: it" in text, name


PAGE = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<hr>nginx\r\n</body></html>\r\n"


@pytest.mark.parametrize(
    "data",
    [
        PAGE,
        b"<html><head><title>502</title></head><body></body></html>",
        b"[" + b"1," * 20 + b"1]",
        b"keys={" + b"a" * 40 + b"}",
        b"x" * 40 + b" ",
        b" " + b"x" * 40,
        b"x" * 40 + b"\n\n",
        b"x" * 40 + b"\ny",
        b"x" * 40 + b"\x7f",
        b"\xef\xbb\xbf" + b"x" * 40,
        "ü".encode() * 20,
        bytes(range(128, 160)),
        b"\0" * 32,
    ],
)
def test_what_is_no_line_of_plain_characters_is_no_secret(data: bytes) -> None:
    text = refused(data)
    assert "in a form that is not read" in text
    assert "one line of 32 to 1024 printable ASCII characters" in text
    assert "openssl rand -base64 32" in text


def test_what_the_library_takes_for_a_key_is_no_secret() -> None:
    k = urlsafe_b64encode(b"ssh-ed25519 " + b"A" * 40).decode().rstrip("=")
    assert "in a form that is not read" in refused(json.dumps({"kty": "oct", "k": k}).encode())


def test_a_pem_file_is_read_whole_or_not_at_all() -> None:
    whole, second = signer("ES256").file, signer("EdDSA").file
    for data in (
        whole + second[:60],
        second[:60] + whole,
        second[:40] + b"\n" + second,
        whole + second.replace(b"-----END PUBLIC", b"-----END"),
        whole + second.replace(b"PUBLIC KEY", b"public key"),
    ):
        assert "the beginning of a PEM block without its end" in refused(data)


def test_a_library_that_knows_the_newer_name_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**get_default_algorithms(), "Ed25519": OKPAlgorithm()}
    monkeypatch.setattr(jwt.api_jws, "get_default_algorithms", known.copy)
    own = signer("EdDSA")
    keys = parse_keys(own.file)
    assert keys.verified(own.token(), keys.keys[0]) is not None


def test_a_name_must_be_a_string() -> None:
    assert "kid of a JWK must be a string" in refused(json.dumps(signer("HS256").jwk(kid=7)).encode())


def test_a_file_has_few_keys() -> None:
    several = [signer("HS256", number).jwk(kid=str(number)) for number in range(MAX_KEYS + 1)]
    assert len(parse_keys(jwks(*several[:-1])).keys) == MAX_KEYS
    assert refused(jwks(*several)) == "the file may have 8 keys, and has 9: remove old ones"


def test_the_error_never_quotes_the_file() -> None:
    for data in (
        b"hunter2",
        b'{"hunter2',
        b'{"kty":"oct","k":"hunter2"}',
        b'{"kty":"RSA","n":"hunter2","e":"AQAB"}',
        b"-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----\n",
        b"ssh-rsa hunter2" + b"A" * 40,
    ):
        assert "hunter2" not in refused(data)


# The file


def test_public_keys_are_replaced_by_a_secret_only_without_keys_before(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(signer("HS256").file)
    assert read_keys(str(file), parse_keys(signer("HS256", 1).file)).algorithms == {"HS256"}
    with pytest.raises(ValueError, match="had public keys and now has a secret"):
        read_keys(str(file), parse_keys(signer("ES256").file))


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(signer("ES256").file)
    assert read_keys(str(file)).algorithms == {"ES256"}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the file cannot be read: No such file or directory$"):
        read_keys(str(tmp_path / "keys"))
    with pytest.raises(ValueError, match="the file cannot be read: Is a directory"):
        read_keys(str(tmp_path))
    (tmp_path / "large").write_bytes(b"x" * (MAX_FILE + 1))
    with pytest.raises(ValueError, match="the file may have 65536 bytes"):
        read_keys(str(tmp_path / "large"))
