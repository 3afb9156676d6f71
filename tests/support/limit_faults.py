"""What the fault tests of limits need: clients under load and of every fail policy, nodes of a Cluster, a switch."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self

import redis

from shipkeeper.limits import AsyncLimiter, Limiter, Verdict
from shipkeeper.limits.connection import Topology
from shipkeeper.limits.store import install_policy
from support.limit_policies import NAMESPACE, spec_of
from support.redis_server import PASSWORD, RedisServer

TIMEOUT_SECONDS = 0.5
# For the scheduler of a machine under load; the promise itself is the policy's timeout.
SLACK_SECONDS = 3.0
AMOUNT = 1_000_000
CLUSTER_OPTIONS = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
ACTIONS: dict[str, dict[str, Any]] = {
    "deny": {"action": "Deny"},
    "allow": {"action": "Allow"},
    "budget": {"action": "LocalBudget", "localBudget": {"amount": 2, "period": "1h"}},
}


@dataclass(frozen=True, kw_only=True)
class StoreOfTest:
    """How clients reach a store."""

    url: str
    topology: Topology = "Standalone"
    sentinel_master: str | None = None

    def limiter(self, policy: str, *, namespace: str = NAMESPACE) -> Limiter:
        """Return a client for threads."""
        return Limiter.from_url(
            self.url,
            namespace=namespace,
            policy=policy,
            topology=self.topology,
            sentinel_master=self.sentinel_master,
        )

    def async_limiter(self, policy: str, *, namespace: str = NAMESPACE) -> AsyncLimiter:
        """Return a client for asyncio."""
        return AsyncLimiter.from_url(
            self.url,
            namespace=namespace,
            policy=policy,
            topology=self.topology,
            sentinel_master=self.sentinel_master,
        )

    def client(self, kind: str, policy: str, *, namespace: str = NAMESPACE) -> "Asks":
        """Return a client of the kind: sync or async."""
        if kind == "sync":
            return self.limiter(policy, namespace=namespace)
        return Blocking(self.async_limiter(policy, namespace=namespace))

    def install(self, name: str, *, namespace: str = NAMESPACE, **document: Any) -> None:
        """Put the library and a policy of one limit a month on the store; `document` replaces its parts."""
        store: dict[str, Any] = {"urlFrom": {"name": "store", "key": "url"}, "topology": self.topology}
        if self.sentinel_master is not None:
            store["sentinelMaster"] = self.sentinel_master
        policy: dict[str, Any] = {
            "store": store,
            "limits": [{"name": "month", "amount": AMOUNT, "period": "Month"}],
            "onStoreUnavailable": {"action": "Deny", "timeout": f"{TIMEOUT_SECONDS * 1000:.0f}ms"},
        }
        asyncio.run(install_policy(self.url, spec_of(policy | document), namespace=namespace, name=name))


class Asks(Protocol):
    """A client, whichever kind it is."""

    def acquire(self) -> Verdict:
        """Ask for one call."""

    def peek(self) -> Verdict:
        """Look."""

    def close(self) -> None:
        """Close the connections."""


class Blocking:
    """The client for asyncio, asked from a test without an event loop."""

    def __init__(self, limiter: AsyncLimiter) -> None:
        self._limiter = limiter
        self._runner = asyncio.Runner()

    def acquire(self) -> Verdict:
        return self._runner.run(self._acquire())

    async def _acquire(self) -> Verdict:
        await asyncio.sleep(0.01)  # a program's loop runs all the time, and so notices a connection that was closed
        return await self._limiter.acquire()

    def peek(self) -> Verdict:
        return self._runner.run(self._limiter.peek())

    def close(self) -> None:
        self._runner.run(self._limiter.close())
        self._runner.close()


@dataclass
class FailPolicies:
    """One client for each fail policy, all of one store; each has read its policy."""

    clients: dict[str, Asks]
    slowest: float = 0.0
    """Seconds of the slowest verdict without the store."""

    def expect_store(self) -> None:
        """Every client gets its verdict from the store."""
        for name, client in self.clients.items():
            verdict = client.acquire()
            assert (verdict.allowed, verdict.rule, verdict.store_failure) == (True, "", ""), name

    def expect_failure(self, failure: str) -> None:
        """Every client gets what its policy says, for this reason, in the policy's time."""
        seen = {name: [self._timed(client) for _ in range(3)] for name, client in self.clients.items()}
        assert {each.store_failure for verdicts in seen.values() for each in verdicts} == {failure}
        assert {each.rule for verdicts in seen.values() for each in verdicts} == {"store"}
        assert [(each.allowed, each.reason) for each in seen["deny"]] == [(False, "StoreUnavailable")] * 3
        assert [(each.allowed, each.reason) for each in seen["allow"]] == [(True, "StoreUnavailable")] * 3
        assert [each.allowed for each in seen["budget"]] == [True, True, False]
        assert seen["budget"][-1].reason == "LocalBudgetSpent"
        assert self.slowest <= TIMEOUT_SECONDS + SLACK_SECONDS

    def _timed(self, client: Asks) -> Verdict:
        start = time.monotonic()
        verdict = client.acquire()
        self.slowest = max(self.slowest, time.monotonic() - start)
        return verdict


