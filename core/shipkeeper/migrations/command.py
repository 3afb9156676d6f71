"""`shipkeeper migrate`: the worker's engine from a shell, against any database, with no cluster.

The database URL comes from the environment, never from the command line, where every user of the machine could read it.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from shipkeeper.resources.migrationjob import KIND, MigrationJob
from shipkeeper.resources.migrationjob_status import MigrationReport, Phase, Plan

from . import exitcodes
from .database import DatabaseUrl, parse_url
from .engine import Migration
from .errors import MigrationError

_URL_VARIABLE: Final = "DATABASE_URL"
_SOURCE_URL_VARIABLE: Final = "SOURCE_DATABASE_URL"


class TerminalSink:
    """Shows reports as a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    async def write(self, report: MigrationReport) -> None:
        """Show the report."""
        if self._task is None:
            self._task = self._progress.add_task("", total=None, rate=0, rejected=0)
        rows = report.progress
        held = f" (holding back: {report.throttle.reason})" if report.throttle.reason != "None" else ""
        self._progress.update(
            self._task,
            description=f"{report.phase} {report.current_step}{held}",
            total=rows.rows_total or None,
            completed=rows.rows_copied + rows.rows_existing + rows.rows_rejected,
            rate=rows.rows_per_second,
            rejected=rows.rows_rejected,
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        resource = read_resource(options.file)
        return asyncio.run(_run(resource, options.verb, console))
    except MigrationError as error:
        console.print(f"[red]{error.reason}[/red]: {error.message}", highlight=False)
        return exitcodes.RETRY if error.retry == "Soon" else exitcodes.USER_ERROR


def read_resource(path: Path) -> MigrationJob:
    """Read a MigrationJob from a YAML file.

    Raises MigrationError (SpecInvalid) naming the fields that are wrong.
    """
    try:
        return KIND.parse(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:10])
        raise MigrationError("SpecInvalid", f"{path}: {fields}", retry="Never") from error
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise MigrationError("SpecInvalid", f"{path} cannot be read: {error}", retry="Never") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shipkeeper", description="Keep an application fit for production.")
    commands = parser.add_subparsers(required=True, metavar="command")
    migrate = commands.add_parser("migrate", help="run a MigrationJob from this shell")
    verbs = migrate.add_subparsers(dest="verb", required=True, metavar="verb")
    helps = {
        "plan": "say what would be done; change nothing",
        "run": "do the work, or go on with it; Ctrl-C stops after the batch",
        "status": "say what the ledger knows",
        "verify": "compare source and target by content once more",
    }
    for verb, text in helps.items():
        urls = f"The database URL is read from {_URL_VARIABLE}, that of spec.source from {_SOURCE_URL_VARIABLE}."
        each = verbs.add_parser(verb, help=text, description=f"{text}. {urls}")
        each.add_argument("-f", "--file", type=Path, required=True, help="the MigrationJob as YAML")
    return parser


async def _run(resource: MigrationJob, verb: str, console: Console) -> int:
    spec = resource.spec
    url = _url(_URL_VARIABLE, "the database's URL")
    source_url = _url(_SOURCE_URL_VARIABLE, "the URL of spec.source") if spec.source is not None else None
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if verb == "plan":
        spec = spec.model_copy(update={"mode": "Plan"})
    name = f"{resource.metadata.namespace}/{resource.metadata.name}"
    with _progress(console) as progress:
        sink = TerminalSink(progress)
        migration = Migration(spec, name=name, url=url, sink=sink, stop=stop, source_url=source_url)
        phase = await _verb(migration, verb)
    _show(migration.reporter.report, verb)
    return exitcodes.RETRY if phase == "Interrupted" and verb == "run" else exitcodes.COMPLETE


def _url(variable: str, what: str) -> DatabaseUrl:
    text = os.environ.get(variable, "")
    if not text:
        raise MigrationError("DatabaseUrlInvalid", f"set {variable} to {what}", retry="WhenMended")
    return parse_url(text)


async def _verb(migration: Migration, verb: str) -> Phase:
    if verb == "verify":
        return (await migration.verify()).phase
    if verb == "status":
        return (await migration.status()).phase
    return await migration.run()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} rows/s"),
        TextColumn("{task.fields[rejected]} rejected"),
        TimeRemainingColumn(),
        console=console,
    )


def _show(report: MigrationReport, verb: str) -> None:
    """Print the outcome: tables for people, on standard output."""
    console = Console(file=sys.stdout)
    if verb == "plan" and report.plan is not None:
        _show_plan(report.plan, console)
        return
    table = Table("step", "state", "rows", "copied", "already there", "rejected", "verified")
    for step in report.steps:
        verified = step.verification.result if step.verification is not None else ""
        counts = (step.rows_total, step.rows_copied, step.rows_existing, step.rows_rejected)
        table.add_row(step.name, step.state, *map(str, counts), verified)
    console.print(f"{report.phase}, revision {report.revision}")
    console.print(table)
    for index in report.indexes:
        console.print(f"index {index.name}: {index.state} ({index.action})", highlight=False)
    for step in report.steps:
        if step.rows_removed:
            console.print(f"removed {step.name}: {step.rows_removed} rows", highlight=False)
        for repair in step.verification.repairs if step.verification is not None else ():
            console.print(f"repaired {step.name} {repair.key}: {repair.kind}", highlight=False, markup=False)
    for reject in report.rejects:
        console.print(f"rejected {reject.step} {reject.key}: {reject.reason}", highlight=False, markup=False)
    if report.retained_until is not None:
        console.print(f"run again from {report.retained_until:%Y-%m-%d %H:%M:%S} UTC on, to drop the retired table")
    if report.phase == "AwaitingApproval" and report.plan is not None:
        destructive = [step.name for step in report.plan.steps if step.destructive]
        warning = f" ({', '.join(destructive)} can lose data)" if destructive else ""
        console.print(f"set spec.approval.planHash to {report.plan.hash} to go on{warning}", markup=False)


def _show_plan(plan: Plan, console: Console) -> None:
    console.print(f"plan {plan.hash}")
    for step in plan.steps:
        facts: dict[str, Any] = {
            "rows": step.rows,
            "bytes": step.table_bytes,
            "estimated seconds": step.estimated_seconds,
            "trial rows/s": step.trial_rows_per_second,
            "locks": step.locks,
        }
        shown = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        console.print(f"\n{step.name}: {step.action}{' [DESTRUCTIVE]' if step.destructive else ''}", markup=False)
        console.print(f"  {shown}", highlight=False, markup=False)
        for statement in step.sql:
            console.print(f"  {statement}", highlight=False, markup=False)


def run() -> None:
    """Run as the program `shipkeeper`."""
    sys.exit(main())
