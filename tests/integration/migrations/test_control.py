"""Plan, approval, throttle, retiring, and the failures of the world around: what a person decides, and is told."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.migrations.errors import MigrationError
from support.birthday_data import expect, generate
from support.migration_databases import NAME, Recorder, migrate, sample_spec
from support.postgres_server import free_port

pytestmark = pytest.mark.integration

RETIRE = {"name": "retire", "retire": {"table": "birthday_messages"}}


def steps(*further: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sample's steps and further ones."""
    return [*sample_spec().to_wire()["steps"], *further]


async def test_plan_mode_changes_nothing(database: Any) -> None:
    await database.load(generate(rows=500, seed=51))
    phase, report = await migrate(database.url, sample_spec(mode="Plan"))
    assert phase == "Planned"
    assert report.plan is not None
    indexes, copy = report.plan.steps
    assert len(indexes.sql) == 5
    assert copy.rows == 500
    assert copy.trial_rows_per_second is not None
    assert not copy.destructive
    assert sum((await database.interactions()).values()) == 0
    sqlite = database.url.startswith("sqlite")
    names = "SELECT name FROM sqlite_master" if sqlite else "SELECT relname FROM pg_class"
    assert [name for (name,) in await database.rows(names) if name.startswith("shipkeeper")] == []


async def test_manual_approval_names_the_plan(database: Any) -> None:
    await database.load(generate(rows=100, seed=52, odd=0))
    phase, report = await migrate(database.url, sample_spec(approval={"mode": "Manual"}))
    assert phase == "AwaitingApproval"
    assert report.plan is not None
    approval = {"mode": "Manual", "planHash": report.plan.hash}

    # Planned again, the same work has the same hash; another index state is another plan.
    _, again = await migrate(database.url, sample_spec(approval={"mode": "Manual"}))
    assert again.plan is not None
    assert again.plan.hash == report.plan.hash
    await database.execute("CREATE INDEX idx_contact_status ON contacts (status)")
    phase, changed = await migrate(database.url, sample_spec(approval=approval))
    assert phase == "AwaitingApproval"
    assert changed.plan is not None

    approval["planHash"] = changed.plan.hash
    phase, report = await migrate(database.url, sample_spec(approval=approval))
    assert (phase, report.approved_plan) == ("Complete", changed.plan.hash)


async def test_retire_renames_after_verification_only(database: Any) -> None:
    await database.load(generate(rows=100, seed=53))
    phase, report = await migrate(database.url, sample_spec(steps=steps(RETIRE)))
    assert phase == "Complete"
    assert report.plan is not None
    assert [step.destructive for step in report.plan.steps] == [False, False, True]
    assert await database.rows("SELECT count(*) FROM birthday_messages_retired") == [(100,)]
    phase, _ = await migrate(database.url, sample_spec(steps=steps(RETIRE)))
    assert phase == "Complete"


async def test_rows_that_came_later_stop_the_retirement(database: Any) -> None:
    legacy = generate(rows=100, seed=54, odd=0)
    await database.load(legacy)
    spec = sample_spec(steps=steps(RETIRE))
    columns = "id, contact_id, contact_name, message_text, sent_at"
    late = f"INSERT INTO birthday_messages ({columns}) VALUES (9999, 1, 'x', '', '2024-01-01')"
    # The trigger stands for the old code, which writes one more row when the copy is nearly done.
    key = legacy.messages[-1]["id"]
    if database.url.startswith("sqlite"):
        await database.execute(
            "CREATE TRIGGER late AFTER INSERT ON interactions "
            f"WHEN json_extract(new.payload, '$.original_id') = {key} BEGIN {late}; END"
        )
    else:
        await database.execute(
            "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF (new.payload ->> 'original_id')::int = {key} THEN {late}; END IF; RETURN new; END $$;"
            "CREATE TRIGGER late BEFORE INSERT ON interactions FOR EACH ROW EXECUTE FUNCTION late()"
        )
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, spec)
    assert (failure.value.reason, failure.value.retry) == ("SourceHasNewRows", "Never")
    assert await database.rows("SELECT count(*) FROM birthday_messages") == [(101,)]

    await database.execute("DROP TRIGGER late" + ("" if database.url.startswith("sqlite") else " ON interactions"))
    phase, report = await migrate(database.url, sample_spec(steps=steps(RETIRE), revision=2))
    assert phase == "Complete"
    assert (report.progress.rows_copied, report.progress.rows_existing) == (1, 100)
    assert await database.rows("SELECT count(*) FROM birthday_messages_retired") == [(101,)]