@contextmanager
def fail_policies(store: StoreOfTest, kind: str) -> Iterator[FailPolicies]:
    """Install a policy for each action and give a client of the kind ("sync", "async") for each."""
    clients: dict[str, Asks] = {}
    try:
        for action, settings in ACTIONS.items():
            store.install(action, onStoreUnavailable=settings | {"timeout": f"{TIMEOUT_SECONDS * 1000:.0f}ms"})
            clients[action] = store.client(kind, action)
            assert clients[action].acquire().config_hash
        yield FailPolicies(clients)
    finally:
        for client in clients.values():
            client.close()


@dataclass(frozen=True)
class Answer:
    """One verdict under load."""

    client: str
    asked_at: float
    seconds: float
    allowed: bool
    reason: str
    failure: str

    @property
    def at(self) -> float:
        """When it came."""
        return self.asked_at + self.seconds


@dataclass
class Load:
    """Both kinds of clients, asking all the time."""

    store: StoreOfTest
    policy: str
    threads: int = 2
    tasks: int = 4
    pause_seconds: float = 0.01
    answers: list[Answer] = field(default_factory=list)
    escaped: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _running: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Start, and wait until every client has been answered by the store."""
        targets: list[Callable[[], None]] = [self._ask_from_tasks]
        targets += [partial(self._ask_from_thread, number) for number in range(self.threads)]
        self._running = [threading.Thread(target=self._guarded, args=(target,)) for target in targets]
        for thread in self._running:
            thread.start()
        self.wait_until_all_are_answered(since=time.monotonic())
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self._stop.set()
        for thread in self._running:
            thread.join()

    def wait_until_all_are_answered(self, *, since: float, timeout: float = 30) -> float:
        """Wait until every client has had a verdict of the store to a question asked after an instant.

        Return when the last of these first verdicts came.
        """
        deadline = time.monotonic() + timeout
        while True:
            first: dict[str, float] = {}
            for answer in tuple(self.answers):
                if answer.asked_at >= since and not answer.failure:
                    first.setdefault(answer.client, answer.at)
            if len(first) == self.threads + self.tasks:
                return max(first.values())
            assert not self.escaped, self.escaped
            assert time.monotonic() < deadline, f"only {sorted(first)} were answered by the store"
            time.sleep(0.02)

    @property
    def admitted(self) -> int:
        """Calls the store admitted, as the clients saw it."""
        return sum(answer.allowed for answer in self.answers)

    def failures(self) -> dict[str, int]:
        """Return how often each reason came."""
        seen = [answer.failure for answer in self.answers if answer.failure]
        return {failure: seen.count(failure) for failure in sorted(set(seen))}

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            self.escaped.append(error)

    def _note(self, client: str, start: float, verdict: Verdict) -> None:
        seconds = time.monotonic() - start
        self.answers.append(Answer(client, start, seconds, verdict.allowed, verdict.reason, verdict.store_failure))

    def _ask_from_thread(self, number: int) -> None:
        with self.store.limiter(self.policy) as limiter:
            while not self._stop.is_set():
                start = time.monotonic()
                self._note(f"thread-{number}", start, limiter.acquire())
                time.sleep(self.pause_seconds)

    def _ask_from_tasks(self) -> None:
        async def ask(limiter: AsyncLimiter, number: int) -> None:
            while not self._stop.is_set():
                start = time.monotonic()
                self._note(f"task-{number}", start, await limiter.acquire())
                await asyncio.sleep(self.pause_seconds)

        async def ask_all() -> None:
            async with self.store.async_limiter(self.policy) as limiter, asyncio.TaskGroup() as group:
                for number in range(self.tasks):
                    group.create_task(ask(limiter, number))

        asyncio.run(ask_all())


class Switch:
    """A port that leads to a server, as a Service does: what is switched are the connections to come."""

    def __init__(self, port: int) -> None:
        """Take the port of the first server."""
        self.target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        """Close everything."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            self._sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                thread = threading.Thread(target=_pump, args=(source, sink))
                self._threads.append(thread)
                thread.start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def slots_of(server: RedisServer) -> list[tuple[int, int]]:
    """Return the ranges of slots that a node of a Cluster serves."""
    with server.client() as client:
        nodes: dict[str, Any] = client.execute_command("CLUSTER NODES")
    return [(int(low), int(high)) for low, high in nodes[f"127.0.0.1:{server.port}"]["slots"]]


