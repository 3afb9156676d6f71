"""The limiter for asyncio programs: one round trip a decision, typed verdicts, no exception for Redis trouble."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

from redis import ResponseError

from shipkeeper.resources.ratelimitpolicy import OnStoreUnavailable

from .calls import Call, FailurePolicy, Outcome, PolicyCalls, Subject, new_reservation_id, usage_error
from .connection import AsyncStore, StoreAddress, Topology
from .failures import StoreError, StoreFailure
from .keys import DEFAULT_PREFIX, DEFAULT_SUBJECT
from .verdict import Denied, Reservation, Verdict

if TYPE_CHECKING:
    from .metrics import DecisionRecorder, LimiterMetrics  # needs prometheus-client, which is optional

P = ParamSpec("P")
T = TypeVar("T")
Settlement = Literal["Committed", "Cancelled", "Unknown"]


class AsyncLimiter:
    """Asks the store whether a call may be made, under one policy or under several of one namespace together.

    Redis trouble is no exception: the verdict then is what the policy's `onStoreUnavailable` says, with the reason in
    `Verdict.store_failure`. A call is sent once; it is repeated only when it has a `request_id`, which charges once.
    """

    def __init__(
        self,
        store: AsyncStore,
        calls: PolicyCalls,
        failure_policy: FailurePolicy,
        recorder: "DecisionRecorder | None" = None,
    ) -> None:
        self._store = store
        self._calls = calls
        self._failures = failure_policy
        self._recorder = recorder

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        namespace: str,
        policy: str | tuple[str, ...],
        key_prefix: str = DEFAULT_PREFIX,
        topology: Topology = "Standalone",
        sentinel_master: str | None = None,
        on_store_unavailable: OnStoreUnavailable | None = None,
        metrics: "LimiterMetrics | None" = None,
    ) -> Self:
        """Return a limiter that connects with its first call.

        `namespace` and `policy` are those of the RateLimitPolicy; `on_store_unavailable` overrides what it says.
        `metrics` (shipkeeper.limits.metrics) tells Prometheus what is decided.
        Raises StoreError for a URL of another form.
        """
        address = StoreAddress(url=url, topology=topology, sentinel_master=sentinel_master)
        failure_policy = FailurePolicy(on_store_unavailable)
        calls = PolicyCalls(namespace=namespace, policy=policy, key_prefix=key_prefix)
        recorder = metrics.recorder(namespace, calls.policies) if metrics is not None else None
        return cls(AsyncStore(address, timeout=failure_policy.timeout), calls, failure_policy, recorder)

    async def acquire(
        self,
        subject: Subject = DEFAULT_SUBJECT,
        *,
        cost: int = 1,
        execution: str | None = None,
        request_id: str | None = None,
    ) -> Verdict:
        """Charge a call to every limit, or to none, and return the verdict.

        `subject` is who is limited (an account, a tenant). `execution` names this run where a limit counts by run.
        `request_id` makes a repetition within an hour return the first verdict instead of charging again.
        Raises LimiterUsageError for a call that no waiting mends.
        """
        subjects = self._calls.subjects(subject)
        call = self._calls.acquire(subjects, cost=cost, execution=execution, request_id=request_id)
        return await self._judge(call, subjects, cost=cost, repeatable=request_id is not None)

    async def peek(self, subject: Subject = DEFAULT_SUBJECT, *, cost: int = 1, execution: str | None = None) -> Verdict:
        """Return the verdict that `acquire` would give now; nothing is charged, nothing is written."""
        subjects = self._calls.subjects(subject)
        call = self._calls.peek(subjects, cost=cost, execution=execution)
        return await self._judge(call, subjects, cost=0, repeatable=True)

    async def reserve(
        self,
        subject: Subject = DEFAULT_SUBJECT,
        *,
        cost: int = 1,
        lease: timedelta,
        execution: str | None = None,
        request_id: str | None = None,
    ) -> Reservation:
        """Charge now what may be given back: without a commit the units return when the lease ends."""
        subjects, identity = self._calls.subjects(subject), new_reservation_id()
        call = self._calls.acquire(
            subjects, cost=cost, execution=execution, request_id=request_id, reservation=identity, lease=lease
        )
        verdict = await self._judge(call, subjects, cost=cost, repeatable=False)
        return Reservation(verdict, identity, execution or "")

    async def commit(self, reservation: Reservation) -> Settlement:
        """Keep the units. `Unknown`: the lease had ended and they are back, or it was ended before.

        Raises StoreError when the store does not answer.
        """
        return await self._settle("commit", reservation)

    async def cancel(self, reservation: Reservation) -> Settlement:
        """Give the units back, and the circuit breaker's permit with them. As `commit` otherwise."""
        return await self._settle("cancel", reservation)

    async def report(self, verdict: Verdict, outcome: Outcome, *, duration: timedelta | None = None) -> bool:
        """Tell the circuit breaker how an admitted call went; `Released`: it was not made.

        Returns whether the report counted: not when the circuit has changed since, when the permit has timed out, when
        there is no breaker, or when the store does not answer.
        """
        call = self._calls.report(verdict, outcome, duration)
        if call is None:
            return False
        try:
            reply = await self._fcall(call)
        except StoreError:
            return False
        if self._recorder is not None:
            self._recorder.reported(verdict, reply[1::3])
        return 1 in reply[::3]

    @asynccontextmanager
    async def guard(
        self,
        subject: Subject = DEFAULT_SUBJECT,
        *,
        cost: int = 1,
        execution: str | None = None,
        request_id: str | None = None,
    ) -> AsyncIterator[Verdict]:
        """Run a block under the policy: raises Denied instead of entering; reports how the block ended.

        An exception counts as a failure; a cancelled block counts neither way.
        """
        verdict = await self.acquire(subject, cost=cost, execution=execution, request_id=request_id)
        if not verdict.allowed:
            raise Denied(verdict)
        start = time.monotonic()
        try:
            yield verdict
        except (asyncio.CancelledError, GeneratorExit):
            await asyncio.shield(self.report(verdict, "Released"))
            raise
        except Exception:
            await self.report(verdict, "Failure", duration=timedelta(seconds=time.monotonic() - start))
            raise
        await self.report(verdict, "Success", duration=timedelta(seconds=time.monotonic() - start))

    def limited(
        self,
        subject: str | Callable[..., str] = DEFAULT_SUBJECT,
        *,
        cost: int = 1,
        execution: str | Callable[..., str] | None = None,
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
        """Decorate a coroutine function so that each call of it is guarded.

        `subject` and `execution` may be functions of the call's arguments.
        """

        def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
            @wraps(function)
            async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
                who = subject(*args, **kwargs) if callable(subject) else subject
                run = execution(*args, **kwargs) if callable(execution) else execution
                async with self.guard(who, cost=cost, execution=run):
                    return await function(*args, **kwargs)

            return guarded

        return decorate

    async def close(self) -> None:
        """Close the connections."""
        await self._store.close()

    async def __aenter__(self) -> Self:
        """Return the limiter itself."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the connections."""
        await self.close()

    async def _judge(self, call: Call, subjects: tuple[str, ...], *, cost: int, repeatable: bool) -> Verdict:
        start = time.monotonic()
        try:
            reply = await self._fcall_repeated(call) if repeatable else await self._fcall(call)
        except StoreError as error:
            verdict = self._failures.answer(error, cost=cost, subjects=subjects, policies=self._calls.policies)
        else:
            verdict = self._calls.verdict(reply, subjects)
        if self._recorder is not None and cost:  # a look decides nothing
            self._recorder.decided(verdict, start)
        if not verdict.store_failure and self._failures.is_outdated(verdict):
            await self._learn(verdict.config_hash)
        return verdict

    async def _fcall(self, call: Call) -> Any:
        try:
            return await self._store.fcall(call.function, call.keys, call.arguments)
        except ResponseError as error:
            usage = usage_error(error)
            if usage is not None:
                raise usage from None
            raise self._counted(StoreError(StoreFailure.UNEXPECTED_REPLY, self._store.where)) from None
        except StoreError as error:
            raise self._counted(error) from None

    def _counted(self, error: StoreError) -> StoreError:
        if self._recorder is not None:
            self._recorder.store_failed(error)
        return error

    async def _fcall_repeated(self, call: Call) -> Any:
        """Send a call that charges once however often it arrives: again when the connection was lost."""
        try:
            return await self._fcall(call)
        except StoreError as error:
            if error.failure is not StoreFailure.UNREACHABLE:
                raise
        return await self._fcall(call)

    async def _learn(self, config_hash: str) -> None:
        try:
            stored = await self._store.execute("GET", self._calls.configs[0])
        except StoreError as error:
            self._counted(error)
            return  # the settings stay as they are; the verdict is valid all the same
        except ResponseError:
            return
        self._failures.learn(config_hash, stored)
        self._store.timeout = self._failures.timeout

    async def _settle(self, function: Literal["commit", "cancel"], reservation: Reservation) -> Settlement:
        call = self._calls.settle(function, reservation.verdict, reservation.id, reservation.execution)
        settlement: Settlement = await self._fcall(call)
        return settlement
