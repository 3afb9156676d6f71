"""MigrationJob: indexes to have, tables to consolidate, tables to retire - planned, resumable and proven by content."""

import hashlib
import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .base import Quantity, Resource, ResourceModel, SecretKeyReference, cel, list_map, with_cel
from .kinds import Kind, PrinterColumn
from .migrationjob_status import MigrationJobStatus
from .migrationmapping import exactly_one, exactly_one_rule, refuse_repeated
from .migrationsteps import Step
from .schedule import Span, TimeOfDay, TimeZone, milliseconds

_PATH_LEAVES: Final = "sqlite.path must stay in the volume: remove the .. from it"


class SqliteFile(ResourceModel):
    """A SQLite file on a volume."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(cel("self.path.split('/').all(part, part != '..')", _PATH_LEAVES))
    )

    claim_name: str = Field(min_length=1, max_length=253)
    """Name of the PersistentVolumeClaim that holds the file."""
    path: str = Field(min_length=1, max_length=255, pattern=r"^[^/].*$")
    """Path of the file in the volume, without a leading slash."""

    @model_validator(mode="after")
    def _stays_in_the_volume(self) -> Self:
        if ".." in self.path.split("/"):
            raise ValueError(_PATH_LEAVES)
        return self


_ONE_DATABASE: Final = "a database needs exactly one of urlFrom or sqlite"
_PYTHON_DATABASES: Final = ("url_from", "sqlite")


class Database(ResourceModel):
    """Where a database is."""

    model_config = ConfigDict(json_schema_extra=with_cel(exactly_one_rule(("urlFrom", "sqlite"), _ONE_DATABASE)))

    url_from: SecretKeyReference | None = None
    """Where its URL stands: postgresql+asyncpg://user:password@host:5432/name. Only the worker's pod reads it."""
    sqlite: SqliteFile | None = None
    """A SQLite file on a volume."""

    @model_validator(mode="after")
    def _is_one_database(self) -> Self:
        exactly_one(self, _PYTHON_DATABASES, _ONE_DATABASE)
        return self


class Approval(ResourceModel):
    """Whether a person must approve the plan before anything is changed."""

    mode: Literal["Auto", "Manual"] = "Auto"
    """Auto: go on when the plan is made. Manual: wait until planHash, or the annotation shipkeeper.dev/approved-plan,
    holds the plan's hash; a plan that changed asks again."""
    plan_hash: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$", max_length=16)
    """The hash of the approved plan, from status.plan.hash."""


_BATCH_ORDER: Final = "batch.minSize must not be above batch.initialSize, nor that above batch.maxSize"


class Batch(ResourceModel):
    """Size of a batch: it adapts so that one takes about the target duration."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("self.minSize <= self.initialSize && self.initialSize <= self.maxSize", _BATCH_ORDER)
        )
    )

    initial_size: int = Field(default=2000, ge=1, le=1_000_000)
    """Rows of the first batch."""
    min_size: int = Field(default=100, ge=1, le=1_000_000)
    """Never fewer rows, but where a failing batch is split to find the row."""
    max_size: int = Field(default=100_000, ge=1, le=1_000_000)
    """Never more rows."""
    target_duration: Span = "500ms"
    """How long a batch should take; other transactions wait at most about so long for a row it locks."""

    @model_validator(mode="after")
    def _sizes_are_in_order(self) -> Self:
        if not self.min_size <= self.initial_size <= self.max_size:
            raise ValueError(_BATCH_ORDER)
        return self


class DailyWindow(ResourceModel):
    """The time of day in which batches run."""

    start: TimeOfDay
    """First minute, HH:MM."""
    end: TimeOfDay
    """End, HH:MM, not included. Before `start`: the window runs over midnight."""
    time_zone: TimeZone = "UTC"
    """IANA time zone of both."""


class ThrottleRules(ResourceModel):
    """When to hold back between batches. A signal that cannot be read holds back too (fails closed)."""

    max_replica_lag: Span | None = None
    """Hold back while a streaming replica lags more than this (PostgreSQL)."""
    max_wal_bytes_per_second: int | None = Field(
        default=None, ge=65536, le=10_737_418_240, json_schema_extra={"format": "int64"}
    )
    """Hold back while the whole server writes more write-ahead log than this (PostgreSQL)."""
    max_active_backends: int | None = Field(default=None, ge=1, le=10_000)
    """Hold back while more other sessions than this are active (PostgreSQL)."""
    avoid_autovacuum: bool = False
    """Hold back while autovacuum works on the target table (PostgreSQL)."""
    window: DailyWindow | None = None
    """Run batches only in this time of day."""


_TIMEOUT_BOUND: Final = "locks.tableTimeout and locks.indexBuildTimeout must be longer than zero"


class Locks(ResourceModel):
    """How long to wait for locks. Quick statements and index builds have budgets of their own."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel(
                "duration(self.tableTimeout) > duration('0s') && duration(self.indexBuildTimeout) > duration('0s')",
                _TIMEOUT_BOUND,
            )
        )
    )

    table_timeout: Span = "3s"
    """lock_timeout of quick statements on a table: those behind it in the queue wait so long at most."""
    index_build_timeout: Span = "10m"
    """lock_timeout of CREATE INDEX CONCURRENTLY, which waits for every older transaction and for autovacuum."""
    attempts: int = Field(default=5, ge=1, le=100)
    """Attempts at a lock, with a growing pause between them."""

    @model_validator(mode="after")
    def _budgets_are_positive(self) -> Self:
        if milliseconds(self.table_timeout) <= 0 or milliseconds(self.index_build_timeout) <= 0:
            raise ValueError(_TIMEOUT_BOUND)
        return self


