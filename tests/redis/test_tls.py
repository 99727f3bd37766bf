"""Certificates and keys that are replaced on disk while the process runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.redis import tls as tls_module
from gateway.redis.connection import Connection
from gateway.redis.server import Server
from gateway.redis.tls import ClientTLS

from ..certificates import self_signed

pytestmark = [pytest.mark.real, pytest.mark.needs("openssl")]

LOGIN = b"%1\r\n+proto\r\n:3\r\n+PONG\r\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Two certificates for localhost with their keys."""
    return [self_signed(tmp_path_factory.mktemp(f"certificate{number}")) for number in (1, 2)]


def replace(path: Path, source: Path) -> None:
    """Put another file in place in one step, as Kubernetes and certbot do."""
    new = path.with_suffix(".new")
    new.write_bytes(source.read_bytes())
    new.replace(path)


@asynccontextmanager
async def server(certificate: Path, key: Path, *, clients: Path | None = None) -> AsyncIterator[int]:
    """A Redis that lets anybody in, over TLS; with `clients` it asks for a certificate that these sign."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(65_536):
            writer.write(LOGIN)
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield listener.sockets[0].getsockname()[1]


async def visit(redis: Server, port: int) -> None:
    """Connect and leave. Raises OSError."""
    redis.port = port
    connection = await redis.connect(Connection, "test")
    connection.abort("the test is over")
    await connection.closed


async def test_a_new_authority_counts_for_the_next_connection(
    made: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    (first, second), authority = made, tmp_path / "ca.pem"
    replace(authority, first[0])
    redis = Server(f"rediss://localhost:1?ssl_ca_certs={authority}")
    async with server(*first) as port:
        await visit(redis, port)
    async with server(*second) as port:
        with pytest.raises(ssl.SSLError, match="certificate verify failed"):
            await visit(redis, port)
        replace(authority, second[0])
        await visit(redis, port)


async def test_a_new_certificate_and_key_of_ours_count_for_the_next_connection(
    made: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    (first, second), mine, my_key = made, tmp_path / "mine.pem", tmp_path / "key.pem"
    replace(mine, first[0])
    replace(my_key, first[1])
    options = f"ssl_ca_certs={first[0]}&ssl_certfile={mine}&ssl_keyfile={my_key}"
    redis = Server(f"rediss://localhost:1?{options}")
    async with server(*first, clients=first[0]) as port:
        await visit(redis, port)
    async with server(*first, clients=second[0]) as port:
        with pytest.raises(OSError):
            await visit(redis, port)
        replace(mine, second[0])
        with pytest.raises(OSError, match=f"ssl_keyfile={my_key} cannot be used: .*KEY_VALUES_MISMATCH"):
            await visit(redis, port)
        replace(my_key, second[1])
        await visit(redis, port)
        my_key.unlink()
        with pytest.raises(OSError, match=f"ssl_keyfile={my_key} cannot be used: .*No such file"):
            await visit(redis, port)
        replace(my_key, second[1])
        await visit(redis, port)


def test_the_context_is_kept_as_long_as_the_files_are(made: list[tuple[Path, Path]], tmp_path: Path) -> None:
    """To build one takes up to 50 ms, and a probe connects every 10 s."""
    authority = tmp_path / "ca.pem"
    replace(authority, made[0][0])
    options = {"host": "redis", "ssl_ca_certs": str(authority), "ssl_check_hostname": True}
    first = ClientTLS(options).context()
    assert ClientTLS({**options, "host": "other"}).context() is first
    replace(authority, made[0][0])
    assert ClientTLS(options).context() is not first
    assert len(tls_module._contexts) < 10
