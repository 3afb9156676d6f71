"""What a decision costs Redis by itself: CPU time of its main thread, pipelined, and memory for each subject."""

import asyncio
import itertools
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import redis

from shipkeeper.limits.calls import PolicyCalls
from shipkeeper.limits.store import install_policy
from support.limit_policies import spec_of
from support.redis_server import RedisServer

NAMESPACE: Final = "bench"
_NEVER_REACHED: Final = 10**9
_PERIODS: Final = ("Minute", "Hour", "Day", "Week", "Month")
_PIPELINED: Final = 100
_CALLS: Final = 5000
_SETTLING_SECONDS: Final = 1.0  # Redis ends the growth of its hash tables in the background
_STRIDE: Final = 7919  # a prime: neighbours in time are not neighbours in memory, and none comes twice in a row
_EMPTY_FUNCTION: Final = "#!lua name=empty\nredis.register_function('empty', function(keys, args) return 1 end)"

Command = tuple[str | int, ...]
_pack_command: Any = hiredis.pack_command  # without types


def policy(windows: int, *, amount: int = _NEVER_REACHED, last: int | None = None, spacing: str = "Enforce") -> Any:
    """Return a policy of so many calendar windows, with spacing, active hours and a circuit breaker.

    `amount` is that of each window, `last` that of the longest one.
    """
    periods = [(f"{period.lower()}{turn}", period) for turn, period in itertools.product(range(2), _PERIODS)]
    limits = [{"name": name, "amount": amount, "period": period} for name, period in periods[:windows]]
    limits[-1]["amount"] = last or amount
    return {
        "timeZone": "Europe/Paris",
        "limits": limits,
        "spacing": {"min": "0s", "max": "1ms", "mode": spacing},
        "activeHours": {"rules": [{"times": [{"start": "00:00", "end": "24:00"}]}]},
        "circuitBreaker": {"consecutiveFailures": 3},
    }


POLICIES: Final[Mapping[str, Any]] = {
    **{f"w{windows}": policy(windows) for windows in (1, 3, 5, 10)},
    # One subject calls within any pause, so its spacing must not deny.
    "single": policy(5, spacing="Shadow"),
    "spent": policy(5, last=1),
}


@dataclass(frozen=True)
class Workload:
    """Decisions under one policy over so many subjects, of which all are admitted or all denied."""

    policy: str
    subjects: int = 1000
    allowed: bool = True

    def subject(self, number: int) -> str:
        """Return the subject of a call."""
        return f"s{number * _STRIDE % self.subjects}"

    def commands(self, numbers: Iterable[int]) -> Iterator[Command]:
        """Return what goes over the wire."""
        return charges(self.policy, (self.subject(number) for number in numbers))

    def unexpected(self, replies: Sequence[Any]) -> int:
        """Return how many of the verdicts are not what they should be."""
        calls = PolicyCalls(namespace=NAMESPACE, policy=self.policy)
        return sum(calls.verdict(reply, ("",)).allowed is not self.allowed for reply in replies)


def workloads(many: int) -> dict[str, Workload]:
    """Return what is measured of Shipkeeper; `many` is the greatest number of subjects."""
    return {
        "shipkeeper, 1 window": Workload("w1"),
        "shipkeeper, 3 windows": Workload("w3"),
        "shipkeeper, 5 windows": Workload("w5"),
        "shipkeeper, 10 windows": Workload("w10"),
        "shipkeeper, 5 windows, 1 subject": Workload("single", subjects=1),
        f"shipkeeper, 5 windows, {many:,} subjects": Workload("w5", subjects=many),
        "shipkeeper, 5 windows, denied": Workload("spent", allowed=False),
    }


def charges(policy_name: str, subjects: Iterable[str], cost: int = 1) -> Iterator[Command]:
    """Return a charge for each subject, as the client sends it."""
    calls = PolicyCalls(namespace=NAMESPACE, policy=policy_name)
    for subject in subjects:
        call = calls.acquire((subject,), cost=cost, execution=None, request_id=None)
        yield ("FCALL", call.function, len(call.keys), *call.keys, *call.arguments)


async def prepare(server: RedisServer, works: Iterable[Workload]) -> None:
    """Install policies and functions; every subject has called once, so that no later call is its first."""
    for name, document in POLICIES.items():
        await install_policy(server.url, spec_of(document), namespace=NAMESPACE, name=name)
    with server.client() as client:
        client.function_load(_EMPTY_FUNCTION)
        for work in works:
            send(client, work.commands(range(work.subjects)))