class Verification(ResourceModel):
    """How the copy is proven before the migration is complete and before anything is retired."""

    range_size: int = Field(default=10_000, ge=100, le=1_000_000)
    """Rows in one key range, about. A smaller range names a difference more exactly and costs no more."""
    repair: bool = False
    """Make the rows that differ again what the mapping says, then compare once more: rows that were lost, changed or
    doubled in the target, whoever did it. Off: stop and name the difference."""


class Rejects(ResourceModel):
    """What to do with rows that cannot be converted. They are kept in the table shipkeeper_migration_rejects."""

    max: int = Field(default=1000, ge=0, le=1_000_000_000, json_schema_extra={"format": "int64"})
    """Stop when more rows than this were rejected. 0: stop at the first."""
    retry: int = Field(default=0, ge=0, le=1_000_000)
    """Raise it by one to try the rejected rows again, and only them, after a fix."""


class ComputeAmounts(ResourceModel):
    """Amounts of CPU and memory."""

    cpu: Quantity | None = None
    """CPU, for example 500m."""
    memory: Quantity | None = None
    """Memory, for example 256Mi."""


class ComputeResources(ResourceModel):
    """What the worker's container asks for and may use at most."""

    requests: ComputeAmounts = ComputeAmounts(cpu="100m", memory="96Mi")
    """What the scheduler sets aside."""
    limits: ComputeAmounts = ComputeAmounts(memory="256Mi")
    """What it may not exceed."""


