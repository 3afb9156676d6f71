"""How fast a consolidation from a SQLite file is beside asyncpg's COPY of the same rows, in one run, taking turns.

`copy` is what a person would write by hand: read the file, make each row of the target in Python, COPY them; no
checkpoint, no rejects. `ready` is the COPY alone, of rows of the target made before the clock runs. `raw` puts the rows
of the file as they are into a table without an index. `engine` is a whole run of the engine without its verification.
Figures are medians over the rounds.

Run: python tests/benchmarks/migration_source_speed.py [--rows 200000] [--rounds 5]
"""

import argparse
import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.birthday_data import LEGACY_COLUMNS, SQLITE_SCHEMA, generate
from support.migration_databases import load_sqlite, migrate, sample_spec
from support.migration_sources import SQLITE, load_contacts
from support.postgres_server import running_postgres

_LOAD_ROWS = 50_000
_CHUNK = 5_000
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
}
_PARIS = ZoneInfo("Europe/Paris")
_TARGET_COLUMNS = ("contact_id", "type", "status", "created_at", "payload")
_RAW_TABLE = """
CREATE TABLE raw_messages (
  id integer, contact_id integer, contact_name text, message_text text, sent_at text, is_late integer,
  days_late integer, response_received integer, response_text text, response_date text, script_mode text)
"""


class Benchmark:
    """One file, one database, and the competitors."""

    def __init__(self, connection: Any, url: str, path: Path) -> None:
        self._connection = connection
        self._url = url
        self._path = path
        self._revision = 0
        self.seconds: dict[str, list[float]] = {"copy": [], "ready": [], "raw": [], "engine": [], "verify": []}

    async def round(self) -> None:
        """Let each run once."""
        await self._measured("copy", self._copy_in("interactions", _converted(self._path), _TARGET_COLUMNS))
        records = [[_interaction(row) for row in chunk] for chunk in _chunks(self._path)]
        await self._measured("ready", self._copy_in("interactions", records, _TARGET_COLUMNS))
        await self._measured("raw", self._copy_in("raw_messages", _chunks(self._path), LEGACY_COLUMNS))
        await self._engine()

    async def _measured(self, name: str, work: Any) -> None:
        await self._emptied()
        began = time.monotonic()
        await work
        self.seconds[name].append(time.monotonic() - began)

    async def _copy_in(self, table: str, chunks: Iterable[list[Any]], columns: Sequence[str]) -> None:
        async with self._connection.transaction():
            for chunk in chunks:
                await self._connection.copy_records_to_table(table, records=chunk, columns=list(columns))

    async def _engine(self) -> None:
        await self._emptied()
        self._revision += 1
        steps = sample_spec().to_wire()["steps"][1:]
        spec = sample_spec(source=SQLITE, steps=steps, revision=self._revision)
        began = time.monotonic()
        _, report = await migrate(self._url, spec, source_url=f"sqlite:///{self._path}")
        wall = time.monotonic() - began
        found = report.steps[0].verification
        assert found is not None
        self.seconds["engine"].append(wall - found.milliseconds / 1000)
        self.seconds["verify"].append(found.milliseconds / 1000)

    async def _emptied(self) -> None:
        await self._connection.execute("TRUNCATE interactions, raw_messages RESTART IDENTITY")
        await self._connection.execute("CHECKPOINT")


def _chunks(path: Path) -> Iterator[list[Any]]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    cursor = connection.execute(f"SELECT {', '.join(LEGACY_COLUMNS)} FROM birthday_messages ORDER BY id")
    while chunk := cursor.fetchmany(_CHUNK):
        yield chunk
    connection.close()


def _converted(path: Path) -> Iterator[list[Any]]:
    for chunk in _chunks(path):
        yield [_interaction(row) for row in chunk]


def _interaction(row: Any) -> tuple[Any, ...]:
    message = dict(zip(LEGACY_COLUMNS, row, strict=True))
    sent = datetime.fromisoformat(message["sent_at"])
    sent = (sent if sent.tzinfo is not None else sent.replace(tzinfo=_PARIS)).astimezone(UTC).replace(tzinfo=None)
    payload = {name: value for name, value in message.items() if name not in ("id", "contact_id", "sent_at")}
    for name in ("is_late", "response_received"):
        payload[name] = bool(payload[name])
    payload |= {
        "migrated_from": "birthday_messages",
        "original_id": message["id"],
        "original_sent_at": message["sent_at"],
    }
    return message["contact_id"], "birthday_sent", "success", sent, json.dumps(payload, ensure_ascii=False)


async def main(rows: int, rounds: int) -> None:
    """Run and print the table."""
    with running_postgres(settings=_SETTINGS) as postgres, tempfile.TemporaryDirectory() as folder:
        legacy = generate(rows=min(rows, _LOAD_ROWS), seed=1, odd=0)
        path = Path(folder) / "app.db"
        load_sqlite(path, SQLITE_SCHEMA, legacy)
        _multiply(path, rows)
        url = await postgres.create_database("app")
        connection = await postgres.connect("app")

        class Target:
            def __init__(self) -> None:
                self.connection = connection

            async def execute(self, sql: str) -> None:
                await connection.execute(sql)

        await load_contacts(Target(), legacy)
        await connection.execute("CREATE INDEX idx_interaction_contact_type ON interactions (contact_id, type)")
        await connection.execute(_RAW_TABLE)
        benchmark = Benchmark(connection, url, path)
        for _ in range(rounds):
            await benchmark.round()
        await connection.close()
    _print(benchmark, rows)


def _multiply(path: Path, rows: int) -> None:
    """Repeat the generated rows under new keys until there are enough."""
    there = min(rows, _LOAD_ROWS)
    columns = ", ".join(LEGACY_COLUMNS[1:])
    connection = sqlite3.connect(path)
    while there < rows:
        more = min(there, rows - there)
        connection.execute(
            f"INSERT INTO birthday_messages (id, {columns}) SELECT id + {there * 3}, {columns} "
            f"FROM birthday_messages ORDER BY id LIMIT {more}"
        )
        there += more
    connection.commit()
    connection.close()


def _print(benchmark: Benchmark, rows: int) -> None:
    medians = {name: statistics.median(runs) for name, runs in benchmark.seconds.items()}
    print(f"{rows} rows, medians of {len(benchmark.seconds['copy'])} rounds")
    for name, runs in benchmark.seconds.items():
        print(f"{name:9} {medians[name]:7.2f} s ({min(runs):.2f}..{max(runs):.2f}) {rows / medians[name]:9.0f} rows/s")
    print(f"engine / copy, rate:   {medians['copy'] / medians['engine']:.2f}   (bar 0.70)")
    print(f"engine / ready, rate:  {medians['ready'] / medians['engine']:.2f}")
    print(f"engine / raw, rate:    {medians['raw'] / medians['engine']:.2f}")
    print(f"verify / engine, time: {medians['verify'] / medians['engine']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    asyncio.run(main(options.rows, options.rounds))
