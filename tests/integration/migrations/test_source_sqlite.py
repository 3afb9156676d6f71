"""A SQLite file as the source of a PostgreSQL target: the same result as from a table of the target, and as safe."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.migrations.errors import MigrationError
from shipkeeper.migrations.source_sqlite import SqliteSource
from shipkeeper.resources.migrationjob import MigrationJobSpec
from support.birthday_data import Legacy, expect, generate
from support.migration_databases import NAME, Recorder, expected_multiset, migrate, sample_spec
from support.migration_process import killed_at_random
from support.migration_sources import (
    BATCH,
    SQLITE,
    TYPED_TARGET,
    assert_exact,
    load_contacts,
    start_worker,
    typed_spec,
)

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("SHIPKEEPER_KILLS", "8"))


def spec_of(**changes: Any) -> MigrationJobSpec:
    """Return the sample's spec with a SQLite file as the source."""
    return sample_spec(source=SQLITE, **changes)


async def load(postgresql: Any, sqlite: Any, legacy: Legacy) -> None:
    """Put the application's tables with the contacts into PostgreSQL, and all of it into the file."""
    await sqlite.load(legacy)
    await load_contacts(postgresql, legacy)


async def test_the_result_is_that_of_one_database(postgresql: Any, sqlite: Any) -> None:
    legacy = generate(rows=5_000, seed=81)
    await load(postgresql, sqlite, legacy)
    before = sqlite.path.read_bytes()

    phase, report = await migrate(postgresql.url, spec_of(), source_url=sqlite.url)

    assert phase == "Complete"
    await assert_exact(postgresql, legacy)
    found = report.steps[1].verification
    assert found is not None
    assert (found.result, found.rows, found.differences) == ("Equal", len(expect(legacy).copied), ())
    assert sqlite.path.read_bytes() == before
    assert not list(sqlite.path.parent.glob("app.db-*"))

    phase, report = await migrate(postgresql.url, spec_of(revision=2), source_url=sqlite.url)
    assert (phase, report.progress.rows_copied) == ("Complete", 0)
    assert report.progress.rows_existing == len(expect(legacy).copied)


async def test_the_plan_tells_what_comes_from_where_and_changes_nothing(postgresql: Any, sqlite: Any) -> None:
    await load(postgresql, sqlite, generate(rows=2_000, seed=82, odd=0))
    phase, report = await migrate(postgresql.url, spec_of(mode="Plan"), source_url=sqlite.url)
    assert phase == "Planned"
    assert report.plan is not None
    step = report.plan.steps[1]
    assert step.action.startswith("copy birthday_messages of the source database into interactions")
    assert step.rows == 2_000
    assert step.trial_rows_per_second is not None
    assert step.table_bytes is not None
    assert step.table_bytes >= sqlite.path.stat().st_size
    assert await postgresql.rows("SELECT count(*) FROM interactions") == [(0,)]
    assert await postgresql.rows("SELECT count(*) FROM pg_class WHERE relname LIKE 'shipkeeper%'") == [(0,)]


async def test_sigkill_at_random_points(postgresql: Any, sqlite: Any, tmp_path: Path) -> None:
    legacy = generate(rows=1_500 * KILLS, seed=83)
    await load(postgresql, sqlite, legacy)
    spec = spec_of(batch=BATCH, rejects={"max": 1_000_000})
    kills = await killed_at_random(
        lambda: start_worker(postgresql.url, sqlite.url, spec, tmp_path),
        times=KILLS,
        chance=random.Random(83),
        longest=1.8,
    )
    assert kills > KILLS // 4
    phase, _ = await migrate(postgresql.url, spec, source_url=sqlite.url)
    assert phase == "Complete"
    await assert_exact(postgresql, legacy)


