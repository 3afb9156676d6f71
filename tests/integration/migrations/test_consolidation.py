"""The sample's consolidation on real databases: every row accounted for, with the content that an oracle expects."""

import json
from datetime import datetime
from typing import Any

import pytest

from shipkeeper.migrations.errors import MigrationError
from support.birthday_data import Legacy, expect, generate
from support.migration_databases import expected_multiset, migrate, sample_spec

pytestmark = pytest.mark.integration

STEP_START = "SELECT started_at FROM shipkeeper_migration_steps WHERE step = 'birthday-messages'"
COUNTS = (
    "SELECT rows_total, rows_copied, rows_existing, rows_rejected FROM shipkeeper_migration_steps "
    "WHERE step = 'birthday-messages'"
)


async def step_start(database: Any) -> datetime:
    """Return the instant that rows without a time have."""
    [(start,)] = await database.rows(STEP_START)
    return datetime.fromisoformat(start) if isinstance(start, str) else start


async def rejected_keys(database: Any) -> set[int]:
    """Return the keys in the reject table."""
    return {int(key) for (key,) in await database.rows("SELECT row_key FROM shipkeeper_migration_rejects")}


async def test_every_row_becomes_what_the_oracle_says(database: Any) -> None:
    legacy = generate(rows=5_000, seed=7)
    await database.load(legacy)

    phase, report = await migrate(database.url, sample_spec())

    expected = expect(legacy)
    assert phase == "Complete"
    assert await database.interactions() == expected_multiset(expected, step_start=await step_start(database))
    assert await rejected_keys(database) == expected.rejected
    assert await database.rows(COUNTS) == [(5_000, len(expected.copied), 0, len(expected.rejected))]
    assert (report.progress.percent, report.progress.display) == (100, "100% (5000/5000)")
    assert report.progress.rows_copied == len(expected.copied)
    verification = next(step.verification for step in report.steps if step.name == "birthday-messages")
    assert verification is not None
    assert (verification.result, verification.rows, verification.differences) == ("Equal", len(expected.copied), ())
    assert len(report.rejects) == 10
    assert {index.name: (index.state, index.action) for index in report.indexes} == dict.fromkeys(
        (
            "idx_contact_birth_date",
            "idx_contact_status",
            "idx_contact_created_at",
            "idx_interaction_contact_type",
            "idx_selector_success",
        ),
        ("Valid", "Created"),
    )


async def test_reject_table_keeps_the_whole_row_and_the_reason(database: Any) -> None:
    legacy = generate(rows=20, seed=1, odd=0)
    legacy.messages[3]["sent_at"] = "hier 'matin'"
    await database.load(legacy)

    await migrate(database.url, sample_spec())

    [(values, reason)] = await database.rows("SELECT row_values, reason FROM shipkeeper_migration_rejects")
    kept = json.loads(values)
    assert kept["sent_at"] == "hier 'matin'"
    assert kept["message_text"] == legacy.messages[3]["message_text"]
    assert reason == "sent_at names no instant in an accepted form"


async def test_running_again_copies_nothing(database: Any) -> None:
    legacy = generate(rows=500, seed=2)
    await database.load(legacy)
    await migrate(database.url, sample_spec())
    before = await database.interactions()

    phase, report = await migrate(database.url, sample_spec())

    assert phase == "Complete"
    assert await database.interactions() == before
    assert report.progress.rows_copied == len(expect(legacy).copied)
    assert report.finished_at is not None


async def test_new_revision_finds_all_rows_already_there(database: Any) -> None:
    legacy = generate(rows=500, seed=3)
    await database.load(legacy)
    await migrate(database.url, sample_spec())
    before = await database.interactions()

    phase, report = await migrate(database.url, sample_spec(revision=2))

    expected = expect(legacy)
    assert phase == "Complete"
    assert await database.interactions() == before
    assert report.progress.rows_copied == 0
    assert report.progress.rows_existing == len(expected.copied)
    assert report.progress.rows_rejected == len(expected.rejected)


async def test_rows_of_an_earlier_tool_are_left_as_they_are(database: Any) -> None:
    legacy = generate(rows=200, seed=4, odd=0)
    await database.load(legacy)
    payload = json.dumps({"migrated_from": "birthday_messages", "original_id": legacy.messages[10]["id"]})
    await database.execute(
        "INSERT INTO interactions (contact_id, type, status, payload, created_at) "
        f"VALUES (1, 'birthday_sent', 'success', '{payload}', '2020-01-01 00:00:00')"
    )

    phase, report = await migrate(database.url, sample_spec())

    assert phase == "Complete"
    assert (report.progress.rows_copied, report.progress.rows_existing) == (199, 1)
    assert sum((await database.interactions()).values()) == 200


async def test_the_older_form_of_the_table(database: Any) -> None:
    legacy = generate(rows=100, seed=5, odd=0)
    await database.load(legacy)
    dropped = ("response_received", "response_text", "response_date")
    for column in dropped:
        await database.execute(f"ALTER TABLE birthday_messages DROP COLUMN {column}")
    for message in legacy.messages:
        message.update(dict.fromkeys(dropped))

    phase, _ = await migrate(database.url, sample_spec())

    assert phase == "Complete"
    assert await database.interactions() == expected_multiset(expect(legacy), step_start=None)


