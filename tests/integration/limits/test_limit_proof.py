"""The limiter's promise, on a real Redis against an oracle in plain Python.

Admitted never exceeds the limit, a denied call charges nothing, counters equal what was admitted, and a retry time is
neither early nor late: under random policies and random traffic, with edits in the middle, by one program in lock step
and by several processes whose verdicts are replayed afterwards; and the oracle notices when the library is wrong.
"""

import ast
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from shipkeeper.limits import Limiter, Reservation
from shipkeeper.limits.function_library import library_text_with_test_clock
from shipkeeper.limits.keys import PolicyKeys
from shipkeeper.resources.ratelimitpolicy import RateLimitPolicySpec
from shipkeeper.resources.schedule import WEEKDAYS, milliseconds
from support import circuit_oracle, limit_oracle, wall_clock
from support.limit_callers import (
    Answer,
    Traffic,
    acquire_for_a_while,
    acquire_requests,
    caller_processes,
    reserve_for_a_while,
)
from support.limit_machine import LimiterMachine, Store
from support.limit_oracle import ROLLING_STEPS, Charge, Oracle, decide, overdrawn
from support.limit_policies import NAMESPACE, PATIENT, TimedPolicy, TimedPolicyMaker, install, put_policy, spec_of
from support.limit_policies import milliseconds_at as at
from support.limit_strategies import EDGES, STEPS, Document, fast_policies, limit_lists, policies
from support.redis_server import RedisServer
from support.wall_clock import HOUR, MINUTE, SECOND, milliseconds_of

pytestmark = pytest.mark.integration

PROCESSES = 4
ORDER = "order"
ANY_POLICY = policies(bursts=True, modes=True, breaker=True)
FIRST_USE = {"alignment": "FirstUse"}
_numbers = itertools.count()
# Every run tries the same; a failure is repeated from its printed steps.
REPEATABLE = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def callers() -> Iterator[ProcessPoolExecutor]:
    """Processes that ask at the same time."""
    with caller_processes(PROCESSES) as pool:
        yield pool


@pytest.fixture(scope="module")
def emptied_server() -> Iterator[RedisServer]:
    """A server that is emptied before every history."""
    with RedisServer() as server:
        yield server


def hours_of(*ranges: tuple[str, str], days: tuple[str, ...] = (), exceptions: tuple[Document, ...] = ()) -> Document:
    rule: Document = {"times": [{"start": start, "end": end} for start, end in ranges]}
    return {"rules": [rule | ({"days": list(days)} if days else {})], "exceptions": list(exceptions)}


def run_histories(
    server: RedisServer, library: str, how: settings, *, first: st.SearchStrategy[Document] = ANY_POLICY
) -> None:
    store = Store(server, library)
    try:
        run_state_machine_as_test(lambda: LimiterMachine(store, first), settings=how)  # type: ignore[arg-type]
    finally:
        store.close()


def test_random_histories_with_edits_match_the_oracle(emptied_server: RedisServer) -> None:
    run_histories(
        emptied_server, library_text_with_test_clock(), settings(REPEATABLE, max_examples=60, stateful_step_count=40)
    )


def of(**rules: Any) -> st.SearchStrategy[Document]:
    """A policy of a generous limit and these rules, so that histories come soon to what they are about."""
    plain = {"timeZone": st.just("Europe/Paris"), "limits": st.just([{"name": "alpha", "amount": 40, "period": "Day"}])}
    return st.fixed_dictionaries(plain | rules)


