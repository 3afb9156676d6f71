"""What a decision costs, beside a bare INCR, an empty function and other limiters for Python, in one run.

Systems take turns in short slots, round by round, so that a busy machine disturbs all alike. The first round warms up
and is thrown away. Figures are medians over the rounds; a ratio is the median of each round's own ratio. Redis has the
first core, the client the last one. Round trips are reads from a socket while one task calls. They do not suffer from
a busy machine, ratios suffer little, CPU time (of Redis' main thread, of the client's process) may double, rates and
latencies say nothing there: the load average when it began stands in the first line.

INCR is sent by the same client library with the limiter's own settings, a timeout included; one row is without it. The
limiter sends calls that several tasks make in one turn of the event loop together, which INCR's client does not: an
empty function sent that way shows what is left for the decision itself.
Every policy has spacing, active hours and a circuit breaker beside its windows, and none of them denies: it is checked.
With one subject the spacing is in Shadow mode, since any pause would deny. Where not said otherwise, 1,000 subjects
take turns. `denied`: of five windows the longest is used up.

It needs redis-server and the extra `benchmarks`: `make bench-limits` installs both. It takes about three minutes, and
ends with status 0 whether the targets are met or not.
"""

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from benchmarks.limits_cost import (
    NAMESPACE,
    Workload,
    memory_per_subject,
    pipelined_cost,
    prepare,
    server_use,
    workloads,
)
from benchmarks.limits_peers import peers
from benchmarks.report import (
    Bar,
    Chart,
    Machine,
    Role,
    Target,
    print_chart,
    print_table,
    print_targets,
    this_machine,
    write_json,
    write_picture,
)
from shipkeeper.limits import AsyncLimiter
from shipkeeper.limits.connection import AsyncStore, StoreAddress
from support.limit_policies import PATIENT
from support.redis_server import RedisServer

CONCURRENT: Final = 20
SLOT_SECONDS: Final = 0.2
AMOUNTS: Final = (15, 1_000_000)
PACKAGES: Final = ("redis", "hiredis", "limits", "pyrate-limiter", "throttled-py")
INCR, EMPTY, EMPTY_AS_SENT = "INCR", "empty function", "empty function, as a decision is sent"
FULL, DENIED = "shipkeeper, 5 windows", "shipkeeper, 5 windows, denied"

AsExpected = Callable[[int], Awaitable[bool]]


@dataclass(frozen=True)
class System:
    """What takes turns: makes the call of a number and returns whether it had the verdict that it should."""

    role: Role
    call: AsExpected


@dataclass(frozen=True)
class Slot:
    """What was measured of one system in one turn."""

    rate: float
    """Calls per second."""
    p50: float
    p99: float
    """Milliseconds from the call to its verdict."""
    client_cpu: float
    redis_cpu: float
    """Microseconds for one call."""
    trips: float
    """Reads from a socket for one call, by Redis: a round trip each, unless calls of several tasks share one."""


Measured = dict[tuple[str, int], list[Slot]]


def median(slots: Sequence[Slot], figure: str) -> float:
    """Return the median of a figure over the rounds."""
    return statistics.median([float(getattr(slot, figure)) for slot in slots])


def ratio(slots: Sequence[Slot], base: Sequence[Slot], figure: str) -> float:
    """Return the median of a figure's ratios, each of two slots of one round."""
    pairs = zip(slots, base, strict=True)
    return statistics.median([float(getattr(slot, figure)) / float(getattr(other, figure)) for slot, other in pairs])


