"""The worker's metrics, kept by the one who passes reports on: they say what the report says."""

from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from shipkeeper.resources.migrationjob_status import MigrationReport

from .reporting import ReportSink

_LABELS: Final = ("step",)


class MeteredSink:
    """Passes reports on and shows their figures as metrics. All are the ledger's sums, so they outlive a restart."""

    def __init__(self, sink: ReportSink, *, registry: CollectorRegistry = REGISTRY) -> None:
        self._sink = sink
        self._rows = Gauge(
            "shipkeeper_migration_rows",
            "Rows accounted for by a step, by what became of them.",
            (*_LABELS, "result"),
            registry=registry,
        )
        self._total = Gauge("shipkeeper_migration_source_rows", "Rows to account for.", _LABELS, registry=registry)
        self._batches = Gauge("shipkeeper_migration_batches", "Committed batches.", _LABELS, registry=registry)
        self._seconds = Gauge(
            "shipkeeper_migration_batch_seconds", "Time spent in committed batches.", _LABELS, registry=registry
        )
        self._throttled = Gauge("shipkeeper_migration_throttled_seconds", "Time spent holding back.", registry=registry)

    async def write(self, report: MigrationReport) -> None:
        """Set the metrics and pass the report on."""
        for step in report.steps:
            self._total.labels(step.name).set(step.rows_total)
            self._rows.labels(step.name, "copied").set(step.rows_copied)
            self._rows.labels(step.name, "existing").set(step.rows_existing)
            self._rows.labels(step.name, "rejected").set(step.rows_rejected)
            self._batches.labels(step.name).set(step.batches)
            self._seconds.labels(step.name).set(step.batch_milliseconds / 1000)
        self._throttled.set(report.throttle.total_seconds)
        await self._sink.write(report)
