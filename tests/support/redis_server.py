"""A real redis-server for tests: on a free port, with a password, without persistence unless asked for.

Every server is a child of the test process and its files are in a folder of its own; leaving the context ends it.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import redis

PASSWORD = "s3cret-of-the-tests"
_START_SECONDS = 20.0


def free_port() -> int:
    """Return a port that nobody listens on now; for a cluster node also the port 10000 above is free."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if port > 55_000:
                continue
            try:
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def redis_program(name: str = "redis-server") -> str:
    """Return the path of a Redis program; an error says what to install."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed; on Debian: apt-get install redis-server redis-sentinel")
    return found


@dataclass
class RedisServer:
    """One server. A context manager; `kill`, `stop` and `start` cause what a test wants to see survived."""

    password: str = PASSWORD
    appendonly: bool = False
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """URL with the password."""
        return (
            f"redis://:{self.password}@127.0.0.1:{self.port}/0" if self.password else f"redis://127.0.0.1:{self.port}/0"
        )

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    @property
    def folder(self) -> Path:
        """Where the server keeps its files and its log."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="shipkeeper-redis-")
        return Path(self._folder.name)

    def client(self) -> "redis.Redis":
        """Return a plain client, for looking and for causing faults."""
        return redis.Redis(host="127.0.0.1", port=self.port, password=self.password or None, decode_responses=True)

    def start(self) -> None:
        """Start the server (again) and wait until it answers."""
        command = [redis_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "yes" if self.appendonly else "no", "--logfile", "redis.log"]
        if self.password:
            command += ["--requirepass", self.password, "--masterauth", self.password]
        # No terminal, own group: a Ctrl-C in the test run must not end the server before its context does.
        self._process = subprocess.Popen([*command, *self.options], stdin=subprocess.DEVNULL, process_group=0)
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "redis.log").read_text(errors="replace")
                    raise RuntimeError(f"redis-server does not answer on port {self.port}:\n{log[-2000:]}") from None
                time.sleep(0.02)

    def kill(self) -> None:
        """End the server at once, as a crash does; nothing is saved."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End the server in order."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=_START_SECONDS)
            self._process = None

    def restart(self) -> None:
        """Kill the server and start it: without append-only file it comes back empty, functions included."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop the process without ending it: it accepts connections and answers nothing."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process run on."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove its files."""
        self.resume()
        self.kill()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End the server."""
        self.close()


@contextmanager
def redis_cluster(primaries: int = 3) -> Iterator[list[RedisServer]]:
    """Start a Redis Cluster of so many primaries without replicas, all slots covered."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    servers = [RedisServer(options=options) for _ in range(primaries)]
    try:
        for server in servers:
            server.start()
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        command = [redis_program("redis-cli"), "-a", PASSWORD, "--no-auth-warning", "--cluster", "create", *addresses]
        subprocess.run([*command, "--cluster-yes"], check=True, stdout=subprocess.DEVNULL, timeout=60)
        for server in servers:
            _wait_for(lambda server=server: _cluster_state(server) == "ok", "the cluster's slots")
        yield servers
    finally:
        for server in servers:
            server.close()


def _cluster_state(server: RedisServer) -> str:
    with server.client() as client:
        return str(client.execute_command("CLUSTER INFO")["cluster_state"])


@dataclass(frozen=True)
class SentinelSetup:
    """A master, its replica and a sentinel that watches them."""

    master: RedisServer
    replica: RedisServer
    sentinel_port: int
    master_name: str

    @property
    def url(self) -> str:
        """URL of the sentinel; user and password are those of the servers."""
        return f"redis://:{PASSWORD}@127.0.0.1:{self.sentinel_port}/0"

    def failover(self) -> None:
        """Kill the master and wait until the replica has taken over."""
        self.master.kill()
        _wait_for(lambda: _role(self.replica) == "master", "the replica's promotion")


def _role(server: RedisServer) -> str:
    with server.client() as client:
        return str(client.info("replication")["role"])


@contextmanager
def redis_sentinel() -> Iterator[SentinelSetup]:
    """Start a master, a replica and one sentinel (quorum 1)."""
    with RedisServer() as master, RedisServer(options=("--replicaof", f"127.0.0.1 {master.port}")) as replica:
        _wait_for(lambda: _link(replica) == "up", "the replica's link")
        port = free_port()
        configuration = replica.folder / "sentinel.conf"
        configuration.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {replica.folder}\n"
            f"sentinel monitor tests 127.0.0.1 {master.port} 1\nsentinel auth-pass tests {PASSWORD}\n"
            "sentinel down-after-milliseconds tests 500\nsentinel failover-timeout tests 3000\n"
        )
        command = [redis_program(), str(configuration), "--sentinel", "--logfile", "sentinel.log"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
        try:
            _wait_for(lambda: _knows_replica(port), "the sentinel's view of the replica")
            yield SentinelSetup(master, replica, port, "tests")
        finally:
            process.kill()
            process.wait()


def _link(server: RedisServer) -> str:
    with server.client() as client:
        return str(client.info("replication")["master_link_status"])


def _knows_replica(port: int) -> bool:
    with redis.Redis(port=port, decode_responses=True) as client:
        return bool(client.execute_command("SENTINEL REPLICAS", "tests"))


def _wait_for(holds: "object", what: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if holds():  # type: ignore[operator]
                return
        except redis.RedisError:
            pass  # not yet
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come within {_START_SECONDS:.0f} s")
        time.sleep(0.05)
