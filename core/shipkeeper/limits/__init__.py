"""Quotas, spacing, active hours and a circuit breaker, judged by Redis in one atomic step: the application's side."""

from .client import AsyncLimiter
from .failures import StoreError, StoreFailure
from .sync_client import Limiter
from .verdict import Denied, ExecutionRequired, LimiterUsageError, LimitState, Reservation, Verdict

__all__ = [
    "AsyncLimiter",
    "Denied",
    "ExecutionRequired",
    "LimitState",
    "Limiter",
    "LimiterUsageError",
    "Reservation",
    "StoreError",
    "StoreFailure",
    "Verdict",
]
