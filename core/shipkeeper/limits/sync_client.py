"""The limiter for programs with threads: the same as `AsyncLimiter`, word for word, without await."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

from redis import ResponseError

from shipkeeper.resources.ratelimitpolicy import OnStoreUnavailable

from .calls import Call, FailurePolicy, Outcome, PolicyCalls, Subject, new_reservation_id, usage_error
from .client import Settlement
from .connection import StoreAddress, SyncStore, Topology
from .failures import StoreError, StoreFailure
from .keys import DEFAULT_PREFIX, DEFAULT_SUBJECT
from .verdict import Denied, Reservation, Verdict

if TYPE_CHECKING:
    from .metrics import DecisionRecorder, LimiterMetrics  # needs prometheus-client, which is optional

P = ParamSpec("P")
T = TypeVar("T")


class Limiter:
    """Asks the store whether a call may be made. `AsyncLimiter` describes every method."""

    def __init__(
        self,
        store: SyncStore,
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
        """Return a limiter that connects with its first call. Raises StoreError for a URL of another form."""
        address = StoreAddress(url=url, topology=topology, sentinel_master=sentinel_master)
        failure_policy = FailurePolicy(on_store_unavailable)
        calls = PolicyCalls(namespace=namespace, policy=policy, key_prefix=key_prefix)
        recorder = metrics.recorder(namespace, calls.policies) if metrics is not None else None
        return cls(SyncStore(address, timeout=failure_policy.timeout), calls, failure_policy, recorder)

    def acquire(
        self,
        subject: Subject = DEFAULT_SUBJECT,
        *,
        cost: int = 1,
        execution: str | None = None,
        request_id: str | None = None,
    ) -> Verdict:
        """Charge a call to every limit, or to none, and return the verdict."""
        subjects = self._calls.subjects(subject)
        call = self._calls.acquire(subjects, cost=cost, execution=execution, request_id=request_id)
        return self._judge(call, subjects, cost=cost, repeatable=request_id is not None)

    def peek(self, subject: Subject = DEFAULT_SUBJECT, *, cost: int = 1, execution: str | None = None) -> Verdict:
        """Return the verdict that `acquire` would give now; nothing is charged, nothing is written."""
        subjects = self._calls.subjects(subject)
        call = self._calls.peek(subjects, cost=cost, execution=execution)
        return self._judge(call, subjects, cost=0, repeatable=True)

    def reserve(
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
        return Reservation(self._judge(call, subjects, cost=cost, repeatable=False), identity, execution or "")

    def commit(self, reservation: Reservation) -> Settlement:
        """Keep the units. `Unknown`: they are back already. Raises StoreError when the store does not answer."""
        return self._settle("commit", reservation)

    def cancel(self, reservation: Reservation) -> Settlement:
        """Give the units back, and the circuit breaker's permit with them."""
        return self._settle("cancel", reservation)

    def report(self, verdict: Verdict, outcome: Outcome, *, duration: timedelta | None = None) -> bool:
        """Tell the circuit breaker how an admitted call went, and return whether that counted."""
        call = self._calls.report(verdict, outcome, duration)
        if call is None:
            return False
        try:
            reply = self._fcall(call)
        except StoreError:
            return False
        if self._recorder is not None:
            self._recorder.reported(verdict, reply[1::3])
        return 1 in reply[::3]

    @contextmanager
    def guard(
        self,
        subject: Subject = DEFAULT_SUBJECT,
        *,
        cost: int = 1,
        execution: str | None = None,
        request_id: str | None = None,
    ) -> Iterator[Verdict]:
        """Run a block under the policy: raises Denied instead of entering; reports how the block ended."""
        verdict = self.acquire(subject, cost=cost, execution=execution, request_id=request_id)
        if not verdict.allowed:
            raise Denied(verdict)
        start = time.monotonic()
        try:
            yield verdict
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            self.report(verdict, "Released")
            raise
        except Exception:
            self.report(verdict, "Failure", duration=timedelta(seconds=time.monotonic() - start))
            raise
        self.report(verdict, "Success", duration=timedelta(seconds=time.monotonic() - start))

    def limited(
        self,
        subject: str | Callable[..., str] = DEFAULT_SUBJECT,
        *,
        cost: int = 1,
        execution: str | Callable[..., str] | None = None,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Decorate a function so that each call of it is guarded."""

        def decorate(function: Callable[P, T]) -> Callable[P, T]:
            @wraps(function)
            def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
                who = subject(*args, **kwargs) if callable(subject) else subject
                run = execution(*args, **kwargs) if callable(execution) else execution
                with self.guard(who, cost=cost, execution=run):
                    return function(*args, **kwargs)

            return guarded

        return decorate

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def __enter__(self) -> Self:
        """Return the limiter itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connections."""
        self.close()

    def _judge(self, call: Call, subjects: tuple[str, ...], *, cost: int, repeatable: bool) -> Verdict:
        start = time.monotonic()
        try:
            reply = self._fcall_repeated(call) if repeatable else self._fcall(call)
        except StoreError as error:
            verdict = self._failures.answer(error, cost=cost, subjects=subjects, policies=self._calls.policies)
        else:
            verdict = self._calls.verdict(reply, subjects)
        if self._recorder is not None and cost:  # a look decides nothing
            self._recorder.decided(verdict, start)
        if not verdict.store_failure and self._failures.is_outdated(verdict):
            self._learn(verdict.config_hash)
        return verdict

    def _fcall(self, call: Call) -> Any:
        try:
            return self._store.fcall(call.function, call.keys, call.arguments)
        except ResponseError as error:
            usage = usage_error(error)
            if usage is not None:
                raise usage from None
            raise self._counted(StoreError(StoreFailure.UNEXPECTED_REPLY)) from None
        except StoreError as error:
            raise self._counted(error) from None

    def _counted(self, error: StoreError) -> StoreError:
        if self._recorder is not None:
            self._recorder.store_failed(error)
        return error

    def _fcall_repeated(self, call: Call) -> Any:
        try:
            return self._fcall(call)
        except StoreError as error:
            if error.failure is not StoreFailure.UNREACHABLE:
                raise
        return self._fcall(call)

    def _learn(self, config_hash: str) -> None:
        try:
            stored = self._store.execute("GET", self._calls.configs[0])
        except StoreError as error:
            self._counted(error)
            return
        except ResponseError:
            return
        self._failures.learn(config_hash, stored)
        self._store.set_timeout(self._failures.timeout)

    def _settle(self, function: Literal["commit", "cancel"], reservation: Reservation) -> Settlement:
        call = self._calls.settle(function, reservation.verdict, reservation.id, reservation.execution)
        settlement: Settlement = self._fcall(call)
        return settlement
