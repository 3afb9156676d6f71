"""Indexes on a real server: built, repaired when invalid or different, and never taken for good by their name alone."""

import asyncio
from typing import Any

import pytest

from shipkeeper.migrations.errors import MigrationError
from shipkeeper.resources.migrationjob import MigrationJobSpec
from support.birthday_data import generate
from support.migration_databases import migrate, sample_spec

pytestmark = pytest.mark.integration


def index_spec(*indexes: dict[str, Any], **changes: Any) -> MigrationJobSpec:
    """Return a spec that only has these indexes."""
    return sample_spec(steps=[{"name": "indexes", "createIndexes": {"indexes": list(indexes)}}], **changes)


STATUS = {"name": "idx_contact_status", "table": "contacts", "keys": [{"column": "status"}]}


def states(report: Any) -> dict[str, tuple[str, str]]:
    """Return state and action of each index."""
    return {index.name: (index.state, index.action) for index in report.indexes}


async def test_an_index_that_is_there_is_left_alone(database: Any) -> None:
    await database.load(generate(rows=10, seed=1))
    await database.execute("CREATE INDEX idx_contact_status ON contacts (status)")
    _, report = await migrate(database.url, index_spec(STATUS))
    assert states(report) == {"idx_contact_status": ("Valid", "None")}


@pytest.mark.parametrize(
    "wrong",
    [
        "CREATE INDEX idx_contact_status ON contacts (location)",
        "CREATE INDEX idx_contact_status ON contacts (status DESC)",
        "CREATE INDEX idx_contact_status ON contacts (status) WHERE status <> 'new'",
        "CREATE UNIQUE INDEX idx_contact_status ON contacts (status, id)",
    ],
)
async def test_another_definition_under_the_name_is_repaired(database: Any, wrong: str) -> None:
    await database.load(generate(rows=10, seed=1))
    await database.execute(wrong)
    _, report = await migrate(database.url, index_spec(STATUS))
    assert states(report) == {"idx_contact_status": ("Valid", "Repaired")}
    _, again = await migrate(database.url, index_spec(STATUS, revision=2))
    assert states(again) == {"idx_contact_status": ("Valid", "None")}


async def test_forms_of_indexes(database: Any) -> None:
    await database.load(generate(rows=10, seed=1))
    spec = index_spec(
        {"name": "i_unique", "table": "contacts", "keys": [{"column": "name"}, {"column": "id"}], "unique": True},
        {"name": "i_partial", "table": "contacts", "keys": [{"column": "id"}], "where": "status = 'new'"},
        {"name": "i_expression", "table": "contacts", "keys": [{"expression": "lower(name)"}]},
        {
            "name": "i_descending",
            "table": "contacts",
            "keys": [{"column": "created_at", "order": "Descending"}, {"column": "id"}],
        },
    )
    _, report = await migrate(database.url, spec)
    assert set(states(report).values()) == {("Valid", "Created")}
    wire = spec.to_wire() | {"revision": 2}
    _, again = await migrate(database.url, MigrationJobSpec.model_validate(wire))
    assert set(states(again).values()) == {("Valid", "None")}


async def test_include_and_other_methods(postgresql: Any) -> None:
    await postgresql.load(generate(rows=10, seed=1))
    spec = index_spec(
        {"name": "i_include", "table": "contacts", "keys": [{"column": "status"}], "include": ["name"]},
        {"name": "i_hash", "table": "contacts", "keys": [{"column": "name"}], "method": "Hash"},
        {"name": "i_brin", "table": "contacts", "keys": [{"column": "created_at"}], "method": "Brin"},
        {"name": "i_schema", "table": "public.contacts", "keys": [{"column": "location"}]},
    )
    _, report = await migrate(postgresql.url, spec)
    assert set(states(report).values()) == {("Valid", "Created")}