class Toleration(ResourceModel):
    """A taint that the worker's pod tolerates, as in a pod."""

    key: str | None = Field(default=None, max_length=316)
    """Key of the taint; absent with Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists, or Equal to the value."""
    value: str | None = Field(default=None, max_length=63)
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; absent: every effect."""


class WorkerTemplate(ResourceModel):
    """The Kubernetes Job and its pod."""

    resources: ComputeResources = ComputeResources()
    """CPU and memory of the worker."""
    node_selector: dict[str, Annotated[str, Field(max_length=63)]] = Field(default_factory=dict, max_length=32)
    """Labels that the pod's node must have."""
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=32)
    """Taints that the pod tolerates."""
    backoff_limit: int = Field(default=6, ge=0, le=100)
    """Pods of one Job that may fail for a transient cause. A Job that used them up is replaced after a delay."""
    active_deadline_seconds: int | None = Field(default=None, ge=60, le=31_536_000)
    """A Job that runs longer is ended, resumably, and replaced. Absent: no bound."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=31_536_000)
    """Remove the finished Job after so many seconds. It is never run again for that. Absent: kept with the resource."""


_RETIRE_NEEDS_CONSOLIDATE: Final = (
    "retire.table must be the source of a consolidate step of this migration, which stands before it"
)
_REVISION_FALLS: Final = "revision must not become lower: raise it for a new run"
_WORK_IMMUTABLE: Final = (
    "spec.database, spec.source and spec.steps cannot change once the work has begun: "
    "raise spec.revision to run the changed work as a new run"
)


class MigrationJobSpec(ResourceModel):
    """What the database should be brought to, and how carefully."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("self.revision >= oldSelf.revision", _REVISION_FALLS, field_path=".revision"),
            # That the consolidation stands before is left to the model: CEL of older servers has no index in a list.
            cel(
                "self.steps.all(s, !has(s.retire) || self.steps.exists(t, has(t.consolidate)"
                " && t.consolidate.source == s.retire.table))",
                _RETIRE_NEEDS_CONSOLIDATE,
                field_path=".steps",
            ),
        )
    )

    database: Database
    """The database that is changed."""
    source: Database | None = None
    """Where the tables that are consolidated stand, if in another database. Absent: in the same."""
    revision: int = Field(default=1, ge=1, le=1_000_000)
    """Number of the run. Once the work has begun it may only change together with this number: a new run."""
    mode: Literal["Apply", "Plan"] = "Apply"
    """Apply: do the work. Plan: only say in status what would be done."""
    approval: Approval = Approval()
    """Whether a person must approve the plan."""
    suspend: bool = False
    """Pause after the current batch; set back to resume where it stands."""
    cancel: bool = False
    """Stop after the current batch. What was copied stays; set back to resume."""
    rollback: bool = False
    """Remove exactly the rows that this migration's consolidations wrote, as long as their sources still exist."""
    steps: tuple[Step, ...] = Field(min_length=1, max_length=32, json_schema_extra=list_map("name"))
    """The steps, in order."""
    batch: Batch = Batch()
    """Size of the batches."""
    throttle: ThrottleRules = ThrottleRules()
    """When to hold back."""
    locks: Locks = Locks()
    """How long to wait for locks."""
    verification: Verification = Verification()
    """How the copy is proven."""
    rejects: Rejects = Rejects()
    """What to do with rows that cannot be converted."""
    parallelism: int = Field(default=1, ge=1, le=32)
    """Pods that copy at once, each claiming key ranges from the ledger."""
    worker: WorkerTemplate = WorkerTemplate()
    """The Kubernetes Job and its pod."""

    @model_validator(mode="after")
    def _steps_fit_together(self) -> Self:
        refuse_repeated("steps", [step.name for step in self.steps])
        consolidated: set[str] = set()
        for step in self.steps:
            if step.consolidate is not None:
                consolidated.add(step.consolidate.source)
            if step.retire is not None and step.retire.table not in consolidated:
                raise ValueError(f"step {step.name}: {_RETIRE_NEEDS_CONSOLIDATE}")
        return self

    def work(self) -> dict[str, Any]:
        """Return what the spec says is done; the rest says how carefully, and may change at any time."""
        wire = self.to_wire()
        return {name: wire[name] for name in ("database", "source", "revision", "steps") if name in wire}

    def work_hash(self) -> str:
        """Return the hash of the work, by which ledger, report and Job know what they are about."""
        canonical = json.dumps(self.work(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def refuse_changed_work(old: MigrationJobSpec, new: MigrationJobSpec) -> None:
    """Raise ValueError if the work differs though the revision does not, as the API server does once it has begun."""
    if new.revision < old.revision:
        raise ValueError(_REVISION_FALLS)
    if new.revision == old.revision and new.work() != old.work():
        raise ValueError(_WORK_IMMUTABLE)


MigrationJob = Resource[MigrationJobSpec, MigrationJobStatus]

KIND: Final = Kind(
    kind="MigrationJob",
    plural="migrationjobs",
    singular="migrationjob",
    short_names=("mig",),
    spec=MigrationJobSpec,
    status=MigrationJobStatus,
    description="Indexes to have, tables to consolidate and tables to retire: planned, resumable, proven by content.",
    columns=(
        PrinterColumn("Phase", ".status.phase", "Where the migration is."),
        PrinterColumn("Step", ".status.currentStep", "The step it works on."),
        PrinterColumn("Progress", ".status.progress.display", "Rows accounted for, of all."),
        PrinterColumn("Rate", ".status.progress.rowsPerSecond", "Rows per second.", type="integer"),
        PrinterColumn("ETA", ".status.progress.eta", "Estimated time until all rows are accounted for."),
        PrinterColumn("Throttled", ".status.throttle.reason", "Why it holds back, or None."),
        PrinterColumn(
            "Verified",
            ".status.conditions[?(@.type=='Verified')].status",
            "Whether source and target were proven equal by content.",
        ),
        PrinterColumn("Rejected", ".status.progress.rowsRejected", "Rows not converted.", type="integer", priority=1),
        PrinterColumn("Message", ".status.conditions[?(@.type=='Ready')].message", "What to know or do.", priority=1),
        PrinterColumn("Age", ".metadata.creationTimestamp", "When it was created.", type="date"),
    ),
    validations=(
        cel(
            "self.spec.revision != oldSelf.spec.revision || !has(oldSelf.status) || !has(oldSelf.status.startedAt) || "
            "(self.spec.steps == oldSelf.spec.steps && self.spec.database == oldSelf.spec.database && "
            "has(self.spec.source) == has(oldSelf.spec.source) && "
            "(!has(self.spec.source) || self.spec.source == oldSelf.spec.source))",
            _WORK_IMMUTABLE,
        ),
    ),
)
