"""How fast a consolidation is beside one plain INSERT ... SELECT of the same rows, in one run, taking turns.

`plain` is what a person would write by hand: no checkpoint, no checks, it fails on the first row that cannot be
converted. `conflict` is the same with ON CONFLICT DO NOTHING. `copy` is a whole run of the engine without its
verification: connecting, plan with trial batch, batches with ledger. Figures are medians over the rounds; a ratio is
the median of each round's own ratio. The server's CPU time is given beside the wall clock, because it survives a busy
machine. Memory is the peak of a worker in a process of its own, at the rows asked for and at five times as many.

Run: python tests/benchmarks/migration_speed.py [--rows 200000] [--rounds 5] [--picture PATH] [--json PATH]
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import (
    Bar,
    Chart,
    Machine,
    Target,
    print_chart,
    print_table,
    print_targets,
    this_machine,
    write_json,
    write_picture,
)
from shipkeeper.resources.migrationjob_status import MigrationReport
from support.birthday_data import POSTGRESQL_SCHEMA, generate
from support.migration_databases import load_postgresql, migrate, sample_spec
from support.postgres_server import PostgresServer, running_postgres

TESTS: Final = Path(__file__).parents[1]
MEMORY_GROWTH: Final = 5
"""How many times the rows the second measurement of memory has."""

_LOAD_ROWS = 50_000
# As in production: what a crash of the machine may not lose is on disk.
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
}
_PLAIN = """
INSERT INTO interactions (contact_id, type, status, created_at, payload)
SELECT coalesce(s.contact_id, c.id), 'birthday_sent',
  CASE WHEN coalesce(s.sent_at, '') = '' THEN 'pending' ELSE 'success' END,
  CASE WHEN s.sent_at ~ '[+-][0-9][0-9]:[0-9][0-9]$' THEN s.sent_at::timestamptz AT TIME ZONE 'UTC'
       ELSE (s.sent_at::timestamp AT TIME ZONE 'Europe/Paris') AT TIME ZONE 'UTC' END,
  json_build_object(
    'message_text', s.message_text, 'contact_name', s.contact_name, 'is_late', s.is_late, 'days_late', s.days_late,
    'script_mode', s.script_mode, 'response_received', s.response_received, 'response_text', s.response_text,
    'response_date', s.response_date, 'migrated_from', 'birthday_messages', 'original_id', s.id,
    'original_sent_at', s.sent_at)
FROM birthday_messages s LEFT JOIN contacts c ON s.contact_id IS NULL AND c.name = s.contact_name
"""


@dataclass(frozen=True)
class Figure:
    """What one run took."""

    wall: float
    cpu: float


def server_cpu(postgres: PostgresServer) -> float:
    """Return the CPU seconds of the server's processes, those that ended included."""
    leader = postgres.process_id()
    ticks = sum(map(int, _stat(leader)[11:15]))
    for entry in os.listdir("/proc"):
        if entry.isdigit() and entry != str(leader):
            try:
                fields = _stat(int(entry))
            except OSError:
                continue  # It ended meanwhile.
            if int(fields[1]) == leader:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()