async def test_an_invalid_index_that_a_failed_build_left_is_rebuilt(postgresql: Any, postgres: Any) -> None:
    """An open transaction on another table and a short lock timeout: the classic way to an invalid index."""
    await postgresql.load(generate(rows=10, seed=1))
    other = await postgres.connect(postgresql.url.rpartition("/")[2])
    transaction = other.transaction(isolation="repeatable_read")
    await transaction.start()
    await other.fetch("SELECT count(*) FROM linkedin_selectors")
    with pytest.raises(MigrationError) as failure:
        await migrate(postgresql.url, index_spec(STATUS, locks={"indexBuildTimeout": "200ms", "attempts": 1}))
    assert failure.value.reason == "LockTimeout"
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_contact_status'::regclass"
    assert await postgresql.rows(valid) == [(False,)]

    task = asyncio.create_task(migrate(postgresql.url, index_spec(STATUS)))
    await asyncio.sleep(0.5)
    assert not task.done()
    await transaction.rollback()
    await other.close()
    _, report = await task

    assert states(report) == {"idx_contact_status": ("Valid", "Repaired")}
    assert await postgresql.rows(valid) == [(True,)]


async def test_the_build_waits_its_own_lock_budget_and_tries_again(postgresql: Any, postgres: Any) -> None:
    await postgresql.load(generate(rows=10, seed=1))
    other = await postgres.connect(postgresql.url.rpartition("/")[2])
    transaction = other.transaction(isolation="repeatable_read")
    await transaction.start()
    await other.fetch("SELECT count(*) FROM linkedin_selectors")
    spec = index_spec(STATUS, locks={"indexBuildTimeout": "300ms", "attempts": 8})
    task = asyncio.create_task(migrate(postgresql.url, spec))
    await asyncio.sleep(1.2)
    await transaction.rollback()
    await other.close()
    _, report = await task
    assert states(report)["idx_contact_status"][0] == "Valid"


async def test_stop_in_mid_build_leaves_what_the_next_run_repairs(postgresql: Any, postgres: Any) -> None:
    await postgresql.load(generate(rows=10, seed=1))
    other = await postgres.connect(postgresql.url.rpartition("/")[2])
    transaction = other.transaction(isolation="repeatable_read")
    await transaction.start()
    await other.fetch("SELECT count(*) FROM linkedin_selectors")
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.7, stop.set)
    phase, _ = await migrate(postgresql.url, index_spec(STATUS), stop=stop)
    assert phase == "Interrupted"
    await transaction.rollback()
    await other.close()
    phase, report = await migrate(postgresql.url, index_spec(STATUS))
    assert phase == "Complete"
    assert states(report)["idx_contact_status"][0] == "Valid"


async def test_duplicates_under_a_unique_index_are_named(database: Any) -> None:
    await database.load(generate(rows=10, seed=1))
    unique = {"name": "i_status", "table": "contacts", "keys": [{"column": "status"}], "unique": True}
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, index_spec(unique))
    assert (failure.value.reason, failure.value.retry) == ("IndexNotUnique", "WhenMended")
    if not database.url.startswith("sqlite"):
        assert await database.rows("SELECT 1 FROM pg_class WHERE relname = 'i_status'") == []


async def test_a_name_that_belongs_to_another_table_is_not_touched(database: Any) -> None:
    await database.load(generate(rows=10, seed=1))
    await database.execute("CREATE INDEX idx_contact_status ON interactions (status)")
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, index_spec(STATUS))
    assert failure.value.reason == "IndexNameTaken"


@pytest.mark.parametrize(
    ("index", "reason", "text"),
    [
        (STATUS | {"table": "nowhere"}, "TableMissing", "there is no table nowhere"),
        (STATUS | {"keys": [{"column": "nothing"}]}, "ColumnMissing", "table contacts has no column nothing"),
    ],
)
async def test_missing_table_or_column_is_named(database: Any, index: dict[str, Any], reason: str, text: str) -> None:
    await database.load(generate(rows=10, seed=1))
    with pytest.raises(MigrationError, match=text) as failure:
        await migrate(database.url, index_spec(index))
    assert (failure.value.reason, failure.value.retry) == (reason, "WhenMended")
