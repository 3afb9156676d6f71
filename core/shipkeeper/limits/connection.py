"""The only module that knows the Redis client library: connections to a standalone server, Sentinel or Cluster.

Commands are never retried in here. The library's own retries would charge a call twice when an answer is lost; so they
are off, and every failure leaves as a `StoreError` with a named reason and without the URL.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from .failures import StoreError, StoreFailure, classify

Topology = Literal["Standalone", "Sentinel", "Cluster"]
_DEFAULT_PORT: Final = {"Standalone": 6379, "Sentinel": 26379, "Cluster": 6379}
# What a URL may say about TLS after its question mark; `ssl_ca_data` is the certificates themselves.
_TLS_FILES: Final = frozenset({"ssl_ca_certs", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_password"})
_STALE: Final = frozenset({StoreFailure.READ_ONLY, StoreFailure.MASTER_DOWN, StoreFailure.CLUSTER_DOWN})

# What the client library raises when a command fails.
_TROUBLE: Final = (redis.RedisError, OSError, TimeoutError)
_FOLLOW_SECONDS: Final = 1.0  # between two questions to the sentinels: who is the master?
_BATCH: Final = 100  # commands: more would keep Redis from its other clients for too long

Argument = str | int | bytes

# What the client library leaves without types, or with too narrow ones.
_pack_command: Any = hiredis.pack_command
_ClusterNode: Any = redis.cluster.ClusterNode
_AsyncClusterNode: Any = redis.asyncio.cluster.ClusterNode
_Sentinel: Any = redis.sentinel.Sentinel
_AsyncSentinel: Any = redis.asyncio.sentinel.Sentinel
_AnyCluster: Any = redis.RedisCluster
_AnyAsyncCluster: Any = redis.asyncio.RedisCluster


@dataclass(frozen=True, kw_only=True)
class StoreAddress:
    """Where a store is and how to get in. Its text shows neither the URL nor the password."""

    url: str = field(repr=False)
    topology: Topology = "Standalone"
    sentinel_master: str | None = None


@dataclass(frozen=True)
class _Endpoint:
    hosts: tuple[tuple[str, int], ...]
    options: dict[str, Any] = field(repr=False)

    @property
    def where(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)

    def of_sentinels(self, timeout: float) -> dict[str, Any]:
        """Return the options of connections to sentinels: TLS as the servers, and neither user nor password."""
        tls = {name: value for name, value in self.options.items() if name.startswith("ssl")}
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout, **tls}


def _parse(address: StoreAddress) -> _Endpoint:
    """Read a URL. Raises StoreError(UrlInvalid), which does not repeat it."""
    try:
        parts = urlsplit(address.url.strip())
        if parts.scheme not in ("redis", "rediss") or not parts.netloc:
            raise ValueError
        credentials, _, hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        endpoint_hosts = tuple(_host_and_port(each, _DEFAULT_PORT[address.topology]) for each in hosts.split(","))
        options: dict[str, Any] = {"db": int(parts.path.strip("/") or 0)}
    except ValueError:
        raise StoreError(StoreFailure.URL_INVALID) from None
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    if parts.scheme == "rediss":
        options["ssl"] = True
    try:
        options.update(_tls_option(name, value) for name, value in parse_qsl(parts.query) if name.startswith("ssl_"))
    except (KeyError, ValueError):
        raise StoreError(StoreFailure.URL_INVALID) from None
    return _Endpoint(endpoint_hosts, options)


def _tls_option(name: str, value: str) -> tuple[str, Any]:
    """Return an option as the client library takes it. Raises KeyError or ValueError for what it does not take."""
    if name in _TLS_FILES:
        return name, value
    meanings: dict[str, dict[str, Any]] = {
        "ssl_check_hostname": {"true": True, "false": False},
        "ssl_cert_reqs": {"required": "required", "none": "none"},
    }
    return name, meanings[name][value.lower()]


def _host_and_port(text: str, default_port: int) -> tuple[str, int]:
    split = urlsplit(f"//{text}")
    if not split.hostname:
        raise ValueError
    return split.hostname, split.port or default_port


# The client library asks a server for the keys of every FCALL: a second round trip for each decision, and from asyncio
# always to the node that it met first, so that after its end no call would get through any more. The keys are known.


class _Cluster(_AnyCluster):  # type: ignore[misc]
    def determine_slot(self, *args: Any) -> Any:
        if args[0] == "FCALL" and args[2]:
            return self.keyslot(args[3])
        return super().determine_slot(*args)


class _AsyncCluster(_AnyAsyncCluster):  # type: ignore[misc]
    async def _determine_slot(self, command: str, *args: Any) -> Any:
        if command == "FCALL" and args[1]:
            return self.keyslot(args[2])
        return await super()._determine_slot(command, *args)


def _common(timeout: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "decode_responses": True,
        "protocol": 2,
        "socket_keepalive": True,
    }


class AsyncStore:
    """Commands to one store from asyncio. Connects when first used; one pool, shared by all tasks."""

    def __init__(self, address: StoreAddress, *, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._endpoint = _parse(address)
        self._client: Any = None
        self._sentinels: Sequence[Any] = ()  # clients of their own, which the master's client does not close
        self._waiting: list[_Exchange] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._sentinels_asked = 0.0

    @property
    def where(self) -> str:
        """Host and port, for messages."""
        return self._endpoint.where

    def _connect(self) -> Any:
        # One timer for the whole exchange (see _answer) instead of one for each read.
        options = self._endpoint.options | _common(self.timeout) | {"socket_timeout": None}
        options["retry"] = AsyncRetry(NoBackoff(), 0)
        (host, port), *_ = self._endpoint.hosts
        if self.address.topology == "Cluster":
            options.pop("db")
            nodes = [_AsyncClusterNode(each, at) for each, at in self._endpoint.hosts]
            return _AsyncCluster(startup_nodes=nodes, **options)
        if self.address.topology == "Sentinel":
            settings = self._endpoint.of_sentinels(self.timeout) | {"retry": AsyncRetry(NoBackoff(), 0)}
            sentinel = _AsyncSentinel(list(self._endpoint.hosts), sentinel_kwargs=settings, **options)
            self._sentinels = sentinel.sentinels
            return sentinel.master_for(str(self.address.sentinel_master))
        return redis.asyncio.Redis(host=host, port=port, **options)

    async def execute(self, *command: Argument, target: Any = None) -> Any:
        """Send one command once and return its reply. Raises StoreError."""
        if self._client is None:
            self._client = self._connect()
        # A node of a Cluster takes commands by itself: nothing is merged over nodes then.
        executor = self._client if target is None else target
        return await self._answer(executor.execute_command(*command))

    async def _answer(self, exchange: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self.timeout):
                return await exchange
        except _TROUBLE as error:
            return await self._fail(error)

    async def _fail(self, error: BaseException) -> NoReturn:
        """Raise what an error of the client library means; one that means nothing here is raised as it is."""
        failure = classify(error)
        if failure in _STALE:
            await self.close()  # the next command finds the new primary
        if isinstance(error, redis.ResponseError) and failure is StoreFailure.UNEXPECTED_REPLY:
            raise error
        raise StoreError(failure, self.where) from None

    async def fcall(self, function: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Call a function of the library."""
        command = ("FCALL", function, len(keys), *keys, *arguments)
        if self.address.topology == "Cluster":
            return await self.execute(*command)
        packed = _pack_command(command)
        if self._sentinels and time.monotonic() > self._sentinels_asked + _FOLLOW_SECONDS:
            self._sentinels_asked = time.monotonic()
            self._start(self._follow_master())
        if self._in_flight:
            return await self._exchange_with_others(packed)
        return await self._answer(self._exchange_alone(packed))

    async def _exchange_alone(self, packed: bytes) -> Any:
        self._in_flight += 1
        try:
            return await self._send_and_read(packed, _read_one)
        finally:
            self._in_flight -= 1

    async def _exchange_with_others(self, packed: bytes) -> Any:
        """Send a command together with those of other tasks in this turn of the event loop: one round trip for all.

        A decision is one call in the midst of a request, so its cost matters, and most of it is that of a round trip.
        """
        loop = asyncio.get_running_loop()
        exchange = _Exchange(packed, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._send_waiting)
        self._waiting.append(exchange)
        try:
            return await exchange.reply
        except _TROUBLE as error:
            return await self._fail(error)

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), _BATCH):
            self._start(self._exchange(waiting[start : start + _BATCH]))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow_master(self) -> None:
        """Leave a master that the sentinels have replaced; one that lives on goes on to answer for many seconds."""
        with suppress(*_TROUBLE):  # without a word from the sentinels all stays as it is
            async with asyncio.timeout(self.timeout):
                await self._client.connection_pool.get_master_address()

    async def _exchange(self, batch: "Sequence[_Exchange]") -> None:
        async def read_all(connection: Any) -> None:
            for exchange in batch:
                await _read_into(exchange.reply, connection)

        self._in_flight += 1
        try:
            async with asyncio.timeout(self.timeout):
                await self._send_and_read([exchange.packed for exchange in batch], read_all)
        except BaseException as error:
            for exchange in batch:
                if not exchange.reply.done():
                    exchange.reply.set_exception(error)
            if not isinstance(error, _TROUBLE):
                raise
        finally:
            self._in_flight -= 1

    async def _send_and_read(self, packed: bytes | list[bytes], read: Callable[[Any], Awaitable[Any]]) -> Any:
        """Send packed commands and read the replies: what the client does, without what it does around it.

        A connection that fails, or whose answer nobody waits for any more, closes itself and is opened anew by its
        next user.
        """
        if self._client is None:
            self._client = self._connect()
        pool = self._client.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(packed, check_health=False)
            return await read(connection)
        finally:
            if self._sentinels and (connection.host, connection.port) != pool.master_address:
                await connection.disconnect()  # it was in use when the sentinels' word came
            await pool.release(connection)

    async def primaries(self) -> tuple["Primary", ...]:
        """Return every primary of the store: one, or in a Cluster those the nodes agree on. Raises StoreError."""
        if self.address.topology != "Cluster":
            await self.execute("TIME")  # unlike PING, answered also by a server that cannot save
            return (Primary(await self._primary_address(), None),)
        if self._client is None:
            self._client = self._connect()
        await self._answer(self._client.initialize())
        await self._answer(self._client.nodes_manager.initialize())  # nodes may have come or changed their part
        return tuple(Primary(f"{node.host}:{node.port}", node) for node in self._client.get_primaries())

    async def _primary_address(self) -> str:
        if self.address.topology == "Standalone":
            return self.where
        host, port = await self._answer(self._client.connection_pool.get_master_address())
        return f"{host}:{port}"

    async def primary_of(self, key: str) -> str:
        """Return the address of the primary that holds a key."""
        if self.address.topology != "Cluster":
            return await self._primary_address()
        node = self._client.get_node_from_key(key)
        return f"{node.host}:{node.port}"

    async def close(self) -> None:
        """Close all connections; the next command opens new ones."""
        client, self._client = self._client, None
        sentinels, self._sentinels = self._sentinels, ()
        for each in (*sentinels, client):
            if each is not None:
                await each.aclose()