class Benchmark:
    """One database, and the competitors on it."""

    def __init__(self, postgres: PostgresServer, connection: Any, url: str) -> None:
        self._postgres = postgres
        self._connection = connection
        self._url = url
        self._revision = 0
        self.figures: dict[str, list[Figure]] = {"plain": [], "conflict": [], "copy": [], "verify": []}
        self.report: MigrationReport | None = None
        self.memory: dict[int, float] = {}

    async def round(self) -> None:
        """Let each run once."""
        await self._measured("plain", self._connection.execute, _PLAIN)
        await self._measured("conflict", self._connection.execute, f"{_PLAIN} ON CONFLICT DO NOTHING")
        await self._engine()

    async def _measured(self, name: str, call: Any, *arguments: Any) -> None:
        await self._emptied()
        wall, cpu = time.monotonic(), server_cpu(self._postgres)
        await call(*arguments)
        self.figures[name].append(Figure(time.monotonic() - wall, server_cpu(self._postgres) - cpu))

    async def _engine(self) -> None:
        await self._emptied()
        self._revision += 1
        steps = sample_spec().to_wire()["steps"][1:]
        wall, cpu = time.monotonic(), server_cpu(self._postgres)
        _, report = await migrate(self._url, sample_spec(steps=steps, revision=self._revision))
        wall, cpu = time.monotonic() - wall, await self._settled_cpu() - cpu
        verification = report.steps[0].verification
        assert verification is not None
        verify = verification.milliseconds / 1000
        self.figures["copy"].append(Figure(wall - verify, cpu))
        self.figures["verify"].append(Figure(verify, 0.0))
        self.report = report

    async def worker_memory(self, rows: int) -> None:
        """Run a worker in a process of its own, and keep its peak in MiB."""
        await self._emptied()
        self._revision += 1
        steps = sample_spec().to_wire()["steps"][1:]
        self.memory[rows] = await asyncio.to_thread(
            _peak_of_worker, self._url, sample_spec(steps=steps, revision=self._revision).to_wire()
        )

    async def _settled_cpu(self) -> float:
        """Read the CPU time when the session that just ended has been counted."""
        await asyncio.sleep(0.5)
        return server_cpu(self._postgres)

    async def _emptied(self) -> None:
        await self._connection.execute("TRUNCATE interactions RESTART IDENTITY")
        await self._connection.execute("CHECKPOINT")