async def test_other_work_under_the_same_revision_is_refused(database: Any) -> None:
    await database.load(generate(rows=50, seed=55, odd=0))
    await migrate(database.url, sample_spec())
    with pytest.raises(MigrationError, match=r"raise spec\.revision") as failure:
        await migrate(database.url, sample_spec(steps=steps(RETIRE)))
    assert failure.value.reason == "WorkChanged"


async def test_closed_window_holds_back_and_says_why(database: Any) -> None:
    await database.load(generate(rows=50, seed=56, odd=0))
    now = datetime.now(UTC)
    window = {"start": f"{now + timedelta(hours=2):%H:%M}", "end": f"{now + timedelta(hours=3):%H:%M}"}
    recorder = Recorder()
    stop = asyncio.Event()
    spec = sample_spec(throttle={"window": window})
    migration = Migration(spec, name=NAME, url=parse_url(database.url), sink=recorder, stop=stop)
    task = asyncio.create_task(migration.run())
    await _until(lambda: migration.reporter.report.throttle.reason == "Window")
    assert sum((await database.interactions()).values()) == 0
    stop.set()
    assert await task == "Interrupted"
    phase, report = await migrate(database.url, sample_spec())
    assert (phase, report.throttle.reason) == ("Complete", "None")


async def test_busy_server_holds_back_until_it_is_idle(postgresql: Any, postgres: Any) -> None:
    await postgresql.load(generate(rows=50, seed=57, odd=0))
    others = [await postgres.connect() for _ in range(3)]
    busy = [asyncio.create_task(other.execute("SELECT pg_sleep(600)")) for other in others]
    spec = sample_spec(throttle={"maxActiveBackends": 2})
    migration = Migration(spec, name=NAME, url=parse_url(postgresql.url), sink=Recorder(), stop=asyncio.Event())
    task = asyncio.create_task(migration.run())
    await _until(lambda: migration.reporter.report.throttle.reason == "ActiveBackends")
    await postgresql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'"
    )
    await asyncio.gather(*busy, return_exceptions=True)
    assert await task == "Complete"


async def test_a_vacuum_on_the_table_and_an_unreadable_signal_hold_back(postgresql: Any, postgres: Any) -> None:
    await postgresql.load(generate(rows=50, seed=58, odd=0))
    other = await postgres.connect(postgresql.url.rpartition("/")[2])
    transaction = other.transaction()
    await transaction.start()
    await other.execute("LOCK TABLE interactions IN SHARE UPDATE EXCLUSIVE MODE")  # What VACUUM takes.
    spec = sample_spec(steps=steps()[1:], throttle={"avoidAutovacuum": True})
    migration = Migration(spec, name=NAME, url=parse_url(postgresql.url), sink=Recorder(), stop=asyncio.Event())
    task = asyncio.create_task(migration.run())
    await _until(lambda: migration.reporter.report.throttle.reason == "Autovacuum")
    await transaction.rollback()
    assert await task == "Complete"

    await other.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    await other.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO plain")
    await other.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO plain")
    await other.execute("GRANT ALL ON SCHEMA public TO plain")
    await other.close()
    url = f"postgresql+asyncpg://plain:plain@127.0.0.1:{postgres.port}/{postgresql.url.rpartition('/')[2]}"
    stop = asyncio.Event()
    blind = sample_spec(steps=steps()[1:], revision=2, throttle={"maxActiveBackends": 5})
    migration = Migration(blind, name=NAME, url=parse_url(url), sink=Recorder(), stop=stop)
    task = asyncio.create_task(migration.run())
    await _until(lambda: migration.reporter.report.throttle.reason == "SignalUnreadable")
    assert "pg_monitor" in migration.reporter.report.throttle.message
    stop.set()
    assert await task == "Interrupted"


async def test_write_ahead_log_rate_is_bounded(postgresql: Any) -> None:
    await postgresql.load(generate(rows=3_000, seed=59, odd=0))
    spec = sample_spec(
        steps=steps()[1:],
        batch={"initialSize": 500, "minSize": 500, "maxSize": 500},
        throttle={"maxWalBytesPerSecond": 400_000},
    )
    phase, report = await migrate(postgresql.url, spec)
    assert phase == "Complete"
    assert report.throttle.total_seconds >= 1