async def test_damage_on_either_side_is_caught_and_named(postgresql: Any, sqlite: Any) -> None:
    await load(postgresql, sqlite, generate(rows=1_200, seed=84, odd=0))
    spec = spec_of(verification={"rangeSize": 500})
    await migrate(postgresql.url, spec, source_url=sqlite.url)
    await postgresql.execute("DELETE FROM interactions WHERE (payload ->> 'original_id')::int = 900")
    await sqlite.execute("UPDATE birthday_messages SET message_text = 'another' WHERE id = 3000")
    recorder = Recorder()
    migration = Migration(
        spec,
        name=NAME,
        url=parse_url(postgresql.url),
        sink=recorder,
        stop=asyncio.Event(),
        source_url=parse_url(sqlite.url),
    )
    with pytest.raises(MigrationError) as failure:
        await migration.verify()
    assert failure.value.reason == "VerificationFailed"
    found = recorder.last.steps[1].verification
    assert found is not None
    assert [(each.range, each.key, each.kind) for each in found.differences] == [
        ("id 501..999", "900", "Missing"),
        ("id 3000..3498", "3000", "Changed"),
    ]


async def test_a_filter_is_looked_at_in_the_target(postgresql: Any, sqlite: Any) -> None:
    legacy = generate(rows=600, seed=85, odd=0)
    await load(postgresql, sqlite, legacy)
    steps = spec_of().to_wire()["steps"]
    steps[1]["consolidate"]["filter"] = "source.script_mode ~ '^(standard|routine)$'"
    wanted = [each for each in legacy.messages if each["script_mode"] in ("standard", "routine")]

    phase, report = await migrate(postgresql.url, spec_of(steps=steps), source_url=sqlite.url)

    assert phase == "Complete"
    assert (report.progress.rows_total, report.progress.rows_copied) == (len(wanted), len(wanted))
    expected = expect(Legacy(legacy.contacts, wanted))
    assert await postgresql.interactions() == expected_multiset(expected, step_start=None)


async def test_a_row_that_the_target_refuses_is_found_by_splitting(postgresql: Any, sqlite: Any) -> None:
    legacy = generate(rows=900, seed=86, odd=0)
    await load(postgresql, sqlite, legacy)
    refused = {legacy.messages[position]["id"] for position in (17, 18, 700)}
    await postgresql.execute(
        "ALTER TABLE interactions ADD CONSTRAINT interaction_id_allowed "
        f"CHECK ((payload ->> 'original_id')::int NOT IN ({', '.join(map(str, refused))}))"
    )
    _, report = await migrate(postgresql.url, spec_of(), source_url=sqlite.url)
    assert report.progress.rows_copied == 897
    rejects = await postgresql.rows("SELECT row_key::int, reason FROM shipkeeper_migration_rejects")
    assert {key for key, _ in rejects} == refused
    assert all("interaction_id_allowed" in reason for _, reason in rejects)


async def test_stop_finishes_the_batch_and_resumes(postgresql: Any, sqlite: Any) -> None:
    legacy = generate(rows=6_000, seed=87)
    await load(postgresql, sqlite, legacy)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.4, stop.set)
    phase, _ = await migrate(postgresql.url, spec_of(batch=BATCH), stop=stop, source_url=sqlite.url)
    assert phase == "Interrupted"
    phase, _ = await migrate(postgresql.url, spec_of(batch=BATCH), source_url=sqlite.url)
    assert phase == "Complete"
    await assert_exact(postgresql, legacy)


# What a SQLite column may hold.

