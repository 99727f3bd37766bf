"""A master, its replicas, and three sentinels that watch over them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import redis

from ... import embedded
from .process import ProcessGroup, wait_until
from .valkey import ValkeyProcess, replicated

NAME = "mymaster"
SENTINELS = 3
QUORUM = 2

# As in an installation that wants to be quick; the defaults are 30 s and 3 min.
TIMES = (f"down-after-milliseconds {NAME} 1000", f"failover-timeout {NAME} 3000")


class SentinelProcess(ValkeyProcess):
    """One that watches the servers at `master` as `mymaster`, with these `lines` more in its file.

    It waits half a second before it takes a server for down, and needs nobody's consent, unless told
    otherwise by `lines` and `quorum`. `start` after `kill` goes on with the file as it has written it since.
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
        """Where it says that the master is; None when it does not answer."""
        try:
            said = self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        except redis.RedisError:
            return None
        return int(said[1]) if said else None

    def sees(self, sentinels: int, replicas: int) -> bool:
        """Whether it knows of so many others and so many replicas, all well."""
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
    """One master, `replicas` replicas and three sentinels, all in agreement once the block is entered.

    `options` are further ones of the servers, `lines` more lines of the sentinels' files. A server or
    sentinel that was killed can be started again; a master that comes back is made a replica by the
    sentinels.
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
        """The server that at least a quorum of the sentinels calls the master and that is one.

        Raises LookupError while there is none.
        """
        said = [sentinel.master_port() for sentinel in self.sentinels]
        for server in self.servers:
            if said.count(server.port) >= QUORUM and server.info("replication").get("role") == "master":
                return server
        raise LookupError("no server is the master")

    def await_other_master(self, than: ValkeyProcess, seconds: float = 30.0) -> ValkeyProcess:
        """The new master, as soon as a server other than `than` is one. Raises TimeoutError."""
        others = [server for server in self.servers if server is not than]
        found: list[ValkeyProcess] = []

        def promoted() -> bool:
            found.extend(other for other in others if other.info("replication").get("role") == "master")
            return bool(found)

        wait_until(promoted, "a replica is made the master", seconds)
        return found[0]

    def await_health(self) -> None:
        """Wait until all sentinels see all of the others, and the replicas follow. Raises TimeoutError."""

        def healthy() -> bool:
            try:
                master = self.master
            except LookupError:
                return False
            return all(replicated(server) for server in self.servers if server is not master) and all(
                sentinel.sees(SENTINELS - 1, self._replicas) for sentinel in self.sentinels
            )

        wait_until(healthy, "the sentinels see each other and the replicas", 30)

    def _start(self, running: ExitStack) -> None:
        # Without the delay, 5 s, a master waits for further replicas before it sends the first its data.
        options = ["--repl-diskless-sync-delay", "0", *self._options]
        master = running.enter_context(ValkeyProcess(*options))
        self.servers = [master]
        for _ in range(self._replicas):
            replica = ValkeyProcess(*options, "--replicaof", f"127.0.0.1 {master.port}")
            self.servers.append(running.enter_context(replica))
        # Sentinel reads a master's replicas every 10 s, so they are there before it looks first.
        wait_until(lambda: all(map(replicated, self.servers[1:])), "the replicas follow the master")
        self.sentinels = [
            running.enter_context(SentinelProcess(master.port, *TIMES, *self._lines, quorum=QUORUM))
            for _ in range(SENTINELS)
        ]
        self.await_health()