def _peak_of_worker(url: str, spec: dict[str, Any]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps(spec))
        environment = os.environ | {
            "DATABASE_URL": url,
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        worker = subprocess.Popen([sys.executable, "-m", "support.migration_process", str(file)], env=environment)
        peak = 0
        # The kernel's own account of a child (wait4) would begin with this process's memory.
        while worker.poll() is None:
            peak = max(peak, _high_water_kib(worker.pid))
            time.sleep(0.05)
    if worker.returncode != 0:
        raise RuntimeError(f"the worker ended with {worker.returncode}")
    return peak / 1024


def _high_water_kib(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


@dataclass(frozen=True)
class Results:
    """All that was measured."""

    machine: Machine
    rows: int
    figures: dict[str, list[Figure]]
    memory: dict[int, float]
    report: MigrationReport

    def wall(self, name: str) -> float:
        """Return the median seconds of a competitor."""
        return statistics.median(each.wall for each in self.figures[name])

    def ratio(self, above: str, below: str) -> float:
        """Return the median of each round's ratio of seconds."""
        pairs = zip(self.figures[above], self.figures[below], strict=True)
        return statistics.median(one.wall / other.wall for one, other in pairs)


async def measure(rows: int, rounds: int) -> Results:
    """Measure everything."""
    with running_postgres(settings=_SETTINGS) as postgres:
        url = await postgres.create_database("app")
        connection = await postgres.connect("app")
        version = (await connection.fetchval("SHOW server_version")).split()[0]
        machine = this_machine(("asyncpg", "sqlalchemy"), {"PostgreSQL": version})
        print(f"{machine.text}\nMeasuring {rows:,} rows, {rounds} rounds ...", flush=True)
        await connection.execute(POSTGRESQL_SCHEMA)
        await connection.execute("CREATE INDEX idx_interaction_contact_type ON interactions (contact_id, type)")
        await load_postgresql(connection, generate(rows=min(rows, _LOAD_ROWS), seed=1, odd=0))
        await _multiply(connection, there=min(rows, _LOAD_ROWS), rows=rows)
        benchmark = Benchmark(postgres, connection, url)
        for _ in range(rounds):
            await benchmark.round()
        await benchmark.worker_memory(rows)
        await _multiply(connection, there=rows, rows=rows * MEMORY_GROWTH)
        await benchmark.worker_memory(rows * MEMORY_GROWTH)
        await connection.close()
    assert benchmark.report is not None
    return Results(machine, rows, benchmark.figures, benchmark.memory, benchmark.report)


async def _multiply(connection: Any, *, there: int, rows: int) -> None:
    """Repeat the rows that are there under new keys until there are enough."""
    columns = (
        "contact_id, contact_name, message_text, sent_at, is_late, days_late, "
        "response_received, response_text, response_date, script_mode"
    )
    while there < rows:
        more = min(there, rows - there)
        await connection.execute(
            f"INSERT INTO birthday_messages (id, {columns}) SELECT id + {there * 3}, {columns} "
            f"FROM birthday_messages ORDER BY id LIMIT {more}"
        )
        there += more
    await connection.execute("VACUUM ANALYZE birthday_messages")


def chart_of(results: Results) -> Chart:
    """Return the rates beside each other."""
    rows, verified = results.rows, results.wall("copy") + results.wall("verify")
    return Chart(
        f"Copying {rows:,} rows, one session",
        "rows/s, more is better",
        [
            Bar("one INSERT ... SELECT", rows / results.wall("plain"), "baseline"),
            Bar("the same with ON CONFLICT DO NOTHING", rows / results.wall("conflict"), "baseline"),
            Bar("shipkeeper, copy", rows / results.wall("copy"), "ours"),
            Bar("shipkeeper, copy and verification", rows / verified, "ours"),
        ],
    )


def targets_of(results: Results) -> Sequence[Target]:
    """Compare what was promised with what came out."""
    plain, conflict = results.ratio("plain", "copy"), results.ratio("conflict", "copy")
    verify, (low, high) = results.ratio("verify", "copy"), results.memory.values()
    return [
        Target("rate of the copy / one INSERT ... SELECT", "at least 0.85", f"{plain:.2f}", plain >= 0.85),
        Target("rate of the copy / with ON CONFLICT", "at least 0.95", f"{conflict:.2f}", conflict >= 0.95),
        Target("time of the verification / of the copy", "at most 0.15", f"{verify:.2f}", verify <= 0.15),
        Target("memory of the worker", "at most 100 MiB", f"{max(low, high):.0f} MiB", max(low, high) <= 100),
        Target(
            f"memory at {MEMORY_GROWTH} times the rows", "at most 3 MiB more", f"{high - low:+.1f} MiB", high - low <= 3
        ),
    ]


def show(results: Results) -> None:
    """Print everything."""
    lines = []
    for name, runs in results.figures.items():
        walls = [each.wall for each in runs]
        cpu = statistics.median(each.cpu for each in runs)
        seconds = results.wall(name)
        spread = f"{min(walls):.2f}..{max(walls):.2f}"
        lines.append((name, f"{seconds:.2f}", spread, f"{results.rows / seconds:,.0f}", f"{cpu:.2f}" if cpu else ""))
    rounds = len(results.figures["plain"])
    title = f"{results.rows:,} rows, medians of {rounds} rounds"
    print_table(title, ("", "seconds", "spread", "rows/s", "server CPU, s"), lines)
    step = results.report.steps[0]
    print(f"{step.batches} batches, {step.batch_milliseconds / max(step.batches, 1):.0f} ms on average")
    print_chart(chart_of(results))
    print_targets(targets_of(results))


def figures_of(results: Results) -> dict[str, Any]:
    """Return all figures, for a file."""
    runs = {name: [asdict(each) for each in figures] for name, figures in results.figures.items()}
    return {"rows": results.rows, "runs": runs, "worker_memory_mib": results.memory}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path, metavar="PATH", help="write the bars as SVG")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures")
    options = parser.parse_args()
    results = asyncio.run(measure(options.rows, options.rounds))
    show(results)
    if options.picture:
        write_picture(options.picture, chart_of(results), results.machine)
    if options.json:
        write_json(options.json, results.machine, targets_of(results), figures_of(results))


if __name__ == "__main__":
    main()
