"""Random traffic on two policies of one Redis, in lock step with the oracle.

Every step asks the real library and the oracle the same and compares all that a verdict says. Two policies are asked
alone and together; units are reserved, committed, cancelled and left to their lease; results are reported; policies are
edited in between; and after each denial the clock is set to the verdict's own retry time and one tick before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shipkeeper.limits import Limiter, Reservation, Verdict
from shipkeeper.resources.schedule import milliseconds
from support.limit_oracle import Charge, Expected, Oracle, decide
from support.limit_policies import NAMESPACE, PATIENT, TimedPolicy, spec_of
from support.limit_strategies import EDGES, STEPS, Document, edits
from support.redis_server import RedisServer
from support.wall_clock import DAY, SECOND, milliseconds_of

POLICIES = ("everyone", "tenant")
# The second has no random pause, and a shorter one than the first: of two in one call a verdict names the later alone.
SECOND_POLICY: Document = {
    "timeZone": "Europe/Paris",
    "limits": [{"name": "alpha", "amount": 12, "period": "Day"}],
    "spacing": {"min": "2s", "max": "2s"},
    "circuitBreaker": {"consecutiveFailures": 2, "openTime": {"initial": "5s", "multiplier": 2, "max": "60s"}},
}
# Alone, or both in one call.
CHOICES = st.sampled_from([(0,), (1,), (0, 1)])
SUBJECTS = st.sampled_from(["one", "one", "two"])
# Costs above a limit are rare, so that there is something to count.
COSTS = st.sampled_from([1, 1, 1, 2, 2, 3])
OUTCOMES = st.sampled_from([None, "Failure", "Failure", "Success"])
# None where no limit counts by it.
EXECUTIONS = st.sampled_from([None, "run-a", "run-b"])


@dataclass(eq=False)
class Admitted:
    """One admitted call, with what the oracle knows of it: a charge for each policy (None: it was Off)."""

    limiter: Limiter
    verdict: Verdict
    oracles: list[Oracle]
    charges: list[Charge | None]
    reservation: Reservation | None = None


class Store:
    """A Redis for one machine after the other, with a limiter for each choice of policies."""

    def __init__(self, server: RedisServer, library: str) -> None:
        self.connection = server.client()
        self.library = library
        self.limiters: dict[tuple[int, ...], Limiter] = {
            choice: Limiter.from_url(
                server.url,
                namespace=NAMESPACE,
                policy=tuple(POLICIES[index] for index in choice),
                on_store_unavailable=PATIENT,
            )
            for choice in ((0,), (1,), (0, 1))
        }

    def close(self) -> None:
        """Close the connections."""
        for limiter in self.limiters.values():
            limiter.close()
        self.connection.close()


class LimiterMachine(RuleBasedStateMachine):
    """One history of calls."""

    def __init__(self, store: Store, first: st.SearchStrategy[Document]) -> None:
        """Begin with a policy of the strategy `first`, and with one that is the same in all histories."""
        super().__init__()
        self.store = store
        self.first = first
        self.now = 0
        self.documents: list[Document] = []
        self.oracles: list[dict[str, Oracle]] = [{}, {}]
        self.admitted: list[Admitted] = []
        self.held: list[Admitted] = []
        self.settled: list[Admitted] = []
        self.verdicts = 0  # since the last edit

    @initialize(edge=st.sampled_from(EDGES), before=st.integers(0, DAY), data=st.data())
    def begin(self, edge: int, before: int, data: st.DataObject) -> None:
        self.store.connection.flushdb()
        # Loaded anew it draws the same pauses again, so that a failing history fails when it is repeated.
        self.store.connection.function_load(self.store.library, replace=True)
        self.now = edge - before
        self.set_clock(self.now)
        self.documents = [data.draw(self.first), SECOND_POLICY]
        for index in range(2):
            self.write_policy(index)

    def timed(self, index: int) -> TimedPolicy:
        return TimedPolicy(self.store.connection, POLICIES[index], self.store.limiters[(index,)])

    def write_policy(self, index: int) -> None:
        self.timed(index).edit(self.documents[index], self.now)
        self.set_clock(self.now + SECOND)  # by then the library has noticed
        self.now += SECOND
        for oracle in self.oracles[index].values():
            oracle.spec = spec_of(self.documents[index])

    def set_clock(self, now: int) -> None:
        self.store.connection.set("shipkeeper:test:now", now * 1000)

    def oracle(self, index: int, subject: str) -> Oracle:
        return self.oracles[index].setdefault(subject, Oracle(spec_of(self.documents[index])))

    @rule(step=STEPS)
    def wait(self, step: int) -> None:
        self.now += step
        self.set_clock(self.now)

    @precondition(lambda self: self.coming_edges())
    @rule(data=st.data())
    def look_at_an_edge(self, data: st.DataObject) -> None:
        """Wait for an instant at which some decision may change, and look one tick before it and then."""
        edge = data.draw(st.sampled_from(self.coming_edges()))
        for instant in (edge - 1, edge):
            self.now = max(self.now, instant)
            self.set_clock(self.now)
            for index, subjects in enumerate(self.oracles):
                for subject, oracle in subjects.items():
                    expected = decide([oracle], self.now, 1, "run-a")
                    looked = self.store.limiters[(index,)].peek(subject, execution="run-a")
                    self.compare(looked, expected, [oracle], "run-a")

    def coming_edges(self) -> list[int]:
        known = [oracle for oracles in self.oracles for oracle in oracles.values()]
        return sorted({edge for oracle in known for edge in oracle.edges(self.now) if edge > self.now})

    @rule(choice=CHOICES, subject=SUBJECTS, cost=COSTS, execution=EXECUTIONS, outcome=OUTCOMES)
    def acquire(self, choice: tuple[int, ...], subject: str, cost: int, execution: str | None, outcome: Any) -> None:
        limiter, oracles, execution = self.asked(choice, subject, execution)
        expected = decide(oracles, self.now, cost, execution)
        looked = limiter.peek(subject, cost=cost, execution=execution)
        self.compare(looked, expected, oracles, execution)
        verdict = limiter.acquire(subject, cost=cost, execution=execution)
        admitted = self.take_in(limiter, verdict, expected, oracles, cost=cost, execution=execution)
        if admitted is None:
            self.check_retry(limiter, verdict, oracles, subject=subject, cost=cost, execution=execution)
        elif outcome is not None:
            self.report_one(admitted, outcome)

    @rule(
        choice=CHOICES,
        subject=SUBJECTS,
        execution=EXECUTIONS,
        outcome=OUTCOMES,
        calls=st.lists(st.tuples(st.integers(0, 40_000), COSTS), min_size=3, max_size=6),
    )
    def keep_asking(
        self, choice: tuple[int, ...], subject: str, execution: str | None, outcome: Any, calls: list[tuple[int, int]]
    ) -> None:
        for step, cost in calls:
            self.wait(step)
            self.acquire(choice, subject, cost, execution, outcome)

    @rule(choice=CHOICES, subject=SUBJECTS, cost=COSTS, execution=EXECUTIONS)
    def repeat_a_request(self, choice: tuple[int, ...], subject: str, cost: int, execution: str | None) -> None:
        limiter, oracles, execution = self.asked(choice, subject, execution)
        expected = decide(oracles, self.now, cost, execution)
        request = f"request-{len(self.admitted)}-{self.now}"
        verdict = limiter.acquire(subject, cost=cost, execution=execution, request_id=request)
        self.take_in(limiter, verdict, expected, oracles, cost=cost, execution=execution)
        again = limiter.acquire(subject, cost=cost, execution=execution, request_id=request)
        assert again.replayed == verdict.allowed
        assert (again.allowed, again.rule, again.limits) == (verdict.allowed, verdict.rule, verdict.limits)
        left = limiter.peek(subject, cost=cost, execution=execution)
        self.compare(left, decide(oracles, self.now, cost, execution), oracles, execution)

    @precondition(lambda self: not any("burst" in limit for document in self.documents for limit in document["limits"]))
    @rule(
        choice=CHOICES,
        subject=SUBJECTS,
        cost=COSTS,
        execution=EXECUTIONS,
        lease=st.sampled_from([1, 40_000, 7_200_000, 7_200_000]),
        keep=st.sampled_from([None, None, True, False]),
    )
    def reserve(
        self, choice: tuple[int, ...], subject: str, cost: int, execution: str | None, lease: int, keep: bool | None
    ) -> None:
        limiter, oracles, execution = self.asked(choice, subject, execution)
        expected = decide(oracles, self.now, cost, execution)
        duration = timedelta(milliseconds=lease)
        reservation = limiter.reserve(subject, cost=cost, execution=execution, lease=duration)
        admitted = self.take_in(
            limiter, reservation.verdict, expected, oracles, cost=cost, execution=execution, lease_end=self.now + lease
        )
        if admitted is not None:
            admitted.reservation = reservation
            self.held.append(admitted)
            if keep is not None:
                self.settle_one(admitted, keep=keep)
                self.compare(
                    limiter.peek(subject, execution=execution),
                    decide(oracles, self.now, 1, execution),
                    oracles,
                    execution,
                )

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keep=st.booleans())
    def settle(self, data: st.DataObject, keep: bool) -> None:
        self.settle_one(data.draw(st.sampled_from(self.held + self.settled[-1:])), keep=keep)

    def settle_one(self, held: Admitted, *, keep: bool) -> None:
        assert held.reservation is not None
        for oracle in held.oracles:
            oracle.look_in(self.now)
        settled = [
            charge is not None and oracle.settle(charge, self.now, keep=keep)
            for oracle, charge in zip(held.oracles, held.charges, strict=True)
        ]
        answer = held.limiter.commit(held.reservation) if keep else held.limiter.cancel(held.reservation)
        assert answer == (("Committed" if keep else "Cancelled") if any(settled) else "Unknown")
        if held in self.held:
            self.held.remove(held)
            self.settled.append(held)
        if any(settled) and not keep:
            self.report_to_oracles(held, "Released")

    @precondition(lambda self: any(charge and charge.permit for each in self.admitted[-8:] for charge in each.charges))
    @rule(data=st.data(), outcome=st.sampled_from(["Failure", "Failure", "Success", "Released"]))
    def report(self, data: st.DataObject, outcome: Any) -> None:
        self.report_one(data.draw(st.sampled_from(self.admitted[-8:])), outcome)

    def report_one(self, admitted: Admitted, outcome: Any) -> None:
        counted = self.report_to_oracles(admitted, outcome)
        assert admitted.limiter.report(admitted.verdict, outcome) == counted

    def report_to_oracles(self, admitted: Admitted, outcome: str) -> bool:
        if not any(charge and charge.permit for charge in admitted.charges):
            return False  # nobody waits for it, and it is not sent
        for oracle in admitted.oracles:
            oracle.look_in(self.now)
        pairs = zip(admitted.oracles, admitted.charges, strict=True)
        counted = [oracle.report(charge, outcome, self.now) for oracle, charge in pairs if charge is not None]
        return any(counted)

    @precondition(lambda self: self.verdicts >= 4)
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from([0, 0, 1]))
        self.documents[index] = data.draw(edits(self.documents[index]))
        if index == 1 and "spacing" in self.documents[1]:
            self.documents[1]["spacing"] = SECOND_POLICY["spacing"]
        self.write_policy(index)
        self.verdicts = 0

    @invariant()
    def nothing_lives_for_ever(self) -> None:
        for key in self.store.connection.keys("shipkeeper:*:state:*"):
            assert self.store.connection.pttl(key) != -1

    def asked(
        self, choice: tuple[int, ...], subject: str, execution: str | None
    ) -> tuple[Limiter, list[Oracle], str | None]:
        """Return whom a call asks, and the execution that it must name."""
        oracles = [self.oracle(index, subject) for index in choice]
        if any(limit.period == "Execution" for oracle in oracles for limit in oracle.spec.limits):
            execution = execution or "run-a"
        return self.store.limiters[choice], oracles, execution

    def take_in(
        self,
        limiter: Limiter,
        verdict: Verdict,
        expected: Expected,
        oracles: list[Oracle],
        *,
        cost: int,
        execution: str | None,
        lease_end: int | None = None,
    ) -> Admitted | None:
        """Compare a verdict and charge the oracles what it charged."""
        admitted = None
        for oracle in oracles:
            oracle.look_in(self.now)
        if verdict.allowed:
            pause = self.checked_pause(verdict, oracles)
            charges = [
                oracle.charge(self.now, cost, execution, next_call=next_call, lease_end=lease_end)
                for oracle, next_call in zip(oracles, pause, strict=True)
            ]
            admitted = Admitted(limiter, verdict, oracles, charges)
            self.admitted.append(admitted)
        self.compare(verdict, expected, oracles, execution)
        self.verdicts += 1
        return admitted

    def checked_pause(self, verdict: Verdict, oracles: list[Oracle]) -> Iterator[int]:
        """Return each policy's next call; the verdict names the latest, which lies within its rule's bounds."""
        named = milliseconds_of(verdict.next_call_at) or 0
        spacings = [
            oracle.spec.spacing
            if oracle.spec.spacing and oracle.spec.spacing.mode != "Off" and oracle.spec.mode != "Off"
            else None
            for oracle in oracles
        ]
        shortest = [milliseconds(spacing.min) if spacing else 0 for spacing in spacings]
        longest = [milliseconds(spacing.max) if spacing else 0 for spacing in spacings]
        if not any(longest):
            assert named == 0
            return iter([0] * len(oracles))
        assert self.now + max(shortest) <= named <= self.now + max(longest)
        drawn = [named if low != high else self.now + low for low, high in zip(shortest, longest, strict=True)]
        assert max(drawn) == named
        return iter(drawn)

    def compare(self, verdict: Verdict, expected: Expected, oracles: list[Oracle], execution: str | None) -> None:
        """Compare all that a verdict says: the decision with what was expected, the counters with what they are now."""
        assert verdict.store_failure == ""
        assert milliseconds_of(verdict.judged_at) == self.now
        assert verdict.allowed == expected.allowed, (verdict.rule, verdict.reason, expected)
        assert milliseconds_of(verdict.retry_at) == expected.retry_at, (verdict.rule, expected)
        assert tuple(sorted(verdict.shadow)) == expected.shadow
        if expected.denying:
            assert verdict.rule in expected.binding
            assert verdict.permanent == (expected.retry_at is None)
        assert verdict.breaker == oracles[0].breaker_state()
        for policy, oracle in zip(verdict.policies, oracles, strict=True):
            left = {limit.name: limit.remaining for limit in verdict.limits if limit.policy == policy}
            # A policy that is Off counts nothing, and what it counted before is not its verdict's business.
            assert oracle.spec.mode == "Off" or left == oracle.remaining(self.now, execution)

    def check_retry(
        self,
        limiter: Limiter,
        verdict: Verdict,
        oracles: list[Oracle],
        *,
        subject: str,
        cost: int,
        execution: str | None,
    ) -> None:
        """The retry is neither early nor late: one tick before it the call is denied, and then it passes."""
        retry_at = milliseconds_of(verdict.retry_at)
        if retry_at is None or any(charge.lease_end for oracle in oracles for charge in oracle.charges):
            return  # never; or a lease that may end before gives units back earlier than any rule does
        # At last as it is now: else the library would hold what it read in that future for fresh when it comes.
        for instant, passes in ((retry_at - 1, False), (retry_at, True), (self.now, False)):
            self.set_clock(instant)
            assert limiter.peek(subject, cost=cost, execution=execution).allowed == passes
