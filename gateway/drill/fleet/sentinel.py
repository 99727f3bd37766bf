"""A master, its replicas, and three Sentinels that monitor them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import redis

from ... import embedded
from .process import ProcessGroup, wait_until
from .valkey import ValkeyProcess, in_sync

NAME = "mymaster"
SENTINELS = 3
QUORUM = 2

# For a fast failover; the defaults are 30 s and 3 min.
TIMES = (f"down-after-milliseconds {NAME} 1000", f"failover-timeout {NAME} 3000")


class SentinelProcess(ValkeyProcess):
    """A Sentinel that monitors the master on port `master` as `mymaster`.

    It considers a server down after half a second and needs no other Sentinel's vote, unless `lines` (more
    lines of its file) and `quorum` say otherwise. `start` after `kill` reads the file as it has written it.
    """

    def __init__(self, master: int, *lines: str, quorum: int = 1) -> None:
        watched = [
            f"monitor {NAME} 127.0.0.1 {master} {quorum}",
            f"down-after-milliseconds {NAME} 500",
            *lines,
        ]
        self._settings = "".join(f"sentinel {line}\n" for line in watched)
        super().__init__()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)

    def master_port(self) -> int | None:
        """The port of the master, as this Sentinel reports it; None if it does not answer."""
        try:
            said = self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        except redis.RedisError:
            return None
        return int(said[1]) if said else None

    def sees(self, sentinels: int, replicas: int) -> bool:
        """Whether it knows so many other Sentinels and so many replicas, and none is down."""
        try:
            state = self.ask("SENTINEL", "MASTER", NAME)
        except redis.RedisError:
            return False
        return (
            int(state["num-other-sentinels"]) == sentinels
            and int(state["num-slaves"]) == replicas
            and "down" not in str(state["flags"])
        )

    def _command(self) -> list[str]:
        file = Path(self._folder.name) / "sentinel.conf"
        if not file.exists():
            file.write_text(self._settings)
        where = f"--port {self.port} --bind 127.0.0.1 --dir {self._folder.name}".split()
        return [str(embedded.binary()), str(file), "--sentinel", *where]


class SentinelGroup(ProcessGroup):
    """One master, `replicas` replicas and three Sentinels, which agree once the block is entered.

    `options` are more options of the servers, `lines` more lines of the Sentinels' files. A killed server or
    Sentinel can be started again; the Sentinels make a master that comes back a replica.
    """

    def __init__(self, *options: str, replicas: int = 1, lines: Sequence[str] = ()) -> None:
        super().__init__()
        self._options = options
        self._lines = lines
        self._replicas = replicas
        self.servers: list[ValkeyProcess] = []
        self.sentinels: list[SentinelProcess] = []

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(sentinel.address for sentinel in self.sentinels) + f"/{NAME}"

    @property
    def version(self) -> str:
        return self.servers[0].version

    @property
    def master(self) -> ValkeyProcess:
        """The server that a quorum of the Sentinels calls the master, and that is a master.

        Raises LookupError while there is none.
        """
        said = [sentinel.master_port() for sentinel in self.sentinels]
        for server in self.servers:
            if said.count(server.port) >= QUORUM and server.info("replication").get("role") == "master":
                return server
        raise LookupError("no server is the master")

    def await_other_master(self, than: ValkeyProcess, seconds: float = 30.0) -> ValkeyProcess:
        """Wait until a server other than `than` is a master, and return it. Raises TimeoutError."""
        others = [server for server in self.servers if server is not than]
        found: list[ValkeyProcess] = []

        def promoted() -> bool:
            found.extend(other for other in others if other.info("replication").get("role") == "master")
            return bool(found)

        wait_until(promoted, "a replica becomes the master", seconds)
        return found[0]

    def await_health(self) -> None:
        """Wait until all Sentinels see each other and the replicas are in sync. Raises TimeoutError."""

        def healthy() -> bool:
            try:
                master = self.master
            except LookupError:
                return False
            return all(in_sync(server) for server in self.servers if server is not master) and all(
                sentinel.sees(SENTINELS - 1, self._replicas) for sentinel in self.sentinels
            )

        wait_until(healthy, "the Sentinels see each other and the replicas", 30)

    def _start(self, running: ExitStack) -> None:
        # Without the delay, 5 s, a master waits for further replicas before it sends the first its data.
        options = ["--repl-diskless-sync-delay", "0", *self._options]
        master = running.enter_context(ValkeyProcess(*options))
        self.servers = [master]
        for _ in range(self._replicas):
            replica = ValkeyProcess(*options, "--replicaof", f"127.0.0.1 {master.port}")
            self.servers.append(running.enter_context(replica))
        # Sentinel reads the replicas of a master every 10 s, so they must exist before the first time.
        wait_until(lambda: all(map(in_sync, self.servers[1:])), "the replicas are in sync")
        self.sentinels = [
            running.enter_context(SentinelProcess(master.port, *TIMES, *self._lines, quorum=QUORUM))
            for _ in range(SENTINELS)
        ]
        self.await_health()
