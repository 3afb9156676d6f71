"""The work queue against a model of what client-go's promises, with a clock that the test moves."""

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shipkeeper_operator.workqueue import (
    FIRST_BACKOFF_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    QueueClosedError,
    WorkQueue,
)


class HandTimer:
    """A call that a HandClock makes later."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, HandTimer, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> HandTimer:
        timer = HandTimer()
        self._count += 1
        heapq.heappush(self._calls, (when, self._count, timer, callback, args))
        return timer

    @property
    def armed(self) -> int:
        """How many calls are planned."""
        return sum(not timer.cancelled for _, _, timer, _, _ in self._calls)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            when, _, timer, callback, args = heapq.heappop(self._calls)
            if not timer.cancelled:
                self.now = max(self.now, when)
                callback(*args)
        self.now = end


def take(queue: WorkQueue[str]) -> str | None:
    """Take a key without waiting, None where `get` would wait."""
    return take_now(queue) if len(queue) else None


def take_now(queue: WorkQueue[str]) -> str:
    """Take a key from a queue whose `get` does not wait."""
    try:
        queue.get().send(None)
    except StopIteration as taken:
        key: str = taken.value
        return key
    raise AssertionError("get waited")


KEYS = st.sampled_from(["a", "b", "c", "d"])
DELAYS = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.5, 60.0])


class QueueMachine(RuleBasedStateMachine):
    """Every order of calls, compared with sets and dictionaries that say the same in the plainest way."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.queue: WorkQueue[str] = WorkQueue(clock=self.clock, jitter=lambda: 0.5)
        self.wanted: list[str] = []  # In the order in which they are to be worked on.
        self.again: set[str] = set()  # Wanted while worked on.
        self.working: set[str] = set()
        self.due: dict[str, float] = {}
        self.failures: dict[str, int] = {}

    def want(self, key: str) -> None:
        if key in self.working:
            self.again.add(key)
        elif key not in self.wanted:
            self.wanted.append(key)

    def want_at(self, key: str, when: float) -> None:
        self.due[key] = min(when, self.due.get(key, when))

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.want(key)

    @rule(key=KEYS, delay=DELAYS)
    def add_after(self, key: str, delay: float) -> None:
        self.queue.add_after(key, delay)
        if delay > 0:
            self.want_at(key, self.clock.now + delay)
        else:
            self.want(key)

    @rule(key=KEYS, at_least=st.sampled_from([0.0, 3.0]))
    def add_rate_limited(self, key: str, at_least: float) -> None:
        failures = self.failures.get(key, 0)
        self.failures[key] = failures + 1
        expected = max(min(FIRST_BACKOFF_SECONDS * 2**failures, LONGEST_BACKOFF_SECONDS) * 0.75, at_least)
        assert self.queue.add_rate_limited(key, at_least=at_least) == pytest.approx(expected)
        self.want_at(key, self.clock.now + expected)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)
        self.failures.pop(key, None)

    @rule(seconds=st.sampled_from([0.0, 0.3, 0.7, 1.0, 30.0]))
    def pass_time(self, seconds: float) -> None:
        end = self.clock.now + seconds
        for key, _ in sorted(((key, when) for key, when in self.due.items() if when <= end), key=lambda item: item[1]):
            del self.due[key]
            self.want(key)
        self.clock.advance(seconds)

    @rule()
    def get(self) -> None:
        taken = take(self.queue)
        if not self.wanted:
            assert taken is None
            return
        assert taken in self.wanted
        assert taken not in self.working, "a key is never worked on twice at once"
        self.wanted.remove(taken)
        self.working.add(taken)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.queue.done(key)
        self.working.discard(key)
        if key in self.again:
            self.again.discard(key)
            self.wanted.append(key)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.queue) == len(self.wanted)
        assert self.queue.delayed == len(self.due)
        assert {key: self.queue.failures(key) for key in self.failures} == self.failures
        assert self.clock.armed == (1 if self.due else 0), "one timer serves all delays"


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def queue(clock: HandClock) -> WorkQueue[str]:
    return WorkQueue(clock=clock)


def test_first_in_first_out(queue: WorkQueue[str]) -> None:
    for key in ("b", "a", "c", "a"):
        queue.add(key)
    assert [take(queue) for _ in range(4)] == ["b", "a", "c", None]


@given(failures=st.integers(0, 200), chance=st.floats(0, 1, exclude_max=True))
def test_backoff_doubles_within_its_bounds(failures: int, chance: float) -> None:
    queue: WorkQueue[str] = WorkQueue(clock=HandClock(), jitter=lambda: chance)
    for _ in range(failures):
        queue.add_rate_limited("a")
    ceiling = min(0.005 * 2.0 ** min(failures, 30), 300.0)
    delay = queue.add_rate_limited("a")
    assert ceiling / 2 <= delay <= ceiling


def test_metrics_see_what_happens(clock: HandClock) -> None:
    seen: list[Any] = []

    class Observer:
        def added(self, depth: int) -> None:
            seen.append(("added", depth))

        def taken(self, depth: int, waited_seconds: float) -> None:
            seen.append(("taken", depth, waited_seconds))

        def finished(self, worked_seconds: float) -> None:
            seen.append(("finished", worked_seconds))

        def retried(self) -> None:
            seen.append("retried")

    queue: WorkQueue[str] = WorkQueue(clock=clock, observer=Observer(), jitter=lambda: 0.0)
    queue.add("a")
    clock.advance(2)
    take(queue)
    queue.add("a")
    clock.advance(3)
    queue.done("a")
    queue.add_rate_limited("b")
    assert seen == [("added", 1), ("taken", 0, 2.0), ("finished", 3.0), ("added", 1), "retried"]


def test_closed_queue_takes_and_gives_nothing(queue: WorkQueue[str], clock: HandClock) -> None:
    queue.add("a")
    queue.add_after("b", 5)
    queue.close()
    queue.add("c")
    queue.add_after("c", 1)
    assert clock.armed == 0
    with pytest.raises(QueueClosedError):
        take_now(queue)


async def test_waiting_workers_share_the_keys() -> None:
    queue: WorkQueue[int] = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for key in range(3):
        queue.add(key)
    assert sorted(await asyncio.gather(*workers)) == [0, 1, 2]


async def test_cancelled_worker_loses_no_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    cancelled, other = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")  # Wakes the first worker ...
    cancelled.cancel()  # ... which is cancelled before it takes the key.
    assert await asyncio.wait_for(other, 1) == "a"
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def test_worker_cancelled_while_it_waits_leaves_no_trace() -> None:
    queue: WorkQueue[str] = WorkQueue()
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker
    queue.add("a")
    assert await queue.get() == "a"


async def test_closing_wakes_all_workers() -> None:
    queue: WorkQueue[str] = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.close()
    results = await asyncio.gather(*workers, return_exceptions=True)
    assert [type(result) for result in results] == [QueueClosedError] * 3


async def test_delays_run_on_the_event_loops_own_clock() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("late", 0.02)
    queue.add_after("early", 0.001)
    assert [await queue.get(), await queue.get()] == ["early", "late"]