def send(client: redis.Redis, commands: Iterable[Command]) -> list[Any]:
    """Send commands pipelined; return the replies."""
    replies: list[Any] = []
    remaining = iter(commands)
    while batch := list(itertools.islice(remaining, _PIPELINED)):
        pipeline: Any = client.pipeline(transaction=False)
        for command in batch:
            pipeline.execute_command(*command)
        replies += pipeline.execute()
    return replies


@dataclass(frozen=True)
class ServerUse:
    """What Redis has used since it started."""

    cpu_microseconds: float
    """CPU time of the main thread."""
    reads: int
    """Reads from a client's socket."""


def server_use(client: redis.Redis) -> ServerUse:
    """Ask Redis what it has used."""
    info: Any = client.info("cpu", "stats")
    seconds = float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])
    return ServerUse(cpu_microseconds=seconds * 1e6, reads=int(info["total_reads_processed"]))


class BusyConnection:
    """A connection that never lets Redis wait: all is packed before, and more is sent before the replies are read.

    A client that packs as it sends is slower than Redis, which then pays for falling asleep and waking up each time.
    """

    def __init__(self, server: RedisServer) -> None:
        """Connect and authenticate."""
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._reader = hiredis.Reader(encoding="utf-8")
        self.exchange(pack([("AUTH", server.password)]))

    def exchange(self, batches: Sequence[tuple[bytes, int]]) -> list[Any]:
        """Send packed batches of commands; return all replies."""
        replies: list[Any] = []
        awaited = 0
        for packed, commands in batches:
            self._socket.sendall(packed)
            awaited += commands
            self._read_until(replies, awaited - commands)
        return self._read_until(replies, awaited)

    def _read_until(self, replies: list[Any], awaited: int) -> list[Any]:
        while len(replies) < awaited:
            self._reader.feed(self._socket.recv(1 << 20))
            while (reply := self._reader.gets()) is not False:
                replies.append(reply)
        return replies


def pack(commands: Iterable[Command]) -> list[tuple[bytes, int]]:
    """Return commands as they go over the wire, in batches, with the number of each batch's commands."""
    remaining = iter(commands)
    batches = []
    while batch := list(itertools.islice(remaining, _PIPELINED)):
        batches.append((b"".join(_pack_command(command) for command in batch), len(batch)))
    return batches


def pipelined_cost(server: RedisServer, works: Mapping[str, Workload], rounds: int) -> dict[str, list[float]]:
    """Return microseconds of Redis' main thread for one call of each kind, in each round."""
    taken: dict[str, list[float]] = {}
    connection = BusyConnection(server)
    with server.client() as client:
        for turn in range(rounds + 1):
            numbers = range(turn * _CALLS, (turn + 1) * _CALLS)
            kinds: dict[str, Iterable[Command]] = {
                "INCR": (("INCR", "x") for _ in numbers),
                "empty function": (("FCALL", "empty", 1, "x") for _ in numbers),
            }
            kinds |= {name: work.commands(numbers) for name, work in works.items()}
            for name, commands in kinds.items():
                packed = pack(commands)
                before = server_use(client)
                replies = connection.exchange(packed)
                used = server_use(client).cpu_microseconds - before.cpu_microseconds
                taken.setdefault(name, []).append(used / _CALLS)
                if name in works and (wrong := works[name].unexpected(replies)):
                    print(f"{wrong} of {_CALLS} pipelined calls had another verdict than they should: {name}")
    return {name: each[1:] for name, each in taken.items()}  # the first round warms up


async def memory_per_subject(subjects: int, amounts: Sequence[int]) -> dict[int, float]:
    """Return the bytes of one subject's counters beyond an empty key, for each amount, all of it used up."""
    with RedisServer() as server, server.client() as client:

        async def bytes_per_key(amount: int, commands: Sequence[Command]) -> float:
            client.flushdb()
            await install_policy(server.url, spec_of(policy(5, amount=amount)), namespace=NAMESPACE, name="memory")
            before = _used_memory(client)
            send(client, commands)
            await asyncio.sleep(_SETTLING_SECONDS)
            return (_used_memory(client) - before) / subjects

        names = [f"s{number}" for number in range(subjects)]
        using_up = {amount: list(charges("memory", names, amount)) for amount in amounts}
        keys = [charge[3] for charge in using_up[amounts[0]]]
        empty = await bytes_per_key(amounts[0], [("SET", key, "", "PX", 10**9) for key in keys])
        return {amount: await bytes_per_key(amount, each) - empty for amount, each in using_up.items()}


def _used_memory(client: redis.Redis) -> int:
    info: Any = client.info("memory")
    return int(info["used_memory"])