MISFITS = {
    "text in a number's column": (
        "UPDATE birthday_messages SET days_late = 'soon' WHERE id = 30",
        "days_late holds soon",
    ),
    "no truth value": ("UPDATE birthday_messages SET is_late = 2 WHERE id = 30", "is_late holds 2"),
    "bytes in text": (
        "UPDATE birthday_messages SET message_text = x'ff00' WHERE id = 30",
        "message_text holds \\xff00",
    ),
    "NUL in text": (
        "UPDATE birthday_messages SET message_text = 'a' || char(0) || 'b' WHERE id = 30",
        "message_text holds a\\0b",
    ),
    "text that is not UTF-8": (
        "UPDATE birthday_messages SET message_text = CAST(x'41ff42' AS TEXT) WHERE id = 30",
        "message_text holds A\\udcffB",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
async def test_a_value_that_does_not_fit_its_column_rejects_its_row(postgresql: Any, sqlite: Any, kind: str) -> None:
    await load(postgresql, sqlite, generate(rows=300, seed=88, odd=0))
    statement, reason = MISFITS[kind]
    await sqlite.execute(statement)

    phase, report = await migrate(postgresql.url, spec_of(), source_url=sqlite.url)

    assert phase == "Complete"
    assert (report.progress.rows_copied, report.progress.rows_rejected) == (299, 1)
    [(key, why, values)] = await postgresql.rows("SELECT row_key, reason, row_values FROM shipkeeper_migration_rejects")
    assert key == "30"
    assert why.startswith(reason)
    assert json.loads(values)["contact_name"]


async def test_truth_values_in_words_are_read(postgresql: Any, sqlite: Any) -> None:
    legacy = generate(rows=20, seed=89, odd=0)
    for message in legacy.messages:
        message["is_late"] = message["id"] % 2 == 0
    await load(postgresql, sqlite, legacy)
    await sqlite.execute("UPDATE birthday_messages SET is_late = CASE is_late WHEN 1 THEN 'true' ELSE 'No' END")
    await migrate(postgresql.url, spec_of(), source_url=sqlite.url)
    await assert_exact(postgresql, legacy)


TYPED_SOURCE = """
CREATE TABLE old (code TEXT COLLATE NOCASE, part INTEGER, big BIGINT, price NUMERIC, ratio REAL, flag BOOLEAN,
  raw BLOB, note TEXT, at DATETIME, day DATE, doc JSON, ident UUID, anything, unread INTEGER, PRIMARY KEY (code, part));
"""


async def test_composite_and_text_keys_and_every_kind_of_value(postgresql: Any, sqlite: Any) -> None:
    """The keys sort otherwise in SQLite (NOCASE) than in PostgreSQL; each value arrives as it was."""
    connection = sqlite3.connect(sqlite.path)
    connection.executescript(TYPED_SOURCE)
    connection.executemany(f"INSERT INTO old VALUES ({', '.join('?' * 14)})", list(_typed_rows()))
    connection.commit()
    stored = connection.execute("SELECT * FROM old").fetchall()
    connection.close()
    await postgresql.execute(TYPED_TARGET)

    small = {"initialSize": 4, "minSize": 4, "maxSize": 4}
    spec = typed_spec(SQLITE, batch=small, verification={"rangeSize": 100})
    phase, report = await migrate(postgresql.url, spec, source_url=sqlite.url)

    assert phase == "Complete"
    assert (report.progress.rows_copied, report.progress.rows_rejected) == (30, 0)
    there = await postgresql.rows(
        "SELECT code, part, big, price::text, ratio, flag, raw, note, at::text, day::text, doc::text, ident::text, "
        "anything FROM new"
    )
    assert sorted(there, key=repr) == sorted((_arrived(row) for row in stored), key=repr)


def _typed_rows() -> Iterator[tuple[Any, ...]]:
    texts = ("", "é", "Zoé 🎉", "a'b\\c\n", "x" * 5_000, None)
    fixed = ("2024-03-01 09:30:00.123456", "2024-03-01", '{"a": [1, null]}', "0f8fad5b-d9cb-469f-a165-70867728950e")
    for number, code in enumerate(("a", "B", "c", "É", "z-1", "Z_2", "10", "9", " ", "ß")):
        for part in (-1, 0, 2**62 + number):
            yield (
                code,
                part,
                (2**63 - 1, -(2**63), None, 0)[number % 4],
                (0.1 + 0.2, 0.1, 7, None)[number % 4],
                (1e300, 0.1 + 0.2, None, -0.0)[number % 4],
                (0, 1, None)[number % 3],
                (b"\x00\xff", b"", None)[number % 3],
                texts[number % 6],
                *fixed,
                ("text", 5, 1.5, None)[number % 4],
                ("odd", 1)[number % 2],
            )


def _arrived(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row of the file as PostgreSQL shows it."""
    code, part, big, price, ratio, flag, raw, note, at, day, doc, ident, anything, _ = row
    price = None if price is None else format(Decimal(repr(price)), "f")
    flag = None if flag is None else bool(flag)
    anything = None if anything is None else str(anything)
    return (code, part, big, price, ratio, flag, raw, note, at, day, doc, ident, anything)


# Files that cannot be read.


async def test_files_that_cannot_be_read_are_named(postgresql: Any, sqlite: Any, tmp_path: Path) -> None:
    await load(postgresql, sqlite, generate(rows=10, seed=90, odd=0))
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"this is no database, but long enough to be looked at" * 100)
    other = tmp_path / "other.db"
    sqlite3.connect(other).execute("CREATE TABLE t (x)").connection.close()
    for path, reason in (
        (tmp_path / "absent.db", "DatabaseMissing"),
        (garbage, "SourceUnreadable"),
        (other, "TableMissing"),
    ):
        with pytest.raises(MigrationError, match="source") as failure:
            await migrate(postgresql.url, spec_of(), source_url=f"sqlite:///{path}")
        assert (failure.value.reason, failure.value.retry) == (reason, "WhenMended")


async def test_a_locked_file_is_waited_for(postgresql: Any, sqlite: Any) -> None:
    legacy = generate(rows=500, seed=91)
    await load(postgresql, sqlite, legacy)
    writer = sqlite3.connect(sqlite.path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN EXCLUSIVE")
    asyncio.get_running_loop().call_later(1.5, writer.execute, "COMMIT")
    phase, _ = await migrate(postgresql.url, spec_of(), source_url=sqlite.url)
    assert phase == "Complete"
    await assert_exact(postgresql, legacy)
    writer.close()


@contextlib.contextmanager
def read_only_folder() -> Iterator[Path]:
    """Make a folder in which this process may write nothing in the inner block, as on a volume mounted read-only."""
    folder = Path(tempfile.mkdtemp(prefix="shipkeeper-read-only-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@contextlib.contextmanager
def without_write_access(folder: Path) -> Iterator[None]:
    """Take the right to write in the folder away, from root too."""
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


async def test_a_file_in_wal_mode_is_read_where_nothing_can_be_written() -> None:
    with read_only_folder() as folder:
        path = folder / "app.db"
        writer = sqlite3.connect(path)
        writer.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (7);")
        log = path.with_name("app.db-wal").read_bytes()
        writer.close()
        assert not path.with_name("app.db-wal").exists()
        source = SqliteSource(parse_url(f"sqlite:///{path}"))
        with without_write_access(folder):
            assert await source.rows("SELECT x FROM t") == [(7,)]
        await source.close()

        # A log that was not written back holds rows that cannot be seen: the file is refused, not read without them.
        path.with_name("app.db-wal").write_bytes(log)
        source = SqliteSource(parse_url(f"sqlite:///{path}"))
        with without_write_access(folder), pytest.raises(MigrationError, match="wal_checkpoint") as failure:
            await source.rows("SELECT x FROM t")
        assert (failure.value.reason, failure.value.retry) == ("SourceUnreadable", "WhenMended")
        await source.close()


async def test_keys_of_mixed_kinds_are_refused(postgresql: Any, sqlite: Any) -> None:
    connection = sqlite3.connect(sqlite.path)
    connection.executescript(TYPED_SOURCE)
    connection.executemany("INSERT INTO old (code, part) VALUES (?, ?)", [("a", 1), ("b", "x"), (None, 3)])
    connection.commit()
    connection.close()
    await postgresql.execute(TYPED_TARGET)
    with pytest.raises(MigrationError, match="code of old holds null and text") as failure:
        await migrate(postgresql.url, typed_spec(SQLITE), source_url=sqlite.url)
    assert failure.value.reason == "KeyNotUnique"


async def test_the_table_of_a_file_is_not_retired(postgresql: Any, sqlite: Any) -> None:
    await load(postgresql, sqlite, generate(rows=10, seed=93, odd=0))
    steps = [*spec_of().to_wire()["steps"], {"name": "retire", "retire": {"table": "birthday_messages"}}]
    with pytest.raises(MigrationError, match=r"retire is not supported.*only read") as failure:
        await migrate(postgresql.url, spec_of(steps=steps), source_url=sqlite.url)
    assert (failure.value.reason, failure.value.retry) == ("UnsupportedField", "Never")
    assert await postgresql.rows("SELECT to_regclass('shipkeeper_migration_steps') IS NULL") == [(True,)]
