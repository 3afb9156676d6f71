"""What a migration says of itself: the worker's report, which is a copy of the ledger, and the status made from it."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Instant, ResourceModel, StatusModel, list_map

Phase = Literal[
    "Pending",
    "Planning",
    "Planned",
    "AwaitingApproval",
    "WaitingForLock",
    "Running",
    "Verifying",
    "Interrupted",
    "Suspended",
    "Cancelled",
    "Complete",
    "Retaining",
    "RollingBack",
    "RolledBack",
    "Failed",
]

Count = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]
Line = Annotated[str, Field(max_length=1024)]
"""One bounded line of text, for people."""


class PlannedStep(ResourceModel):
    """What one step will do."""

    name: str = Field(max_length=40)
    """Name of the step."""
    action: Line
    """What it does, in words."""
    sql: tuple[Annotated[str, Field(max_length=8192)], ...] = Field(default=(), max_length=64)
    """The statements it will run (long ones are cut)."""
    rows: Count | None = None
    """Rows it has to look at, counted when the plan was made."""
    table_bytes: Count | None = None
    """Size of the tables it reads or writes, indexes included."""
    destructive: bool = False
    """Whether it can lose data."""
    locks: str | None = Field(default=None, max_length=256)
    """The strongest lock it takes, and what that holds up."""
    estimated_seconds: Count | None = None
    """Estimated duration, from a trial batch that was measured and rolled back."""
    trial_rows_per_second: Count | None = None
    """Rate of the trial batch."""
    trial_wal_bytes: Count | None = None
    """Write-ahead log that the trial batch wrote (PostgreSQL; other writers' share included)."""


class Plan(ResourceModel):
    """What the migration will do, and the hash that an approval names."""

    hash: str = Field(pattern=r"^[0-9a-f]{16}$", max_length=16)
    """Hash of the work: SQL, order and destructive steps. A changed plan has another hash and asks again."""
    steps: tuple[PlannedStep, ...] = Field(default=(), max_length=32, json_schema_extra=list_map("name"))
    """The steps, in order."""
    planned_at: Instant | None = None
    """When it was made."""


class IndexStatus(ResourceModel):
    """State of one index, read from the database's catalogue."""

    name: str = Field(max_length=63)
    """Name of the index."""
    table: str = Field(max_length=127)
    """Its table."""
    state: Literal["Missing", "Invalid", "Differs", "Building", "Valid"]
    """Valid: it exists, is valid and has the declared definition."""
    action: Literal["None", "Created", "Repaired"] = "None"
    """What this migration did: nothing (it was there), created it, or dropped and rebuilt it."""


class Difference(ResourceModel):
    """One row or range of rows in which source and target differ."""

    range: Line
    """The range of keys, for example id 1..5000."""
    key: str = Field(max_length=256)
    """The key of the row in the source."""
    kind: Literal["Missing", "Extra", "Doubled", "Changed", "Unset"]
    """Missing: not in the target. Extra: in the target only. Doubled: there more than once. Changed: other content.
    Unset: a row that a backfill's where still selects."""


class StepVerification(ResourceModel):
    """Comparison by content of what a consolidation copied, or the check that no row needs a backfill any more."""

    result: Literal["Pending", "Equal", "Different"]
    """Equal: the digests of every key range are the same on both sides, and the counts add up."""
    ranges: Count = 0
    """Key ranges compared."""
    rows: Count = 0
    """Rows compared."""
    trusted: Count = 0
    """Rows that another tool had copied, not compared."""
    different_ranges: Count = 0
    """Ranges that differ."""
    differences: tuple[Difference, ...] = Field(default=(), max_length=10)
    """The first of the differences, by range and key."""
    repaired: Count = 0
    """Rows of the target that verification.repair made again what the mapping says."""
    repairs: tuple[Difference, ...] = Field(default=(), max_length=10)
    """The first of the rows that were repaired, and how they had differed."""
    milliseconds: Count = 0
    """Time it took."""


class Reject(ResourceModel):
    """A row that could not be converted; the reject table keeps its values."""

    step: str = Field(max_length=40)
    """The step."""
    key: str = Field(max_length=256)
    """Key of the row in the source."""
    reason: Line
    """Why."""


class StepStatus(ResourceModel):
    """Progress of one step, as the ledger has it."""

    name: str = Field(max_length=40)
    """Name of the step."""
    state: Literal["Pending", "Running", "Done", "Failed"] = "Pending"
    """Where it is."""
    rows_total: Count = 0
    """Source rows that the step is to account for. It is always copied + existing + rejected in the end."""
    rows_copied: Count = 0
    """Rows this migration wrote."""
    rows_existing: Count = 0
    """Rows that were already there; of a backfill, rows that others set or removed before their turn came."""
    rows_rejected: Count = 0
    """Rows in the reject table."""
    rows_removed: Count = 0
    """Rows that a rollback took out of the target again."""
    batches: Count = 0
    """Committed batches."""
    batch_milliseconds: Count = 0
    """Time spent in committed batches."""
    verification: StepVerification | None = None
    """The comparison by content."""
    started_at: Instant | None = None
    """When it began."""
    finished_at: Instant | None = None
    """When it was done."""


class Progress(ResourceModel):
    """Where the whole migration is."""

    rows_total: Count = 0
    """Source rows of all consolidations and backfills that have begun or are planned."""
    rows_copied: Count = 0
    """Rows written."""
    rows_existing: Count = 0
    """Rows that were already there."""
    rows_rejected: Count = 0
    """Rows that could not be converted."""
    percent: int = Field(default=0, ge=0, le=100)
    """Rows accounted for, of the total."""
    display: str = Field(default="", max_length=64)
    """The same for people, for example 45% (22500/50000)."""
    rows_per_second: Count = 0
    """Recent rate; while nothing is copied, the average of the copy."""
    eta: str = Field(default="", max_length=32)
    """Estimated time until all rows are accounted for, for example 1m20s; empty while unknown or done."""
    batch_size: Count = 0
    """Current size of a batch, which adapts to batch.targetDuration."""


class Throttle(ResourceModel):
    """Whether the migration holds back, and why."""

    reason: str = Field(default="None", max_length=64)
    """None, or the signal: ReplicaLag, WalRate, ActiveBackends, Autovacuum, Window, SignalUnreadable."""
    message: Line = ""
    """The measured value and its bound."""
    since: Instant | None = None
    """Since when it holds back."""
    total_seconds: Count = 0
    """Time spent holding back in all."""


class LastError(ResourceModel):
    """The last failure. Never holds credentials."""

    reason: str = Field(max_length=64)
    """Stable CamelCase word, as in the conditions."""
    message: Annotated[str, Field(max_length=2048)]
    """What happened and what to do."""
    sql_state: str | None = Field(default=None, max_length=5)
    """SQLSTATE, where the database gave one."""
    key: str | None = Field(default=None, max_length=256)
    """Key of the row it happened at, where there is one."""
    retry: Literal["Soon", "WhenMended", "Never"]
    """Soon: it may pass by itself. WhenMended: tried again, but a person must act. Never: not before a new spec."""
    at: Instant | None = None
    """When."""


class MigrationReport(ResourceModel):
    """What the worker reports: a copy of the ledger, which stands in the database."""

    revision: int = Field(default=1, ge=1)
    """The revision of the work that this is about."""
    work_hash: str = Field(default="", max_length=16)
    """Hash of the declared work that this is about."""
    phase: Phase = "Pending"
    """Where the migration is."""
    current_step: str = Field(default="", max_length=40)
    """The step it works on."""
    plan: Plan | None = None
    """What it does."""
    approved_plan: str = Field(default="", max_length=16)
    """The plan hash that was approved, where approval is manual."""
    progress: Progress = Progress()
    """The sums of all steps."""
    steps: tuple[StepStatus, ...] = Field(default=(), max_length=32, json_schema_extra=list_map("name"))
    """Each step."""
    indexes: tuple[IndexStatus, ...] = Field(default=(), max_length=128, json_schema_extra=list_map("name"))
    """Each declared index."""
    throttle: Throttle = Throttle()
    """Whether and why it holds back."""
    rejects: tuple[Reject, ...] = Field(default=(), max_length=10)
    """The first of the rejected rows."""
    rejects_retried: Count = 0
    """The rejects.retry under which the rejected rows were last tried again."""
    last_error: LastError | None = None
    """The last failure; cleared by progress."""
    lock_holder: Line = ""
    """The session that holds the migration's lock, while this worker waits for it."""
    started_at: Instant | None = None
    """When the work first began."""
    finished_at: Instant | None = None
    """When it was complete."""
    retained_until: Instant | None = None
    """When the next retired table is dropped; all else is done."""


class WorkerRun(ResourceModel):
    """The Kubernetes Job that does the work."""

    job: str = Field(max_length=63)
    """Name of the Job."""
    attempt: int = Field(ge=1)
    """Which Job of this revision it is; a failed one is replaced after a growing delay."""
    generation: int = Field(ge=0, json_schema_extra={"format": "int64"})
    """The generation of the spec for which it was started."""
    state: Literal["Waiting", "Active", "Suspended", "Succeeded", "Failed"]
    """State of the Job."""
    finished_at: Instant | None = None
    """When it ended."""


class MigrationJobStatus(StatusModel, MigrationReport):
    """State of the migration: the worker's report, the Job, and the conditions Ready, Verified and the like."""

    run: WorkerRun | None = None
    """The Job that does, or did, the work."""