class _Exchange(NamedTuple):
    """A command and the reply that a task waits for; cancelled when the task is."""

    packed: bytes
    reply: asyncio.Future[Any]


async def _read_one(connection: Any) -> Any:
    return await connection.read_response()


async def _read_into(reply: asyncio.Future[Any], connection: Any) -> None:
    try:
        result = await connection.read_response()
    except redis.ResponseError as error:  # the answer to this command; the next one's is yet to come
        if not reply.done():
            reply.set_exception(error)
    else:
        if not reply.done():
            reply.set_result(result)


@dataclass(frozen=True)
class Primary:
    """One primary: its address, and how the client names it as a target (None: there is only one)."""

    address: str
    target: Any


class SyncStore:
    """Commands to one store from threads. Connects when first used; one pool, shared by all threads."""

    def __init__(self, address: StoreAddress, *, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._endpoint = _parse(address)
        self._client: Any = None
        self._sentinels: Sequence[Any] = ()  # clients of their own, which the master's client does not close
        self._sentinels_asked = 0.0

    def _connect(self) -> Any:
        options = self._endpoint.options | _common(self.timeout)
        options["retry"] = Retry(NoBackoff(), 0)
        (host, port), *_ = self._endpoint.hosts
        if self.address.topology == "Cluster":
            options.pop("db")
            nodes = [_ClusterNode(each, at) for each, at in self._endpoint.hosts]
            return _Cluster(startup_nodes=nodes, **options)
        if self.address.topology == "Sentinel":
            settings = self._endpoint.of_sentinels(self.timeout) | {"retry": Retry(NoBackoff(), 0)}
            sentinel = _Sentinel(list(self._endpoint.hosts), sentinel_kwargs=settings, **options)
            self._sentinels = sentinel.sentinels
            return sentinel.master_for(str(self.address.sentinel_master))
        return redis.Redis(host=host, port=port, **options)

    def execute(self, *command: Argument) -> Any:
        """Send one command once and return its reply. Raises StoreError."""
        try:
            if self._client is None:
                self._client = self._connect()
            return self._client.execute_command(*command)
        except (redis.RedisError, OSError) as error:
            failure = classify(error)
            if failure in _STALE:
                self.close()
            if isinstance(error, redis.ResponseError) and failure is StoreFailure.UNEXPECTED_REPLY:
                raise
            raise StoreError(failure, self._endpoint.where) from None

    def fcall(self, function: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Call a function of the library."""
        if self._sentinels and time.monotonic() > self._sentinels_asked + _FOLLOW_SECONDS:
            self._sentinels_asked = time.monotonic()
            # Aside, because sentinels that do not answer must keep no call waiting.
            threading.Thread(target=_follow_master, args=(self._client.connection_pool,), daemon=True).start()
        return self.execute("FCALL", function, len(keys), *keys, *arguments)

    def close(self) -> None:
        """Close all connections; the next command opens new ones."""
        client, self._client = self._client, None
        sentinels, self._sentinels = self._sentinels, ()
        for each in (*sentinels, client):
            if each is not None:
                each.close()

    def set_timeout(self, timeout: float) -> None:
        """Wait so many seconds for each reply from now on."""
        if timeout != self.timeout:
            self.timeout = timeout
            self.close()  # a connection keeps the timeout it was opened with


def _follow_master(pool: Any) -> None:
    """Leave a master that the sentinels have replaced, as `AsyncStore` does."""
    with suppress(*_TROUBLE):
        pool.get_master_address()
