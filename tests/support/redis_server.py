"""A real redis-server for tests: on a free port, with a password, without persistence unless asked for.

The machine's own unless a test names another program, for example another version or Valkey; over TLS if asked for.
Every server is a child of the test process and its files are in a folder of its own; leaving the context ends it.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

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


@dataclass(frozen=True)
class ServerProgram:
    """Which server is run: its name with its major version, and the paths of its server and of its command line."""

    name: str
    server: str
    cli: str

    @classmethod
    def of_this_machine(cls) -> Self:
        """Return the Redis that is installed here, whatever its version."""
        return cls("Redis", redis_program(), redis_program("redis-cli"))


@dataclass(frozen=True)
class ServerTls:
    """The files of a server that speaks TLS alone, and of a client that talks to it."""

    authority: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path
    demands_client_certificate: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Options of a server; between servers each shows the client's certificate."""
        options = {
            "tls-cert-file": self.certificate,
            "tls-key-file": self.key,
            "tls-client-cert-file": self.client_certificate,
            "tls-client-key-file": self.client_key,
            "tls-ca-cert-file": self.authority,
            "tls-auth-clients": "yes" if self.demands_client_certificate else "no",
            "tls-replication": "yes",
        }
        return tuple(text for name, value in options.items() for text in (f"--{name}", str(value)))

    @property
    def client_options(self) -> dict[str, str]:
        """Options of a client, by the names that a URL gives them."""
        options = {"ssl_ca_certs": str(self.authority)}
        if self.demands_client_certificate:
            options |= {"ssl_certfile": str(self.client_certificate), "ssl_keyfile": str(self.client_key)}
        return options


@dataclass
class RedisServer:
    """One server. A context manager; `kill`, `stop` and `start` cause what a test wants to see survived."""

    password: str = PASSWORD
    appendonly: bool = False
    options: tuple[str, ...] = ()
    program: ServerProgram = field(default_factory=ServerProgram.of_this_machine)
    tls: ServerTls | None = None
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """URL with the password, and with what TLS needs."""
        return url_of(self.port, password=self.password, tls=self.tls)

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
        return plain_client(self.port, password=self.password, tls=self.tls)

    def start(self) -> None:
        """Start the server (again) and wait until it answers."""
        command = [self.program.server, *port_options(self.port, self.tls), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.folder)]
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
                    raise RuntimeError(
                        f"{self.program.name} does not answer on port {self.port}:\n{log[-2000:]}"
                    ) from None
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


def port_options(port: int, tls: ServerTls | None) -> tuple[str, ...]:
    """Return the options of a server or a sentinel that listens on one port: with TLS, or without."""
    return ("--port", str(port)) if tls is None else ("--port", "0", "--tls-port", str(port), *tls.options)


def url_of(port: int, *, password: str = PASSWORD, tls: ServerTls | None = None) -> str:
    """Return the URL of a server or of a sentinel on this machine."""
    credentials = f":{password}@" if password else ""
    query = f"?{urlencode(tls.client_options)}" if tls else ""
    return f"redis{'s' if tls else ''}://{credentials}127.0.0.1:{port}/0{query}"


def plain_client(port: int, *, password: str, tls: ServerTls | None) -> "redis.Redis":
    """Return a client without anything of this project."""
    options: dict[str, Any] = {"ssl": True, **tls.client_options} if tls else {}
    return redis.Redis(host="127.0.0.1", port=port, password=password or None, decode_responses=True, **options)


@contextmanager
def redis_cluster(
    primaries: int = 3, *, program: ServerProgram | None = None, tls: ServerTls | None = None
) -> Iterator[list[RedisServer]]:
    """Start a Redis Cluster of so many primaries without replicas, all slots covered."""
    program = program or ServerProgram.of_this_machine()
    servers = [cluster_node(program, tls) for _ in range(primaries)]
    try:
        for server in servers:
            server.start()
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        command = [program.cli, "-a", PASSWORD, "--no-auth-warning"]
        if tls is not None:
            command += ["--tls", "--cacert", str(tls.authority)]
        command += ["--cluster", "create", *addresses, "--cluster-yes"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        for server in servers:
            wait_for(partial(_covers_all_slots, server), "the cluster's slots")
        yield servers
    finally:
        for server in servers:
            server.close()


def cluster_node(program: ServerProgram, tls: ServerTls | None = None) -> RedisServer:
    """Return a server that can be of a cluster and is of none yet."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--tls-cluster", "yes" if tls else "no")
    return RedisServer(options=options, program=program, tls=tls)


def _covers_all_slots(server: RedisServer) -> bool:
    with server.client() as client:
        return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")


@dataclass(frozen=True)
class SentinelSetup:
    """A master, its replica and a sentinel that watches them."""

    master: RedisServer
    replica: RedisServer
    sentinel_port: int
    master_name: str
    tls: ServerTls | None = None

    @property
    def url(self) -> str:
        """URL of the sentinel; user and password are those of the servers."""
        return url_of(self.sentinel_port, tls=self.tls)

    def catch_up(self) -> None:
        """Wait until the replica has everything that the master has been told."""
        wait_for(partial(_has_its_writes_copied, self.master), "the replica's copy")

    def failover(self) -> None:
        """Kill the master and wait until the replica has taken over."""
        self.master.kill()
        wait_for(lambda: _role(self.replica) == "master", "the replica's promotion")


def _has_its_writes_copied(master: RedisServer) -> bool:
    """Whether a replica confirms a write of now, and so all before it. WAIT looks at its own connection's alone."""
    with master.client() as client:
        client.set("tests:copied", "", px=1)
        return bool(client.wait(1, 1000) == 1)


def _role(server: RedisServer) -> str:
    with server.client() as client:
        return str(client.info("replication")["role"])


@contextmanager
def redis_sentinel(*, program: ServerProgram | None = None, tls: ServerTls | None = None) -> Iterator[SentinelSetup]:
    """Start a master, a replica and one sentinel (quorum 1)."""
    program = program or ServerProgram.of_this_machine()
    with (
        # The replica's copy need not wait for further replicas, as it does by default for seconds.
        RedisServer(program=program, tls=tls, options=("--repl-diskless-sync-delay", "0")) as master,
        RedisServer(program=program, tls=tls, options=("--replicaof", f"127.0.0.1 {master.port}")) as replica,
    ):
        wait_for(partial(_has_its_writes_copied, master), "the replica's link")
        port = free_port()
        configuration = replica.folder / "sentinel.conf"
        configuration.write_text(
            f"bind 127.0.0.1\ndir {replica.folder}\n"
            f"sentinel monitor tests 127.0.0.1 {master.port} 1\nsentinel auth-pass tests {PASSWORD}\n"
            "sentinel down-after-milliseconds tests 500\nsentinel failover-timeout tests 3000\n"
        )
        command = [program.server, str(configuration), "--sentinel", *port_options(port, tls)]
        command += ["--logfile", "sentinel.log"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
        try:
            wait_for(lambda: _knows_replica(port, tls), "the sentinel's view of the replica")
            yield SentinelSetup(master, replica, port, "tests", tls)
        finally:
            process.kill()
            process.wait()


def _knows_replica(port: int, tls: ServerTls | None) -> bool:
    with plain_client(port, password="", tls=tls) as client:
        return bool(client.execute_command("SENTINEL REPLICAS", "tests"))


def wait_for(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds; a server that does not answer yet counts as not yet. Raises RuntimeError."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if holds():
                return
        except redis.RedisError:
            pass  # not yet
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come within {_START_SECONDS:.0f} s")
        time.sleep(0.05)