async def one_slot(name: str, system: System, numbers: Iterator[int], tasks: int, admin: redis.Redis) -> Slot:
    """Let so many tasks call for a slot's time."""
    spans: list[float] = []
    wrong = 0

    async def caller() -> None:
        nonlocal wrong
        start = time.perf_counter()
        while start < end:
            expected = await system.call(next(numbers))
            wrong += not expected
            now = time.perf_counter()
            spans.append(now - start)
            start = now

    used, cpu, began = server_use(admin), time.process_time(), time.perf_counter()
    end = began + SLOT_SECONDS
    await asyncio.gather(*(caller() for _ in range(tasks)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    now = server_use(admin)
    if wrong:
        print(f"{wrong} of {len(spans)} calls had another verdict than they should: {name}")
    spans.sort()
    calls = len(spans)
    return Slot(
        rate=calls / seconds,
        p50=spans[calls // 2] * 1e3,
        p99=spans[int(calls * 0.99)] * 1e3,
        client_cpu=cpu / calls * 1e6,
        redis_cpu=(now.cpu_microseconds - used.cpu_microseconds) / calls,
        trips=(now.reads - used.reads - 1) / calls,  # one of them asked for these figures
    )


def raw_client(server: RedisServer, timeout: float | None) -> Any:
    """Return the client library's own client, with the limiter's settings."""
    return redis.asyncio.Redis(
        port=server.port,
        password=server.password,
        decode_responses=True,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
    )


def raw_call(client: Any, *command: str | int) -> AsExpected:
    """Return a call of one command."""

    async def call(_number: int) -> bool:
        return bool(await client.execute_command(*command))

    return call


def stored_call(store: AsyncStore, function: str, key: str) -> AsExpected:
    """Return a call of a function over the limiter's own connection."""

    async def call(_number: int) -> bool:
        return bool(await store.fcall(function, [key], []))

    return call


def limiter_call(limiter: AsyncLimiter, work: Workload) -> AsExpected:
    """Return a decision of the workload."""

    async def call(number: int) -> bool:
        return (await limiter.acquire(work.subject(number))).allowed is work.allowed

    return call


async def all_systems(server: RedisServer, works: Mapping[str, Workload], opened: AsyncExitStack) -> dict[str, System]:
    """Return everything that takes turns; what must be closed is given to the stack."""
    raw, patient = [await opened.enter_async_context(raw_client(server, timeout)) for timeout in (60, None)]
    systems = {
        INCR: System("baseline", raw_call(raw, "INCR", "x")),
        "INCR without a timeout": System("baseline", raw_call(patient, "INCR", "x")),
        EMPTY: System("baseline", raw_call(raw, "FCALL", "empty", 1, "x")),
    }
    store = AsyncStore(StoreAddress(url=server.url), timeout=60)
    opened.push_async_callback(store.close)
    systems[EMPTY_AS_SENT] = System("baseline", stored_call(store, "empty", "x"))
    for name, work in works.items():
        limiter = AsyncLimiter.from_url(
            server.url, namespace=NAMESPACE, policy=work.policy, on_store_unavailable=PATIENT
        )
        systems[name] = System("ours", limiter_call(await opened.enter_async_context(limiter), work))
    subject = works[FULL].subject
    for name, decide in (await peers(server.url, raw)).items():
        systems[name] = System("peer", lambda number, decide=decide: decide(subject(number)))  # type: ignore[misc]
    return systems


async def call_once_each(call: AsExpected, subjects: int) -> None:
    """Let every subject call once: a peer must not look slow because its counters begin within the measurement."""
    numbers = iter(range(subjects))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))


async def take_turns(systems: Mapping[str, System], admin: redis.Redis, rounds: int) -> Measured:
    """Give every system its slot in every round, alone and with many tasks at once."""
    measured: Measured = {(name, tasks): [] for tasks in (1, CONCURRENT) for name in systems}
    numbers = itertools.count()
    for turn in range(rounds + 1):
        for name, tasks in measured:
            slot = await one_slot(name, systems[name], numbers, tasks, admin)
            if turn:
                measured[name, tasks].append(slot)
    return measured


def show_speed(measured: Measured, rounds: int) -> None:
    """Print what the clients see."""
    columns = ("", "calls/s", "/ INCR", "p50 ms", "p99 ms", "/ INCR", "trips", "Redis us", "client us")
    for tasks, title in ((1, "One call at a time"), (CONCURRENT, f"{CONCURRENT} calls at a time")):
        base = measured[INCR, tasks]
        rows = [
            speed_row(name, slots, base) for (name, in_this_table), slots in measured.items() if in_this_table == tasks
        ]
        print_table(f"{title}, medians of {rounds} rounds; trips and CPU time are for one call", columns, rows)


def speed_row(name: str, slots: Sequence[Slot], base: Sequence[Slot]) -> tuple[str, ...]:
    """Return a system's row beside INCR's slots."""
    return (
        name,
        f"{median(slots, 'rate'):,.0f}",
        f"{ratio(slots, base, 'rate'):.2f}",
        f"{median(slots, 'p50'):.2f}",
        f"{median(slots, 'p99'):.2f}",
        f"{ratio(slots, base, 'p99'):.2f}",
        f"{median(slots, 'trips'):.2f}",
        f"{median(slots, 'redis_cpu'):.1f}",
        f"{median(slots, 'client_cpu'):.0f}",
    )


@dataclass(frozen=True)
class Results:
    """Everything of one run."""

    machine: Machine
    rounds: int
    subjects: int
    systems: Mapping[str, System]
    speed: Measured
    pipelined: Mapping[str, Sequence[float]]
    """Microseconds of Redis' main thread for one call, in each round."""
    memory: Mapping[int, float]
    """Bytes of a subject, for each amount."""

    @property
    def pipelined_medians(self) -> dict[str, float]:
        """Microseconds of Redis' main thread for one call."""
        return {name: statistics.median(costs) for name, costs in self.pipelined.items()}


def chart_of(results: Results) -> Chart:
    """Return the comparison at five windows."""
    measured, systems = results.speed, results.systems
    shown = [
        name for name, each in systems.items() if each.role == "peer" or name in (INCR, EMPTY, EMPTY_AS_SENT, FULL)
    ]
    bars = [
        Bar(
            name,
            median(measured[name, CONCURRENT], "rate"),
            systems[name].role,
            f"(p99 {median(measured[name, CONCURRENT], 'p99'):.1f} ms)",
        )
        for name in shown
    ]
    return Chart(f"Decisions per second, {CONCURRENT} at a time, one Python process", "1/s, more is better", bars)


def targets_of(results: Results) -> list[Target]:
    """Compare what was promised with what came out."""
    measured, memory = results.speed, results.memory
    cost = results.pipelined_medians[FULL]
    pairs = zip(results.pipelined[DENIED], results.pipelined[FULL], strict=True)
    denied = statistics.median([of_denied / of_admitted for of_denied, of_admitted in pairs])
    full, base = measured[FULL, CONCURRENT], measured[INCR, CONCURRENT]
    rate, p99 = ratio(full, base, "rate"), ratio(full, base, "p99")
    trips = median(measured[FULL, 1], "trips")
    of_five = [name for name, each in results.systems.items() if each.role == "peer" and ", 5 " in name]
    best = max(of_five, key=lambda name: median(measured[name, CONCURRENT], "rate"))
    ahead = ratio(full, measured[best, CONCURRENT], "rate")
    low, high = (memory[amount] for amount in AMOUNTS)
    most, growth = round(max(memory.values())), round(high - low)
    return [
        Target("decisions/s, full mix at 5 windows / INCR", "at least 0.85", f"{rate:.2f}", rate >= 0.85),
        Target("p99, full mix at 5 windows / INCR", "at most 1.3", f"{p99:.2f}", p99 <= 1.3),
        Target("round trips for one decision", "1", f"{trips:.2f}", round(trips, 2) == 1),
        Target(f"decisions/s / best peer at 5 windows ({best})", "above 1", f"{ahead:.2f}", ahead > 1),
        Target("Redis CPU, 5 windows, pipelined", "at most 12 us", f"{cost:.1f} us", cost <= 12),
        Target(
            "Redis CPU, denied / admitted, pipelined",
            "below 1",
            f"{denied:.2f}",
            denied < 1,
        ),
        Target("memory for a subject beyond an empty key", "at most 200 bytes", f"{most} bytes", most <= 200),
        Target(
            f"more memory at amount {AMOUNTS[1]:,} than at {AMOUNTS[0]}",
            "0 bytes",
            f"{growth} bytes",
            growth <= 0,
        ),
    ]


async def measure(rounds: int, subjects: int) -> Results:
    """Measure everything."""
    works = workloads(subjects)
    cores = sorted(os.sched_getaffinity(0))
    with RedisServer() as server, server.client() as admin:
        info: Any = admin.info("server")
        machine = this_machine(PACKAGES, {"Redis": str(info["redis_version"])})
        print(f"{machine.text}\nMeasuring takes about three minutes ...", flush=True)
        os.sched_setaffinity(server.pid, {cores[0]})
        os.sched_setaffinity(0, {cores[-1]})
        await prepare(server, works.values())
        pipelined = pipelined_cost(server, works, rounds)
        async with AsyncExitStack() as opened:
            systems = await all_systems(server, works, opened)
            for system in systems.values():
                if system.role == "peer":
                    await call_once_each(system.call, works[FULL].subjects)
            speed = await take_turns(systems, admin, rounds)
    os.sched_setaffinity(0, cores)
    memory = await memory_per_subject(subjects, AMOUNTS)
    return Results(machine, rounds, subjects, systems, speed, pipelined, memory)


def show(results: Results, chart: Chart, targets: Sequence[Target]) -> None:
    """Print everything."""
    show_speed(results.speed, results.rounds)
    medians = results.pipelined_medians
    costs = [(name, f"{cost:.2f}", f"{cost - medians[EMPTY]:.2f}") for name, cost in medians.items()]
    print_table("CPU time of Redis' main thread, pipelined (us)", ("", "one call", "beyond an empty function"), costs)
    sizes = [(f"amount {amount:,}, all used", f"{size:.0f}") for amount, size in results.memory.items()]
    title = f"Memory of each of {results.subjects:,} subjects, 5 windows (bytes)"
    print_table(title, ("", "beyond an empty key"), sizes)
    print_chart(chart)
    print_targets(targets)


def figures_of(results: Results) -> dict[str, Any]:
    """Return all medians, for a file."""
    speed = [
        {
            "system": name,
            "tasks": tasks,
            **{figure: median(slots, figure) for figure in asdict(slots[0])},
            **{f"{figure}_to_incr": ratio(slots, results.speed[INCR, tasks], figure) for figure in ("rate", "p99")},
        }
        for (name, tasks), slots in results.speed.items()
    ]
    return {
        "speed": speed,
        "pipelined_redis_cpu_us": results.pipelined_medians,
        "memory_bytes_by_amount": results.memory,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds, after one that warms up")
    parser.add_argument("--subjects", type=int, default=100_000, help="the greatest number of subjects")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="write the bars as SVG")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures")
    options = parser.parse_args()
    results = asyncio.run(measure(options.rounds, options.subjects))
    chart, targets = chart_of(results), targets_of(results)
    show(results, chart, targets)
    if options.picture:
        write_picture(options.picture, chart, results.machine)
    if options.json:
        write_json(options.json, results.machine, targets, figures_of(results))


if __name__ == "__main__":
    main()