async def test_empty_source_is_complete(database: Any) -> None:
    await database.load(Legacy(generate(rows=0, seed=1).contacts, ()))

    phase, report = await migrate(database.url, sample_spec())

    assert phase == "Complete"
    assert report.progress.rows_total == 0


async def test_too_many_rejects_stop_the_job_and_a_higher_bound_resumes_it(database: Any) -> None:
    legacy = generate(rows=2_000, seed=6, odd=0.5)
    await database.load(legacy)
    expected = expect(legacy)
    few = {"initialSize": 100, "minSize": 100, "maxSize": 100}

    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, sample_spec(rejects={"max": 20}, batch=few))
    assert (failure.value.reason, failure.value.retry) == ("TooManyRejects", "Never")
    [(_, copied, _, rejected)] = await database.rows(COUNTS)
    assert 20 < rejected < len(expected.rejected)
    assert copied < len(expected.copied)

    phase, _ = await migrate(database.url, sample_spec(rejects={"max": 2_000}, batch=few))
    assert phase == "Complete"
    assert await rejected_keys(database) == expected.rejected
    assert await database.interactions() == expected_multiset(expected, step_start=await step_start(database))


async def test_a_row_that_the_database_refuses_is_found_by_splitting_the_batch(database: Any) -> None:
    legacy = generate(rows=1_000, seed=8, odd=0)
    await database.load(legacy)
    refused = {legacy.messages[position]["id"] for position in (17, 18, 700)}
    keys = ", ".join(map(str, refused))
    await _refuse_rows(database, keys)

    phase, report = await migrate(database.url, sample_spec())

    assert phase == "Complete"
    assert await rejected_keys(database) == refused
    assert report.progress.rows_copied == 997
    [(reason,)] = await database.rows("SELECT DISTINCT reason FROM shipkeeper_migration_rejects")
    assert "interaction_id_allowed" in reason


async def _refuse_rows(database: Any, keys: str) -> None:
    """Let the target refuse the rows that come from these keys, by a constraint that no mapping knows of."""
    if database.url.startswith("sqlite"):
        await database.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON interactions "
            f"WHEN json_extract(new.payload, '$.original_id') IN ({keys}) "
            "BEGIN SELECT RAISE(ABORT, 'interaction_id_allowed'); END"
        )
    else:
        await database.execute(
            "ALTER TABLE interactions ADD CONSTRAINT interaction_id_allowed "
            f"CHECK ((payload ->> 'original_id')::int NOT IN ({keys}))"
        )


async def test_filter_and_skip_existing(database: Any) -> None:
    legacy = generate(rows=300, seed=9, odd=0)
    await database.load(legacy)
    spec = sample_spec().to_wire()
    consolidate = spec["steps"][1]["consolidate"]
    consolidate["filter"] = "source.script_mode IS NOT NULL"
    consolidate["skipExisting"] = {"columns": ["contact_id", "type", "created_at"]}
    wanted = [message for message in legacy.messages if message["script_mode"] is not None]
    expected = expect(Legacy(legacy.contacts, wanted))
    earlier = expected.copied[wanted[0]["id"]]
    created_at = earlier["created_at"].isoformat(sep=" ", timespec="microseconds")
    await database.execute(
        "INSERT INTO interactions (contact_id, type, status, created_at) VALUES "
        f"({earlier['contact_id']}, 'birthday_sent', 'success', '{created_at}')"
    )

    phase, report = await migrate(database.url, sample_spec(steps=spec["steps"]))

    assert phase == "Complete"
    assert report.progress.rows_total == len(wanted)
    assert report.progress.rows_existing == 1
    assert report.progress.rows_copied == len(wanted) - 1


async def test_a_row_whose_contact_vanished_is_rejected(database: Any) -> None:
    legacy = generate(rows=50, seed=10, odd=0)
    legacy.messages[5]["contact_id"] = 4711
    await _load_without_foreign_key(database, legacy)

    _, report = await migrate(database.url, sample_spec())

    assert report.progress.rows_rejected == 1
    assert report.rejects[0].reason == "contact_id: no row of contacts has this contact_id as its id"
    assert report.rejects[0].key == str(legacy.messages[5]["id"])


async def _load_without_foreign_key(database: Any, legacy: Legacy) -> None:
    dangling = legacy.messages[5]["contact_id"]
    legacy.messages[5]["contact_id"] = None
    await database.load(legacy)
    legacy.messages[5]["contact_id"] = dangling
    if not database.url.startswith("sqlite"):
        await database.execute("ALTER TABLE birthday_messages DROP CONSTRAINT birthday_messages_contact_id_fkey")
    await database.execute(
        f"UPDATE birthday_messages SET contact_id = {dangling} WHERE id = {legacy.messages[5]['id']}"
    )