def slot_of(server: RedisServer, key: str) -> int:
    """Return the slot of a key."""
    with server.client() as client:
        return int(client.execute_command("CLUSTER KEYSLOT", key))


def holder_of(servers: Sequence[RedisServer], key: str) -> RedisServer:
    """Return the primary that serves a key."""
    slot = slot_of(servers[0], key)
    return next(server for server in servers if any(low <= slot <= high for low, high in slots_of(server)))


def move_slot(servers: Sequence[RedisServer], new: RedisServer, key: str) -> None:
    """Move the slot of a key, and the keys in it, to a new primary."""
    slot, old = slot_of(new, key), holder_of(servers, key)
    with old.client() as source, new.client() as sink:
        old_id, new_id = source.execute_command("CLUSTER MYID"), sink.execute_command("CLUSTER MYID")
        sink.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old_id)
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", new_id)
        keys = source.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
        if keys:
            login = ("AUTH", PASSWORD, "KEYS", *keys)
            source.execute_command("MIGRATE", "127.0.0.1", new.port, "", 0, 5000, *login)
        for each in (new, *servers):
            with each.client() as admin:
                admin.execute_command("CLUSTER SETSLOT", slot, "NODE", new_id)


@contextmanager
def cluster_node(known: RedisServer) -> Iterator[RedisServer]:
    """Start an empty node, without slots, and let it meet a Cluster."""
    with RedisServer(options=CLUSTER_OPTIONS) as server:
        with server.client() as client:
            client.execute_command("CLUSTER MEET", "127.0.0.1", known.port)
            wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "the new node's view")
        yield server


@contextmanager
def cluster_replica(primary: RedisServer) -> Iterator[RedisServer]:
    """Start a replica of a Cluster's primary; it is in step, and the other nodes know it."""
    with primary.client() as client:
        identity = client.execute_command("CLUSTER MYID")
    with cluster_node(primary) as replica:
        with replica.client() as client, primary.client() as master:
            client.execute_command("CLUSTER REPLICATE", identity)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica's link")
            wait_until(lambda: len(master.execute_command("CLUSTER REPLICAS", identity)) == 1, "the replica's gossip")
        yield replica


def is_primary(server: RedisServer) -> bool:
    """Whether the server says that it is a primary."""
    with server.client() as client:
        return bool(client.info("replication")["role"] == "master")


def wait_until(holds: Callable[[], bool], what: str, *, timeout: float = 30) -> float:
    """Wait until something holds and return when it did; a server that does not answer yet counts as not yet."""
    deadline = time.monotonic() + timeout
    while True:
        with suppress(redis.RedisError):
            if holds():
                return time.monotonic()
        assert time.monotonic() < deadline, f"{what} did not come within {timeout:.0f} s"
        time.sleep(0.02)
