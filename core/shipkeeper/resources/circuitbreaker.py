"""The circuit breaker of a RateLimitPolicy: when calls are held back because the dependency itself is failing."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .base import ResourceModel, cel, with_cel
from .schedule import Span, milliseconds

_ONE_SIZE = "circuitBreaker.window needs exactly one of size (a number of calls) and duration (a span of time)"
_MINIMUM_FITS = "circuitBreaker.window.minimumCalls must not be above size: the rate would never be judged"
_POSITIVE_WINDOW = "circuitBreaker.window.duration must be at least 1s and at most 24h"


class BreakerWindow(ResourceModel):
    """The calls over which rates are computed: the last `size` ones, or those of the last `duration`."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("has(self.size) != has(self.duration)", _ONE_SIZE),
            cel("!has(self.size) || self.minimumCalls <= self.size", _MINIMUM_FITS),
            cel(
                "!has(self.duration) || (duration(self.duration) >= duration('1s')"
                " && duration(self.duration) <= duration('24h'))",
                _POSITIVE_WINDOW,
            ),
        )
    )

    size: int | None = Field(default=None, ge=1, le=200)
    """A window by count: the last so many calls."""
    duration: Span | None = None
    """A window by time: the calls of the last span, kept in ten parts."""
    minimum_calls: int = Field(default=10, ge=1, le=1_000_000)
    """No rate is judged before so many calls are in the window."""

    @model_validator(mode="after")
    def _size_or_duration(self) -> Self:
        if (self.size is None) == (self.duration is None):
            raise ValueError(_ONE_SIZE)
        if self.size is not None and self.minimum_calls > self.size:
            raise ValueError(_MINIMUM_FITS)
        if self.duration is not None and not 1000 <= milliseconds(self.duration) <= 86_400_000:
            raise ValueError(_POSITIVE_WINDOW)
        return self


_POSITIVE_SLOW = "circuitBreaker.slowCalls.slowerThan must be longer than zero, for example 2s"


class SlowCalls(ResourceModel):
    """Opens the circuit when too many calls are slow."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(cel("duration(self.slowerThan) > duration('0s')", _POSITIVE_SLOW))
    )

    slower_than: Span
    """A call that takes longer counts as slow."""
    rate_percent: int = Field(ge=1, le=100)
    """Open when at least so many percent of the calls in the window are slow."""

    @model_validator(mode="after")
    def _slower_than_something(self) -> Self:
        if milliseconds(self.slower_than) <= 0:
            raise ValueError(_POSITIVE_SLOW)
        return self


_OPEN_ORDER = "circuitBreaker.openTime.initial must not be above max"
_OPEN_POSITIVE = "circuitBreaker.openTime.initial must be longer than zero, for example 5s"
_OPEN_BOUND = "circuitBreaker.openTime.max must be at most 24h"


class OpenTime(ResourceModel):
    """How long the circuit stays open before a probe may pass; it grows with each opening in a row."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("duration(self.initial) > duration('0s')", _OPEN_POSITIVE),
            cel("duration(self.initial) <= duration(self.max)", _OPEN_ORDER),
            cel("duration(self.max) <= duration('24h')", _OPEN_BOUND),
        )
    )

    initial: Span = "5s"
    """Open time after the circuit opens from closed."""
    multiplier: int = Field(default=2, ge=1, le=10)
    """Each further opening without a success in between multiplies the open time by this."""
    max: Span = "60s"
    """The open time never exceeds this."""

    @model_validator(mode="after")
    def _initial_up_to_max(self) -> Self:
        if milliseconds(self.initial) <= 0:
            raise ValueError(_OPEN_POSITIVE)
        if milliseconds(self.initial) > milliseconds(self.max):
            raise ValueError(_OPEN_ORDER)
        if milliseconds(self.max) > 86_400_000:
            raise ValueError(_OPEN_BOUND)
        return self


_PERMIT_TIMEOUT = "circuitBreaker.halfOpen.permitTimeout must be longer than zero and at most 1h, for example 5s"


class HalfOpen(ResourceModel):
    """How an open circuit is probed after its open time."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel(
                "duration(self.permitTimeout) > duration('0s') && duration(self.permitTimeout) <= duration('1h')",
                _PERMIT_TIMEOUT,
            )
        )
    )

    permits: int = Field(default=1, ge=1, le=16)
    """So many probes may be under way at once, over all replicas."""
    permit_timeout: Span = "5s"
    """A probe that has not reported by then (its process was killed) gives its permit back."""
    success_threshold: int = Field(default=1, ge=1, le=100)
    """So many probes must succeed before the circuit closes."""

    @model_validator(mode="after")
    def _permits_come_back(self) -> Self:
        if not 0 < milliseconds(self.permit_timeout) <= 3_600_000:
            raise ValueError(_PERMIT_TIMEOUT)
        return self


_SOME_TRIP = "circuitBreaker needs at least one of consecutiveFailures, failureRatePercent and slowCalls"
_RATE_NEEDS_WINDOW = (
    "circuitBreaker.failureRatePercent and slowCalls need circuitBreaker.window, for example {size: 50}"
)
_WINDOW_NEEDS_RATE = "circuitBreaker.window has no effect without failureRatePercent or slowCalls; remove it or add one"


class CircuitBreaker(ResourceModel):
    """Stops calls to a dependency that fails, and probes it with single calls until it is well again."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("has(self.consecutiveFailures) || has(self.failureRatePercent) || has(self.slowCalls)", _SOME_TRIP),
            cel(
                "has(self.window) || !(has(self.failureRatePercent) || has(self.slowCalls))",
                _RATE_NEEDS_WINDOW,
            ),
            cel(
                "!has(self.window) || has(self.failureRatePercent) || has(self.slowCalls)",
                _WINDOW_NEEDS_RATE,
            ),
        )
    )

    override: Literal["Auto", "ForcedOpen", "Disabled", "MetricsOnly"] = "Auto"
    """Auto: as declared. ForcedOpen: no call passes. Disabled: no effect. MetricsOnly: state is kept, calls pass."""
    consecutive_failures: int | None = Field(default=None, ge=1, le=1000)
    """Open after so many failures without a success in between."""
    failure_rate_percent: int | None = Field(default=None, ge=1, le=100)
    """Open when at least so many percent of the calls in the window failed."""
    slow_calls: SlowCalls | None = None
    """Open when too many calls in the window are slow."""
    window: BreakerWindow | None = None
    """The calls over which the two rates are computed."""
    open_time: OpenTime = OpenTime()
    """How long the circuit stays open."""
    half_open: HalfOpen = HalfOpen()
    """How it is probed afterwards."""

    @model_validator(mode="after")
    def _trips_on_something(self) -> Self:
        has_rate = self.failure_rate_percent is not None or self.slow_calls is not None
        if self.consecutive_failures is None and not has_rate:
            raise ValueError(_SOME_TRIP)
        if has_rate and self.window is None:
            raise ValueError(_RATE_NEEDS_WINDOW)
        if self.window is not None and not has_rate:
            raise ValueError(_WINDOW_NEEDS_RATE)
        return self
