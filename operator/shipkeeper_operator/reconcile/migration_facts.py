"""What a decision about a migration is made from: plain data, filled by the observer."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from shipkeeper.resources.migrationjob_status import MigrationReport

from .pods import PodTrouble

JobState = Literal["Waiting", "Active", "Succeeded", "Failed"]


@dataclass(frozen=True)
class ObservedJob:
    """A Job of the migration."""

    name: str
    state: JobState
    has_file: bool = True
    """Whether the ConfigMap that tells its worker what to do is there."""
    failure: str = ""
    """Why the Job failed, in the Job controller's words."""
    finished_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether it will do no more work."""
        return self.state in ("Succeeded", "Failed")


@dataclass(frozen=True)
class ObservedMigration:
    """All that a decision about a migration needs."""

    jobs: Mapping[str, ObservedJob]
    report: MigrationReport | None = None
    """What the worker last wrote, if it can be read."""
    report_error: str = ""
    """Why a report that is there cannot be read."""
    trouble: PodTrouble | None = None
    """What keeps a worker's pod from running."""