async def _until(check: Any, *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda consolidate: consolidate.update(source="nowhere"), "TableMissing"),
        (lambda consolidate: consolidate.update(target="nowhere"), "TableMissing"),
        (lambda consolidate: consolidate["columns"][0]["lookup"].update(table="nowhere"), "TableMissing"),
        (lambda consolidate: consolidate["columns"][0].update(name="nothing"), "ColumnMissing"),
        (lambda consolidate: consolidate["columns"][4]["json"]["fields"][0].update(column="nothing"), "ColumnMissing"),
        (lambda consolidate: consolidate["columns"][3]["timestamp"].update(column="nothing"), "ColumnMissing"),
        (lambda consolidate: consolidate["columns"].pop(0), "ColumnNotCovered"),
        (
            lambda consolidate: consolidate.update(
                key=["contact_name"], identity=[{"column": "payload", "field": "n", "source": "contact_name"}]
            ),
            "KeyNotUnique",
        ),
        (
            lambda consolidate: consolidate.update(
                key=["contact_id"], identity=[{"column": "payload", "field": "n", "source": "contact_id"}]
            ),
            "KeyNotUnique",
        ),
    ],
)
async def test_what_the_database_lacks_is_named_before_anything_is_changed(
    database: Any, change: Any, reason: str
) -> None:
    await database.load(generate(rows=10, seed=60, odd=0))
    changed = steps()[1:]
    change(changed[0]["consolidate"])
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, sample_spec(steps=changed))
    assert failure.value.reason == reason
    assert sum((await database.interactions()).values()) == 0


async def test_mended_table_is_found_by_the_next_run(database: Any) -> None:
    legacy = generate(rows=10, seed=61, odd=0)
    await database.load(legacy)
    await database.execute("ALTER TABLE birthday_messages RENAME TO elsewhere")
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, sample_spec())
    assert (failure.value.reason, failure.value.retry) == ("TableMissing", "WhenMended")
    await database.execute("ALTER TABLE elsewhere RENAME TO birthday_messages")
    phase, report = await migrate(database.url, sample_spec())
    assert (phase, report.progress.rows_copied) == ("Complete", len(expect(legacy).copied))


@pytest.mark.parametrize(
    ("url", "reason", "retry"),
    [
        ("postgresql://postgres:wr0ng-secret@127.0.0.1:{port}/postgres", "DatabaseAuthFailed", "WhenMended"),
        ("postgresql://{user}@127.0.0.1:{port}/absent", "DatabaseMissing", "WhenMended"),
        ("postgresql://postgres:wr0ng-secret@127.0.0.1:{closed}/postgres", "DatabaseUnreachable", "Soon"),
        ("postgresql://postgres:wr0ng-secret@no-such-host.invalid/postgres", "DatabaseUnreachable", "Soon"),
    ],
)
async def test_unreachable_or_refused(
    postgres: Any, monkeypatch: pytest.MonkeyPatch, url: str, reason: str, retry: str
) -> None:
    monkeypatch.setattr("shipkeeper.migrations.engine._FIRST_PAUSE_SECONDS", 0.01)
    user = postgres.url().partition("://")[2].rpartition("@")[0]
    recorder = Recorder()
    text = url.format(port=postgres.port, closed=free_port(), user=user)
    migration = Migration(sample_spec(), name=NAME, url=parse_url(text), sink=recorder, stop=asyncio.Event())
    with pytest.raises(MigrationError) as failure:
        await migration.run()
    assert (failure.value.reason, failure.value.retry) == (reason, retry)
    assert recorder.last.last_error is not None
    assert recorder.last.last_error.reason == reason
    shown = recorder.last.model_dump_json() + str(failure.value)
    assert "wr0ng-secret" not in shown
    assert postgres.password not in shown


async def test_unsupported_fields_are_refused_by_name(database: Any) -> None:
    await database.load(generate(rows=10, seed=62, odd=0))
    with pytest.raises(MigrationError, match=r"spec\.parallelism is not supported") as failure:
        await migrate(database.url, sample_spec(parallelism=2))
    assert failure.value.reason == "UnsupportedField"
