"""How fast a consolidation is beside one plain INSERT ... SELECT of the same rows, in one run, taking turns.

`plain` is what a person would write by hand: no checkpoint, no checks, it fails on the first row that cannot be
converted. `conflict` is the same with ON CONFLICT DO NOTHING. `copy` is a whole run of the engine without its
verification: connecting, plan with trial batch, batches with ledger. Figures are medians over the rounds. The server's
CPU time is given beside the wall clock, because it survives a busy machine.

Run: python tests/benchmarks/migration_speed.py [--rows 200000] [--rounds 5]
"""

import argparse
import asyncio
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from shipkeeper.resources.migrationjob_status import MigrationReport
from support.birthday_data import POSTGRESQL_SCHEMA, generate
from support.migration_databases import load_postgresql, migrate, sample_spec
from support.postgres_server import PostgresServer, running_postgres

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

    async def _settled_cpu(self) -> float:
        """Read the CPU time when the session that just ended has been counted."""
        await asyncio.sleep(0.5)
        return server_cpu(self._postgres)

    async def _emptied(self) -> None:
        await self._connection.execute("TRUNCATE interactions RESTART IDENTITY")
        await self._connection.execute("CHECKPOINT")


async def main(rows: int, rounds: int) -> None:
    """Run and print the table."""
    with running_postgres(settings=_SETTINGS) as postgres:
        url = await postgres.create_database("app")
        connection = await postgres.connect("app")
        await connection.execute(POSTGRESQL_SCHEMA)
        await connection.execute("CREATE INDEX idx_interaction_contact_type ON interactions (contact_id, type)")
        await load_postgresql(connection, generate(rows=min(rows, _LOAD_ROWS), seed=1, odd=0))
        await _multiply(connection, rows)
        benchmark = Benchmark(postgres, connection, url)
        for _ in range(rounds):
            await benchmark.round()
        await connection.close()
        _print(benchmark, rows)


async def _multiply(connection: Any, rows: int) -> None:
    """Repeat the generated rows under new keys until there are enough."""
    there = min(rows, _LOAD_ROWS)
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


def _print(benchmark: Benchmark, rows: int) -> None:
    medians = {name: statistics.median(each.wall for each in runs) for name, runs in benchmark.figures.items()}
    print(f"{rows} rows, medians of {len(benchmark.figures['plain'])} rounds")
    for name in ("plain", "conflict", "copy", "verify"):
        cpu = statistics.median(each.cpu for each in benchmark.figures[name])
        spread = [each.wall for each in benchmark.figures[name]]
        print(
            f"{name:9} {medians[name]:7.2f} s ({min(spread):.2f}..{max(spread):.2f}) "
            f"{rows / medians[name]:9.0f} rows/s" + (f", server CPU {cpu:.2f} s" if cpu else "")
        )
    print(f"copy / plain, rate:    {medians['plain'] / medians['copy']:.2f}   (bar 0.85)")
    print(f"copy / conflict, rate: {medians['conflict'] / medians['copy']:.2f}   (bar 0.95)")
    print(f"verify / copy, time:   {medians['verify'] / medians['copy']:.2f}   (bar 0.15)")
    assert benchmark.report is not None
    step = benchmark.report.steps[0]
    print(f"batches {step.batches}, mean {step.batch_milliseconds / max(step.batches, 1):.0f} ms")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"memory of this process, engine and generator: {memory} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    asyncio.run(main(options.rows, options.rounds))
