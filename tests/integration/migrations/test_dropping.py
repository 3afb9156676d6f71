"""A retired table is kept for its retention and dropped by a later run, unless something speaks against it."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.migrations.errors import MigrationError
from support.birthday_data import generate
from support.migration_databases import NAME, Recorder, migrate, sample_spec

pytestmark = pytest.mark.integration

KEPT = "SELECT count(*) FROM birthday_messages_retired"


def dropping(retention: str, *further: dict[str, Any], **changes: Any) -> Any:
    """Return the sample with a step that drops the old table, and further steps."""
    retire = {"name": "retire", "retire": {"table": "birthday_messages", "action": "Drop", "retention": retention}}
    return sample_spec(steps=[*sample_spec().to_wire()["steps"], retire, *further], **changes)


async def tables(database: Any) -> set[str]:
    """Return the names of all tables."""
    sqlite = database.url.startswith("sqlite")
    query = "SELECT name FROM sqlite_master" if sqlite else "SELECT tablename FROM pg_tables"
    return {name for (name,) in await database.rows(query)}


async def age(database: Any, days: int) -> None:
    """Let the retirement have been so many days earlier."""
    column = (
        "datetime(started_at, '-{} days')" if database.url.startswith("sqlite") else "started_at - interval '{} days'"
    )
    await database.execute(
        f"UPDATE shipkeeper_migration_actions SET started_at = {column.format(days)} WHERE action = 'Retire'"
    )


async def test_the_worker_ends_and_says_until_when_the_table_is_kept(database: Any) -> None:
    await database.load(generate(rows=100, seed=110))
    before = datetime.now(UTC)

    phase, report = await migrate(database.url, dropping("30d"))

    assert phase == "Retaining"
    assert await database.rows(KEPT) == [(100,)]
    assert report.retained_until is not None
    assert (
        before + timedelta(days=30, seconds=-5)
        < report.retained_until
        < datetime.now(UTC) + timedelta(days=30, seconds=5)
    )
    assert {step.name: step.state for step in report.steps}["retire"] == "Running"
    assert report.finished_at is None

    phase, again = await migrate(database.url, dropping("30d"))
    assert (phase, again.retained_until) == ("Retaining", report.retained_until)
    status = Migration(dropping("30d"), name=NAME, url=parse_url(database.url), sink=Recorder(), stop=asyncio.Event())
    assert (await status.status()).phase == "Retaining"


async def test_it_is_dropped_by_the_run_after_the_retention(database: Any) -> None:
    await database.load(generate(rows=100, seed=111))
    await migrate(database.url, dropping("30d"))
    await age(database, 29)
    assert (await migrate(database.url, dropping("30d")))[0] == "Retaining"
    await age(database, 2)

    phase, report = await migrate(database.url, dropping("30d"))

    assert (phase, report.retained_until) == ("Complete", None)
    assert report.finished_at is not None
    assert {"birthday_messages", "birthday_messages_retired"} & await tables(database) == set()
    assert (await migrate(database.url, dropping("30d")))[0] == "Complete"


async def test_steps_behind_it_do_not_wait(database: Any) -> None:
    await database.load(generate(rows=10, seed=112, odd=0))
    index = {"name": "late_index", "table": "contacts", "keys": [{"column": "name"}]}
    phase, report = await migrate(
        database.url, dropping("30d", {"name": "late", "createIndexes": {"indexes": [index]}})
    )
    assert phase == "Retaining"
    assert report.steps[-1].state == "Done"


async def test_the_plan_names_both_statements_as_destructive(database: Any) -> None:
    await database.load(generate(rows=10, seed=113, odd=0))
    phase, report = await migrate(database.url, dropping("30d", approval={"mode": "Manual"}))
    assert phase == "AwaitingApproval"
    assert report.plan is not None
    step = report.plan.steps[-1]
    assert step.destructive
    assert [statement.split()[0] for statement in step.sql] == ["ALTER", "DROP"]
    assert "30d" in step.action
    approval = {"mode": "Manual", "planHash": report.plan.hash}
    assert (await migrate(database.url, dropping("30d", approval=approval)))[0] == "Retaining"
    await age(database, 31)
    assert (await migrate(database.url, dropping("30d", approval=approval)))[0] == "Complete"


async def test_rows_that_came_after_the_retirement_keep_it(database: Any) -> None:
    await database.load(generate(rows=10, seed=114, odd=0))
    await migrate(database.url, dropping("1d"))
    await database.execute("DELETE FROM birthday_messages_retired WHERE id = 3")
    await age(database, 2)
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, dropping("1d"))
    assert (failure.value.reason, failure.value.retry) == ("SourceHasNewRows", "Never")
    assert await database.rows(KEPT) == [(9,)]


async def test_what_references_it_is_named(database: Any) -> None:
    await database.load(generate(rows=10, seed=115, odd=0))
    await database.execute(
        "CREATE TABLE answers (id integer PRIMARY KEY, message_id integer REFERENCES birthday_messages (id) "
        "ON DELETE CASCADE); INSERT INTO answers VALUES (1, 3); CREATE VIEW late AS SELECT id FROM birthday_messages"
    )
    await migrate(database.url, dropping("1d"))
    await age(database, 2)
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, dropping("1d"))
    assert (failure.value.reason, failure.value.retry) == ("TableReferenced", "WhenMended")
    assert re.search(r'foreign key of "?answers"? \(message_id\), view late', failure.value.message)
    assert await database.rows("SELECT count(*) FROM answers") == [(1,)]
    assert await database.rows(KEPT) == [(10,)]

    await database.execute("DROP TABLE answers; DROP VIEW late")
    assert (await migrate(database.url, dropping("1d")))[0] == "Complete"


async def test_a_table_that_somebody_dropped_already_is_as_it_should_be(database: Any) -> None:
    await database.load(generate(rows=10, seed=116, odd=0))
    await migrate(database.url, dropping("1d"))
    await database.execute("DROP TABLE birthday_messages_retired")
    await age(database, 2)
    assert (await migrate(database.url, dropping("1d")))[0] == "Complete"


async def test_a_content_that_was_disproven_keeps_the_table(database: Any) -> None:
    await database.load(generate(rows=10, seed=117, odd=0))
    await migrate(database.url, dropping("1d"))
    await database.execute(
        'UPDATE shipkeeper_migration_steps SET verification = \'{"result": "Different"}\' '
        "WHERE step = 'birthday-messages'"
    )
    await age(database, 2)
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, dropping("1d"))
    assert failure.value.reason == "NotVerified"
    assert await database.rows(KEPT) == [(10,)]