QUICK_TO_OPEN = st.just({"consecutiveFailures": 1, "openTime": {"initial": "700ms", "max": "5s"}})
MONTH = st.just([{"name": "alpha", "amount": 40, "period": "Month"}])
ROLLING = st.just([{"name": "alpha", "amount": 3, "period": "10m", "alignment": "Rolling"}])
# Faults of the library that the histories must notice: what is replaced, by what, and under which policies it shows.
MUTATIONS: dict[str, tuple[str, str, st.SearchStrategy[Document]]] = {
    "a unit too many": ("format('%s + cost > %s', used", "format('%s + cost > %s + 1', used", ANY_POLICY),
    "a window a tick too long": (
        "cfg.windows_until = from, first_end",
        "cfg.windows_until = from, first_end + 1",
        of(limits=st.just([{"name": "alpha", "amount": 2, "period": "Minute"}])),
    ),
    "an edit that forgets": ("v[record.place] = kept", "v[record.place] = 0", of(limits=MONTH)),
    "a step given back early": (
        "if excess <= 0 then return (v[at] - i + ROLLING_STEPS + 1)",
        "if excess <= 0 then return (v[at] - i + ROLLING_STEPS)",
        of(limits=ROLLING),
    ),
    "a pause that nobody keeps": ("if spacing and account.v[spacing.at] > now", "if spacing and now < 0", ANY_POLICY),
    "an hour a tick too long": (
        "if now < open + length then",
        "if now <= open + length then",
        of(activeHours=st.just(hours_of(("07:00", "12:00"), ("13:00", "19:00")))),
    ),
    "a late report that counts": (
        "if tonumber(generation) ~= circuit.generation or",
        "if",
        of(circuitBreaker=QUICK_TO_OPEN),
    ),
    "a probe too many": ("if count >= b.permits then", "if count > b.permits then", of(circuitBreaker=QUICK_TO_OPEN)),
    "a cancel that gives nothing back": ("if not commits then", "if not commits and now < 0 then", of()),
    "a request charged twice": ("if first then return", "if first and now < 0 then return", of()),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_oracle_notices_a_wrong_library(emptied_server: RedisServer, mutation: str) -> None:
    right, wrong, first = MUTATIONS[mutation]
    library = library_text_with_test_clock()
    assert library.count(right) == 1, f"the library has changed: write the mutation {mutation!r} anew"
    quick = settings(REPEATABLE, max_examples=150, stateful_step_count=40, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_histories(emptied_server, library.replace(right, wrong), quick, first=first)


def test_the_oracle_knows_the_models_alone() -> None:
    """It must not compute with what it judges."""
    for module in (limit_oracle, circuit_oracle, wall_clock):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        imported = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        assert not {name for name in imported if "shipkeeper" in name and not name.startswith("shipkeeper.resources.")}


def milliseconds_now(server: RedisServer) -> int:
    """Return the store's clock."""
    with server.client() as connection:
        seconds, microseconds = connection.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def ask_in_all(pool: ProcessPoolExecutor, server: RedisServer, policy: str, **traffic: Any) -> list[Future[Any]]:
    """Start the same traffic in every process, each from a seed of its own."""
    what, seed = traffic.pop("what"), traffic.pop("seed", 0)
    return [
        pool.submit(what, Traffic(url=server.url, policy=policy, seed=seed * PROCESSES + number, **traffic))
        for number in range(PROCESSES)
    ]


def in_order(answers: list[Answer], hashes: list[str]) -> list[Answer]:
    """Sort verdicts as the store gave them: by what was charged until then, and a denial after the charge it saw.

    Denials between two charges change nothing, so that their order within a millisecond does not matter.
    """

    def place(answer: Answer) -> tuple[int, bool, int, int]:
        return -dict(answer.remaining)[ORDER], not answer.allowed, answer.at, hashes.index(answer.config_hash)

    return sorted(answers, key=place)


def limit_that_tells_the_order() -> Document:
    """Return a limit that never binds: what is left of it tells the order of calls within one millisecond."""
    # Its week ends three days from now, so that none ends during a test.
    week_start = WEEKDAYS[(datetime.now(UTC).weekday() + 3) % 7]
    return {"name": ORDER, "amount": 1_000_000_000, "period": "Week", "weekStart": week_start}


@settings(REPEATABLE, max_examples=5)
@given(versions=st.lists(fast_policies(), min_size=1, max_size=2), seed=st.integers(0, 10_000))
def test_verdicts_of_several_processes_replay_through_the_oracle(
    redis_server: RedisServer, callers: ProcessPoolExecutor, versions: list[Document], seed: int
) -> None:
    keys = PolicyKeys(namespace=NAMESPACE, policy=f"replayed-{next(_numbers)}")
    order = limit_that_tells_the_order()
    zone = {"timeZone": versions[0]["timeZone"]}
    documents = [version | zone | {"limits": [order, *version["limits"]]} for version in versions]
    by_execution = any(limit["period"] == "Execution" for version in versions for limit in version["limits"])
    install(redis_server, keys.policy, documents[0])
    hashes = []
    with redis_server.client() as connection:
        hashes.append(put_policy(connection, keys, documents[0], milliseconds_now(redis_server)))
        edited = len(documents) > 1
        asking = ask_in_all(
            callers,
            redis_server,
            keys.policy,
            what=acquire_for_a_while,
            seed=seed,
            seconds=2.0 if edited else 1.2,
            executions=("run-a", "run-b") if by_execution else (None,),
        )
        if edited:
            time.sleep(0.5)
            hashes.append(put_policy(connection, keys, documents[1], milliseconds_now(redis_server)))
        answers = in_order([answer for told in asking for answer in told.result(timeout=60)], hashes)
    assert {answer.config_hash for answer in answers} == set(hashes)
    assert [answer.at for answer in answers] == sorted(answer.at for answer in answers)

    charges = replay(answers, {known: spec_of(document) for known, document in zip(hashes, documents, strict=True)})
    assert edited or overdrawn(spec_of(documents[0]), charges) == {}


def replay(answers: list[Answer], specs: dict[str, RateLimitPolicySpec]) -> list[Charge]:
    """Ask the oracle what the processes asked the store, at the store's own instants; return what it charged."""
    oracle = Oracle(specs[answers[0].config_hash])
    for answer in answers:
        oracle.spec = specs[answer.config_hash]
        expected = decide([oracle], answer.at, answer.cost, answer.execution)
        assert (answer.allowed, answer.retry_at) == (expected.allowed, expected.retry_at), (answer, expected)
        if answer.allowed:
            spacing, pause = oracle.spec.spacing, (answer.next_call_at or answer.at) - answer.at
            if spacing is not None:
                assert milliseconds(spacing.min) <= pause <= milliseconds(spacing.max)
            oracle.charge(answer.at, answer.cost, answer.execution, next_call=answer.next_call_at or 0)
        else:
            assert answer.rule in expected.binding
        assert dict(answer.remaining) == oracle.remaining(answer.at, answer.execution)
    return oracle.charges


def test_a_request_that_every_process_sends_is_charged_once(
    redis_server: RedisServer, callers: ProcessPoolExecutor, policy_name: str
) -> None:
    install(redis_server, policy_name, {"limits": [{"name": "day", "amount": 30, "period": "Day"}]})
    requests = tuple(f"message-{number}" for number in range(20))
    asking = ask_in_all(callers, redis_server, policy_name, what=acquire_requests, seconds=0, requests=requests)
    answers = [answer for told in asking for answer in told.result(timeout=60)]
    assert len(answers) > 2 * len(requests)
    assert all(answer.allowed for answer in answers)
    first = [answer for answer in answers if not answer.replayed]
    assert sorted(str(answer.request) for answer in first) == sorted(requests)
    assert sorted(left for answer in first for _, left in answer.remaining) == list(range(10, 30))
    with Limiter.from_url(redis_server.url, namespace=NAMESPACE, policy=policy_name) as limiter:
        assert limiter.peek().limits[0].remaining == 10


def test_reservations_of_several_processes_conserve_units(
    redis_server: RedisServer, callers: ProcessPoolExecutor, policy_name: str
) -> None:
    amount = 60
    install(redis_server, policy_name, {"limits": [{"name": "day", "amount": amount, "period": "36h", **FIRST_USE}]})
    kept = [
        told.result(timeout=60)
        for told in ask_in_all(callers, redis_server, policy_name, what=reserve_for_a_while, seconds=1.0)
    ]
    time.sleep(0.05)  # the longest lease that is left to itself
    with Limiter.from_url(
        redis_server.url, namespace=NAMESPACE, policy=policy_name, on_store_unavailable=PATIENT
    ) as limiter:
        assert limiter.peek().limits[0].remaining == amount - sum(kept)
    assert 0 < sum(kept) <= amount


@pytest.mark.parametrize(
    "window",
    [
        {"period": "Execution"},
        {"period": "Day"},
        {"period": "1h", "alignment": "FirstUse"},
        {"period": "1h", "alignment": "Rolling"},
    ],
    ids=["execution", "calendar", "first use", "rolling"],
)
def test_units_of_an_ended_lease_are_back_in_real_time(
    redis_server: RedisServer, policy_name: str, window: Document
) -> None:
    """As in production, where the store itself forgets a state that no longer matters."""
    install(redis_server, policy_name, {"limits": [{"name": "limit", "amount": 3, **window}]})
    url = redis_server.url
    with Limiter.from_url(url, namespace=NAMESPACE, policy=policy_name, on_store_unavailable=PATIENT) as limiter:
        lease = timedelta(milliseconds=300)
        held = limiter.reserve(cost=3, lease=lease, execution="run").verdict
        assert (held.allowed, held.limits[0].remaining) == (True, 0)
        time.sleep(lease.total_seconds() + 0.05)
        assert limiter.acquire(cost=3, execution="run").allowed


@settings(REPEATABLE, max_examples=40)
@given(
    document=policies(),
    shadows=limit_lists(),
    edge=st.sampled_from(EDGES),
    traffic=st.lists(st.tuples(STEPS, st.integers(1, 3), st.booleans()), min_size=1, max_size=20),
)
def test_shadow_limits_change_no_verdict(
    timed: TimedPolicyMaker,
    document: Document,
    shadows: list[Document],
    edge: int,
    traffic: list[tuple[int, int, bool]],
) -> None:
    if "spacing" in document:
        document["spacing"] = {"min": "30s", "max": "30s"}  # two policies would draw two pauses
    shadow = [limit | {"name": f"shadow-{limit['name']}", "mode": "Shadow"} for limit in shadows]
    plain = timed(document, edge)
    # Before, between and after the others.
    watched = timed(document | {"limits": [*shadow[:1], *document["limits"], *shadow[1:]]}, edge)
    now = edge
    for step, cost, settles in traffic:
        now += step
        plain.set_clock(now)
        told = []
        for policy in (plain, watched):
            reservation = policy.limiter.reserve(cost=cost, execution="run", lease=timedelta(minutes=1))
            verdict = reservation.verdict
            told.append(
                (
                    (verdict.allowed, verdict.rule, verdict.reason, verdict.retry_at, verdict.next_call_at),
                    {limit.name: limit.remaining for limit in verdict.limits if "shadow-" not in limit.name},
                )
            )
            if settles and verdict.allowed:
                policy.limiter.commit(reservation)
        assert told[0] == told[1]


# Windows over which the clock changes, a month, a year or a leap day ends: zone, period, start in UTC, length in hours.
WINDOWS = [
    ("Europe/Paris", "Day", "2026-03-28T23:00", 23),
    ("Europe/Paris", "Day", "2026-10-24T22:00", 25),
    ("Europe/Paris", "Hour", "2026-03-29T00:00", 1),
    ("Europe/Paris", "Hour", "2026-10-25T00:00", 1),
    ("Europe/Paris", "Week", "2026-03-22T23:00", 7 * 24 - 1),
    ("Europe/Paris", "Week", "2026-10-18T22:00", 7 * 24 + 1),
    ("Europe/Paris", "Month", "2026-09-30T22:00", 31 * 24 + 1),
    ("America/New_York", "Day", "2026-03-08T05:00", 23),
    ("America/New_York", "Day", "2026-11-01T04:00", 25),
    ("America/New_York", "Week", "2026-03-02T05:00", 7 * 24 - 1),
    ("Australia/Lord_Howe", "Day", "2026-04-04T13:00", 24.5),
    ("Australia/Lord_Howe", "Day", "2026-10-03T13:30", 23.5),
    ("Australia/Lord_Howe", "Hour", "2026-04-04T14:00", 1.5),
    ("Australia/Lord_Howe", "Hour", "2026-10-03T15:30", 0.5),
    ("Asia/Kolkata", "Day", "2026-03-28T18:30", 24),
    ("Asia/Kolkata", "Day", "2026-10-24T18:30", 24),
    ("Europe/Paris", "Week", "2026-12-27T23:00", 7 * 24),
    ("Europe/Paris", "Month", "2026-11-30T23:00", 31 * 24),
    ("Asia/Kolkata", "Month", "2026-12-31T18:30", 31 * 24),
    ("Europe/Paris", "Day", "2026-12-31T23:00", 24),
    ("Europe/Paris", "Month", "2028-01-31T23:00", 29 * 24),
    ("Europe/Paris", "Day", "2028-02-28T23:00", 24),
    ("Europe/Paris", "Month", "2027-01-31T23:00", 28 * 24),
]


@pytest.mark.parametrize(("zone", "period", "start", "hours"), WINDOWS)
def test_a_calendar_window_is_as_long_as_its_wall_clock_says(
    timed: TimedPolicyMaker, zone: str, period: str, start: str, hours: float
) -> None:
    first, end = at(start), at(start) + round(hours * HOUR)
    policy = timed({"timeZone": zone, "limits": [{"name": "window", "amount": 2, "period": period}]}, first - 1)
    assert policy.limiter.acquire(cost=2).allowed, "the last tick of the window before takes nothing from this one"
    for now, passes in ((first, True), (end - 1, False), (end, True)):
        policy.set_clock(now)
        verdict = policy.limiter.acquire(cost=2)
        assert verdict.allowed == passes
        assert milliseconds_of(verdict.retry_at) == (None if passes else end)
        assert now == end or milliseconds_of(verdict.limits[0].resets_at) == end


def closed_on(date: str, *ranges: tuple[str, str]) -> Document:
    return {"date": date, "times": [{"start": start, "end": end} for start, end in ranges]}


# Zone, hours, from where to look, and the stretches (UTC) in which calls pass until the last one's end.
OPENINGS: list[tuple[str, str, Document, str, list[tuple[str, str]]]] = [
    (
        "over midnight into the short night",
        "Europe/Paris",
        hours_of(("22:00", "04:00")),
        "2026-03-28T20:00",
        [("2026-03-28T21:00", "2026-03-29T02:00"), ("2026-03-29T20:00", "2026-03-30T02:00")],
    ),
    (
        "over midnight into the long night",
        "Europe/Paris",
        hours_of(("22:00", "04:00")),
        "2026-10-24T12:00",
        [("2026-10-24T20:00", "2026-10-25T03:00"), ("2026-10-25T21:00", "2026-10-26T03:00")],
    ),
    (
        "a range that is skipped",
        "Europe/Paris",
        hours_of(("02:00", "03:00")),
        "2026-03-28T12:00",
        [("2026-03-30T00:00", "2026-03-30T01:00")],
    ),
    (
        "a range that comes twice",
        "America/New_York",
        hours_of(("01:15", "01:45")),
        "2026-11-01T00:00",
        [
            ("2026-11-01T05:15", "2026-11-01T05:45"),
            ("2026-11-01T06:15", "2026-11-01T06:45"),
            ("2026-11-02T06:15", "2026-11-02T06:45"),
        ],
    ),
    (
        "a change by half an hour",
        "Australia/Lord_Howe",
        hours_of(("01:00", "02:15")),
        "2026-10-03T12:00",
        [("2026-10-03T14:30", "2026-10-03T15:30"), ("2026-10-04T14:00", "2026-10-04T15:15")],
    ),
    (
        "a week end over the year's end",
        "Asia/Kolkata",
        hours_of(("09:00", "18:00"), days=("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")),
        "2027-01-01T04:00",
        [("2027-01-01T04:00", "2027-01-01T12:30"), ("2027-01-04T03:30", "2027-01-04T12:30")],
    ),
    (
        "dates with hours of their own",
        "Europe/Paris",
        hours_of(
            ("07:00", "19:00"),
            exceptions=(closed_on("2026-12-25"), closed_on("2026-12-31", ("22:00", "02:00")), closed_on("2027-01-01")),
        ),
        "2026-12-24T17:00",
        [
            ("2026-12-24T17:00", "2026-12-24T18:00"),
            ("2026-12-26T06:00", "2026-12-26T18:00"),
            ("2026-12-27T06:00", "2026-12-27T18:00"),
            ("2026-12-28T06:00", "2026-12-28T18:00"),
            ("2026-12-29T06:00", "2026-12-29T18:00"),
            ("2026-12-30T06:00", "2026-12-30T18:00"),
            ("2026-12-31T21:00", "2027-01-01T01:00"),
            ("2027-01-02T06:00", "2027-01-02T18:00"),
        ],
    ),
]


@pytest.mark.parametrize(
    ("zone", "hours", "since", "stretches"), [each[1:] for each in OPENINGS], ids=[each[0] for each in OPENINGS]
)
def test_calls_pass_exactly_while_the_wall_clock_shows_active_hours(
    timed: TimedPolicyMaker, zone: str, hours: Document, since: str, stretches: list[tuple[str, str]]
) -> None:
    now = at(since)
    policy = timed({"timeZone": zone, "activeHours": hours}, now)
    for opens, closes in [(at(opens), at(closes)) for opens, closes in stretches]:
        if now < opens:
            for closed in (now, opens - 1):
                policy.set_clock(closed)
                verdict = policy.limiter.peek()
                assert (verdict.allowed, verdict.rule) == (False, "activeHours")
                assert milliseconds_of(verdict.retry_at) == opens
        for instant in (opens, (opens + closes) // 2, closes - 1):
            policy.set_clock(instant)
            assert policy.limiter.peek().allowed
        now = closes
    policy.set_clock(now)
    assert not policy.limiter.peek().allowed


EIGHT = at("2026-11-24T08:00")
LIMIT = {"name": "limit", "amount": 2}
HALF_OPEN = {"permits": 1, "permitTimeout": "7s"}
FAILING = {"consecutiveFailures": 2, "openTime": {"initial": "5s", "max": "60s"}, "halfOpen": HALF_OPEN}
# A policy that admits two calls of one unit at 08:00 and no third; when it names the third; which reason it gives.
DENIALS: dict[str, tuple[Document, int, str]] = {
    "Calendar": ({"limits": [LIMIT | {"period": "Day"}]}, 16 * HOUR, "LimitReached"),
    "Rolling": ({"limits": [LIMIT | {"period": "16m", "alignment": "Rolling"}]}, 17 * MINUTE, "LimitReached"),
    "FirstUse": ({"limits": [LIMIT | {"period": "1h", "alignment": "FirstUse"}]}, HOUR, "LimitReached"),
    "burst": (
        {"limits": [{"name": "limit", "amount": 60, "period": "1h", "alignment": "Rolling", "burst": 2}]},
        MINUTE,
        "LimitReached",
    ),
    "circuit open": ({"circuitBreaker": FAILING}, 5 * SECOND, "CircuitOpen"),
    "moved to the opening": (
        {"limits": [LIMIT | {"period": "Day"}], "activeHours": hours_of(("07:00", "19:00"))},
        23 * HOUR,
        "LimitReached",
    ),
}


@pytest.mark.parametrize("kind", DENIALS)
def test_a_retry_time_is_the_first_tick_at_which_the_call_passes(timed: TimedPolicyMaker, kind: str) -> None:
    document, wait, reason = DENIALS[kind]
    policy = timed(document, EIGHT)
    for _ in range(2):
        verdict = policy.limiter.acquire()
        assert verdict.allowed
        policy.limiter.report(verdict, "Failure")
    assert_first_tick(policy, EIGHT, wait, reason)


def test_the_retry_time_of_a_pause_is_the_first_tick_after_it(timed: TimedPolicyMaker) -> None:
    policy = timed({"spacing": {"min": "90s", "max": "180s"}}, EIGHT)
    drawn = policy.limiter.acquire().next_call_at
    assert 90 * SECOND <= (milliseconds_of(drawn) or 0) - EIGHT <= 180 * SECOND
    assert_first_tick(policy, EIGHT, (milliseconds_of(drawn) or 0) - EIGHT, "Spacing")


def test_the_retry_time_of_a_probe_is_the_first_tick_after_its_permit(timed: TimedPolicyMaker) -> None:
    policy = timed({"circuitBreaker": FAILING}, EIGHT)
    for _ in range(2):
        policy.limiter.report(policy.limiter.acquire(), "Failure")
    policy.set_clock(EIGHT + 5 * SECOND)
    assert policy.limiter.acquire().allowed
    assert_first_tick(policy, EIGHT + 5 * SECOND, 7 * SECOND, "ProbeUnderWay")


def assert_first_tick(policy: TimedPolicy, now: int, wait: int, reason: str) -> None:
    """Assert that a call is denied now and for so long, and not one tick longer."""
    for waited, passes in ((0, False), (wait - 1, False), (wait, True)):
        policy.set_clock(now + waited)
        verdict = policy.limiter.acquire()
        assert verdict.allowed == passes
        assert milliseconds_of(verdict.retry_at) == (None if passes else now + wait)
        assert waited > 0 or verdict.reason == reason


@settings(REPEATABLE, max_examples=60)
@given(
    period=st.sampled_from(["16s", "90s", "1h", "1001ms"]),
    amount=st.integers(1, 6),
    calls=st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 3)), min_size=2, max_size=20),
)
def test_a_rolling_retry_is_never_early_and_late_by_less_than_a_step(
    timed: TimedPolicyMaker, period: str, amount: int, calls: list[tuple[int, int]]
) -> None:
    length = milliseconds(period)
    now, charged = EIGHT, list[tuple[int, int]]()
    limit = {"name": "limit", "amount": amount, "period": period, "alignment": "Rolling"}
    policy = timed({"limits": [limit]}, now)
    for step, cost in calls:
        now += step
        policy.set_clock(now)
        verdict = policy.limiter.acquire(cost=cost)
        if verdict.allowed:
            charged.append((now, cost))
        elif cost <= amount:
            # By the exact definition: the first instant at which what the last period admitted leaves room.
            exact = next(
                free
                for free in sorted({now, *(at + length for at, _ in charged if at + length > now)})
                if sum(units for at, units in charged if at + length > free) + cost <= amount
            )
            # A step is a whole number of milliseconds, so sixteen of them may be a little longer than the period.
            late_at_most = (ROLLING_STEPS + 1) * -(-length // ROLLING_STEPS) - length
            assert exact <= (milliseconds_of(verdict.retry_at) or 0) <= exact + late_at_most


@settings(REPEATABLE, max_examples=60)
@given(
    burst=st.integers(1, 4),
    calls=st.lists(
        st.tuples(st.integers(0, 150), st.integers(1, 3), st.sampled_from(["keep", "cancel", "lease"])),
        min_size=2,
        max_size=20,
    ),
)
def test_a_cancelled_burst_gives_back_no_more_than_it_took(
    timed: TimedPolicyMaker, burst: int, calls: list[tuple[int, int, str]]
) -> None:
    """What stays charged never exceeds the burst and what came back since, wherever one begins to count."""
    limit = {"name": "limit", "amount": 3600, "period": "1h", "alignment": "Rolling", "burst": burst}
    policy = timed({"limits": [limit]}, EIGHT)
    now, kept, held = EIGHT, list[tuple[int, int]](), list[tuple[Reservation, tuple[int, int]]]()
    for tenths, cost, ending in calls:
        now += tenths * 100
        policy.set_clock(now)
        lease = timedelta(seconds=2) if ending == "lease" else timedelta(hours=1)
        reservation = policy.limiter.reserve(cost=cost, lease=lease)
        if reservation.allowed and ending == "keep":
            kept.append((now, cost))
        elif reservation.allowed and ending == "cancel":
            held.append((reservation, (now, cost)))
        if len(held) > 1:
            policy.limiter.cancel(held.pop(0)[0])
    kept += [charge for _, charge in held]
    for start, _ in kept:
        for end, _ in kept:
            units = sum(cost for at, cost in kept if start <= at <= end)
            assert units <= burst + max(0, end - start) / SECOND
