"""An operator that reconciles applications as the real one does, and leaves migrations and policies to the test.

`python -m support.appdeployment_operator`: the statuses of MigrationJobs and RateLimitPolicies are written by hand.
"""

import asyncio
import sys
from dataclasses import replace
from datetime import datetime
from typing import Any

from shipkeeper_operator.controller import ResourceController
from shipkeeper_operator.logs import configure_logging
from shipkeeper_operator.main import run_operator
from shipkeeper_operator.observe.reader import ClusterReader
from shipkeeper_operator.reconcile.outcome import Outcome
from shipkeeper_operator.registrations import registrations
from shipkeeper_operator.settings import read_settings


async def _observe_nothing(resource: Any, reader: ClusterReader) -> None:
    return None


def _leave_as_it_is(resource: Any, observed: None, *, now: datetime) -> Outcome[Any, Any]:
    return Outcome(status=resource.status)


def _hand_written(registration: ResourceController[Any, Any, Any, Any]) -> ResourceController[Any, Any, Any, Any]:
    """Return a registration of the same kind that changes nothing."""
    if registration.kind.kind == "AppDeployment":
        return registration
    return replace(registration, observe=_observe_nothing, reconcile=_leave_as_it_is, child_kinds=(), perform=None)


def main() -> None:
    """Run until told to stop."""
    settings = read_settings()
    configure_logging(settings.log_level)
    sys.exit(asyncio.run(run_operator(settings, [_hand_written(each) for each in registrations(settings)])))


if __name__ == "__main__":
    main()
