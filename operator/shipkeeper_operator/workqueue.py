"""The work queue: which resources to look at, each at most once at a time, with the semantics of client-go's.

A key added while it waits is there once. A key added while it is worked on is worked on again afterwards, never twice
at the same time. So a burst of events makes one pass, and no pass misses the last event. Failures come back with
exponential backoff per key; what is due later waits in one heap behind one timer, not in one task per key.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

FIRST_BACKOFF_SECONDS = 0.005
LONGEST_BACKOFF_SECONDS = 300.0
# Past this many failures the doubling has long met the ceiling; it also keeps 2**n a small number.
_MAX_DOUBLINGS = 30


class QueueClosedError(Exception):
    """The queue was closed: there is no more work."""


class Timer(Protocol):
    """What `call_at` returns: a call that can be taken back."""

    def cancel(self) -> None:
        """Take the call back."""


class Clock(Protocol):
    """The part of an event loop that the queue needs; a test drives one by hand."""

    def time(self) -> float:
        """Return the monotonic time in seconds."""

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call back at that time."""


class QueueObserver(Protocol):
    """What the queue tells about itself, for metrics."""

    def added(self, depth: int) -> None:
        """Report that a key joined the ready keys."""

    def taken(self, depth: int, waited_seconds: float) -> None:
        """Report that a worker took a key which had waited so long."""

    def finished(self, worked_seconds: float) -> None:
        """Report that a worker was done with a key."""

    def retried(self) -> None:
        """Report that a key comes back because it failed."""


class _Unobserved:
    def added(self, depth: int) -> None: ...
    def taken(self, depth: int, waited_seconds: float) -> None: ...
    def finished(self, worked_seconds: float) -> None: ...
    def retried(self) -> None: ...


class WorkQueue(Generic[KeyT]):
    """Keys to work on. Not thread-safe: one event loop uses it."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        observer: QueueObserver | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Make an empty queue. `jitter` returns a number in [0, 1)."""
        self._clock: Clock = clock if clock is not None else asyncio.get_running_loop()
        self._observer: QueueObserver = observer if observer is not None else _Unobserved()
        self._jitter = jitter
        self._ready: deque[KeyT] = deque()
        self._dirty: dict[KeyT, float] = {}  # What must be worked on, and since when it waits.
        self._working: dict[KeyT, float] = {}  # What a worker holds, and since when.
        self._failures: dict[KeyT, int] = {}
        self._due: dict[KeyT, float] = {}  # The one time at which a delayed key joins the ready ones.
        self._heap: list[tuple[float, int, KeyT]] = []  # Stale entries (not the key's time in _due) are skipped.
        self._sequence = 0  # Breaks ties, so that keys need no order.
        self._timer: tuple[float, Timer] | None = None
        self._getters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        """Return how many keys are ready to be taken."""
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """How many keys wait for their time."""
        return len(self._due)

    def add(self, key: KeyT) -> None:
        """Ask for work on the key: now, or as soon as the worker that holds it is done."""
        if self._closed or key in self._dirty:
            return
        self._dirty[key] = self._clock.time()
        if key not in self._working:
            self._enqueue(key)

    def add_after(self, key: KeyT, delay_seconds: float) -> None:
        """Ask for work on the key in so many seconds; of several such wishes the earliest counts."""
        if self._closed:
            return
        if delay_seconds <= 0:
            self.add(key)
            return
        due = self._clock.time() + delay_seconds
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))
        self._arm()

    def add_rate_limited(self, key: KeyT, *, at_least: float = 0) -> float:
        """Ask for work on a key that failed, later at each failure in a row; return the delay in seconds.

        `at_least` is how long somebody asked us to wait.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        ceiling = min(FIRST_BACKOFF_SECONDS * 2 ** min(failures, _MAX_DOUBLINGS), LONGEST_BACKOFF_SECONDS)
        # Half of it is certain, half is chance: failures of many keys at once come back spread out.
        delay: float = max(ceiling * (0.5 + 0.5 * self._jitter()), at_least)
        self._observer.retried()
        self.add_after(key, delay)
        return delay

    def failures(self, key: KeyT) -> int:
        """Return how often in a row the key was re-added by `add_rate_limited`."""
        return self._failures.get(key, 0)

    def forget(self, key: KeyT) -> None:
        """Forget the key's failures: its next backoff starts small again."""
        self._failures.pop(key, None)

    async def get(self) -> KeyT:
        """Take a key, waiting for one; `done` must follow. Raises QueueClosedError when the queue is closed."""
        while not self._ready:
            if self._closed:
                raise QueueClosedError
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                self._pass_on_wakeup(getter)
                raise
        key = self._ready.popleft()
        now = self._clock.time()
        waited = now - self._dirty.pop(key)
        self._working[key] = now
        self._observer.taken(len(self._ready), waited)
        return key

    def done(self, key: KeyT) -> None:
        """Give a taken key back; it is ready again if it was added meanwhile."""
        self._observer.finished(self._clock.time() - self._working.pop(key))
        if key in self._dirty:
            self._enqueue(key)

    def close(self) -> None:
        """Take no more keys, drop all that waits, and let `get` raise: what is missed now, a restart looks at anew."""
        self._closed = True
        self._ready.clear()
        self._dirty.clear()
        self._due.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer[1].cancel()
            self._timer = None
        while self._getters:
            self._wake_one()

    def _enqueue(self, key: KeyT) -> None:
        self._ready.append(key)
        self._observer.added(len(self._ready))
        self._wake_one()

    def _wake_one(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _pass_on_wakeup(self, getter: "asyncio.Future[None]") -> None:
        """Keep a wake-up from being lost with the cancelled worker that it was meant for."""
        if getter.done() and not getter.cancelled():
            if self._ready:
                self._wake_one()
        else:
            self._getters.remove(getter)

    def _arm(self) -> None:
        """Set the one timer to the earliest entry."""
        when = self._heap[0][0]
        if self._timer is not None:
            if self._timer[0] <= when:
                return
            self._timer[1].cancel()
        self._timer = (when, self._clock.call_at(when, self._release_due))

    def _release_due(self) -> None:
        self._timer = None
        now = self._clock.time()
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due:
                heapq.heappop(self._heap)  # Superseded by an earlier wish, already released.
                continue
            if due > now:
                self._arm()
                return
            heapq.heappop(self._heap)
            del self._due[key]
            self.add(key)
