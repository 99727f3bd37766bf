"""A real Valkey server, from the extra `embedded`, on a free port."""

from __future__ import annotations

import tempfile
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ... import embedded
from .process import Process, free_port, spawn


class ValkeyProcess(Process):
    """A server that writes nothing to disk unless `options` say so. It answers once the constructor returns.

    `options` are more options of its command line. `start` after `kill` starts it on the same port, with the
    data on its disk.
    """

    def __init__(self, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.address = f"127.0.0.1:{self.port}"
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="webflow-valkey-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        try:
            self.start()
        except BaseException:
            self._clean_up()
            raise

    def start(self) -> None:
        """Start the server. Returns when it answers, and raises EmbeddedError if it does not."""
        self.process = spawn(self._command(), stdout=self._log, stderr=self._log)
        self._await_start(
            lambda: embedded.answers(self.port), "Valkey", lambda: embedded.last_lines(self._log)
        )

    @property
    def version(self) -> str:
        """As `Valkey 9.1.2`."""
        return f"Valkey {self.info('server').get('valkey_version', '?')}"

    def client(self) -> redis.Redis:
        """A plain redis-py client; the caller closes it."""
        return redis.Redis(port=self.port)

    def ask(self, *command: str | int) -> Any:
        """Send one command on a new connection. Raises redis.RedisError."""
        never = Retry(NoBackoff(), 0)
        with redis.Redis(port=self.port, decode_responses=True, socket_timeout=2, retry=never) as client:
            return client.execute_command(*command)

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO; empty if the server does not answer."""
        try:
            answer = self.ask("INFO", section)
        except redis.RedisError:
            return {}
        return {name: str(value) for name, value in answer.items()}

    def stop(self) -> None:
        super().stop()
        self._clean_up()

    def _clean_up(self) -> None:
        self._log.close()
        self._folder.cleanup()

    def _command(self) -> list[str]:
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly no".split()
        return [str(embedded.binary()), *options, "--save", "", "--dir", self._folder.name, *self._options]


def in_sync(server: ValkeyProcess) -> bool:
    """Whether a replica is in sync with its master."""
    return server.info("replication").get("master_link_status") == "up"
