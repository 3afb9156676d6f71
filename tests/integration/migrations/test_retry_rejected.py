"""Rejected rows tried again after a fix: only they, exactly once a number, with counts that always add up."""

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from shipkeeper.migrations.errors import MigrationError
from shipkeeper.resources.migrationjob_status import MigrationReport
from support.birthday_data import Legacy, expect, generate
from support.migration_databases import expected_multiset, migrate, sample_spec
from support.migration_process import start_worker

pytestmark = pytest.mark.integration

COUNTS = (
    "SELECT rows_total, rows_copied, rows_existing, rows_rejected FROM shipkeeper_migration_steps "
    "WHERE step = 'birthday-messages'"
)
REJECTED = "SELECT row_key, reason FROM shipkeeper_migration_rejects ORDER BY row_key"


def retrying(number: int, **changes: Any) -> Any:
    """Return the sample with this rejects.retry."""
    return sample_spec(rejects={"max": 1_000_000, "retry": number}, **changes)


def broken(*positions: int, rows: int = 100, seed: int = 70) -> Legacy:
    """Return ordinary rows, those at some positions with a time that is none."""
    legacy = generate(rows=rows, seed=seed, odd=0)
    for position in positions:
        legacy.messages[position]["sent_at"] = "hier"
    return legacy


async def mend(database: Any, legacy: Legacy, *positions: int) -> None:
    """Give rows a time, in the source and for the oracle."""
    for position in positions:
        message = legacy.messages[position]
        message["sent_at"] = "2024-03-01T09:30:00"
        await database.execute(
            f"UPDATE birthday_messages SET sent_at = '2024-03-01T09:30:00' WHERE id = {message['id']}"
        )


def verified(report: MigrationReport) -> str:
    """Return what the last comparison of the copy found."""
    verification = report.steps[1].verification
    assert verification is not None
    return verification.result


async def test_mended_rows_are_copied_and_leave_the_reject_table(database: Any) -> None:
    legacy = broken(3, 4, 5)
    await database.load(legacy)
    await migrate(database.url, retrying(0))
    assert await database.rows(COUNTS) == [(100, 97, 0, 3)]
    await mend(database, legacy, 3, 5)

    phase, report = await migrate(database.url, retrying(1))

    assert (phase, verified(report), report.rejects_retried) == ("Complete", "Equal", 1)
    assert await database.rows(COUNTS) == [(100, 99, 0, 1)]
    assert await database.interactions() == expected_multiset(expect(legacy), step_start=None)
    assert [each.key for each in report.rejects] == [str(legacy.messages[4]["id"])]


async def test_a_number_is_tried_once_and_the_next_one_again(database: Any) -> None:
    legacy = broken(3, 4)
    await database.load(legacy)
    await migrate(database.url, retrying(0))
    await migrate(database.url, retrying(1))
    await mend(database, legacy, 3, 4)

    _, report = await migrate(database.url, retrying(1))
    assert report.progress.rows_rejected == 2

    _, report = await migrate(database.url, retrying(2))
    assert (report.progress.rows_rejected, report.rejects, report.rejects_retried) == (0, (), 2)
    assert await database.interactions() == expected_multiset(expect(legacy), step_start=None)


async def test_a_row_that_fails_for_another_cause_now_says_so(database: Any) -> None:
    legacy = broken(3)
    legacy.messages[3] |= {"contact_id": None, "contact_name": "Nobody At All"}
    await database.load(legacy)
    await migrate(database.url, retrying(0))
    [(_, before)] = await database.rows(REJECTED)
    name = "Zoé Ünal 1"
    await database.execute(
        f"UPDATE birthday_messages SET contact_name = '{name}' WHERE id = {legacy.messages[3]['id']}"
    )

    _, report = await migrate(database.url, retrying(1))

    [(_, after)] = await database.rows(REJECTED)
    assert "no row of contacts" in before
    assert after == "sent_at names no instant in an accepted form"
    assert report.rejects[0].reason == after
    [(values,)] = await database.rows("SELECT row_values FROM shipkeeper_migration_rejects")
    assert "Nobody" not in values


async def test_a_contact_that_was_missing_is_found_and_known_names_stay_as_they_were(database: Any) -> None:
    legacy = generate(rows=100, seed=71, odd=0)
    for position, name in ((7, "Nobody At All"), (8, legacy.contacts[3]["name"]), (9, legacy.contacts[-1]["name"])):
        legacy.messages[position] |= {"contact_id": None, "contact_name": name}
    await database.load(legacy)
    await migrate(database.url, retrying(0))
    assert await database.rows(COUNTS) == [(100, 98, 0, 2)]
    columns = "id, name, profile_url, open_to_work, fit_score, status, created_at, updated_at"
    new = "'u{0}', {1}, 1.0, 'new', '2024-01-01', '2024-01-01'"
    truth = "true"
    await database.execute(
        f"INSERT INTO contacts ({columns}) VALUES (900, 'Nobody At All', {new.format(900, truth)});"
        # The name that row 8 was resolved by is ambiguous from now on; what was copied by it must not differ for that.
        f"INSERT INTO contacts ({columns}) VALUES (901, '{legacy.contacts[3]['name']}', {new.format(901, truth)});"
        # And this one, which was ambiguous, is so no more.
        f"UPDATE contacts SET name = 'Other' WHERE id = {legacy.contacts[-2]['id']};"
    )

    phase, report = await migrate(database.url, retrying(1))

    assert (phase, verified(report)) == ("Complete", "Equal")
    assert await database.rows(COUNTS) == [(100, 100, 0, 0)]


async def test_rows_that_were_brought_in_by_hand_are_already_there(database: Any) -> None:
    legacy = broken(3, 4)
    await database.load(legacy)
    await migrate(database.url, retrying(0))
    payload = f'{{"migrated_from": "birthday_messages", "original_id": {legacy.messages[3]["id"]}}}'
    await database.execute(
        "INSERT INTO interactions (contact_id, type, status, payload, created_at) "
        f"VALUES (1, 'birthday_sent', 'success', '{payload}', '2020-01-01 00:00:00')"
    )
    await mend(database, legacy, 3, 4)

    phase, report = await migrate(database.url, retrying(1))

    assert (phase, verified(report)) == ("Complete", "Equal")
    assert await database.rows(COUNTS) == [(100, 99, 1, 0)]
    assert sum((await database.interactions()).values()) == 100


async def test_rows_that_were_deleted_in_the_source_count_no_more(database: Any) -> None:
    legacy = broken(3, 4)
    await database.load(legacy)
    await migrate(database.url, retrying(0))
    await database.execute(f"DELETE FROM birthday_messages WHERE id = {legacy.messages[3]['id']}")

    phase, report = await migrate(database.url, retrying(1))

    assert (phase, verified(report)) == ("Complete", "Equal")
    assert await database.rows(COUNTS) == [(99, 98, 0, 1)]


async def test_a_row_that_the_database_refuses_again_stays_and_holds_up_no_other(database: Any) -> None:
    legacy = broken(3, 4, 5)
    await database.load(legacy)
    await migrate(database.url, retrying(0))
    await mend(database, legacy, 3, 4, 5)
    refused = legacy.messages[4]["id"]
    if database.url.startswith("sqlite"):
        await database.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON interactions "
            f"WHEN json_extract(new.payload, '$.original_id') = {refused} "
            "BEGIN SELECT RAISE(ABORT, 'not_that_one'); END"
        )
    else:
        await database.execute(
            "ALTER TABLE interactions ADD CONSTRAINT not_that_one "
            f"CHECK ((payload ->> 'original_id')::int <> {refused})"
        )

    phase, _ = await migrate(database.url, retrying(1))

    assert phase == "Complete"
    [(key, reason)] = await database.rows(REJECTED)
    assert key == str(refused)
    assert "not_that_one" in reason
    assert await database.rows(COUNTS) == [(100, 99, 0, 1)]


async def test_too_many_rejects_then_a_fix_lets_the_copy_go_on(database: Any) -> None:
    legacy = broken(*range(30, 60), rows=300)
    await database.load(legacy)
    few = {"initialSize": 50, "minSize": 50, "maxSize": 50}
    with pytest.raises(MigrationError, match=r"rejects\.max is 10"):
        await migrate(database.url, sample_spec(rejects={"max": 10}, batch=few))
    await mend(database, legacy, *range(30, 60))

    phase, report = await migrate(database.url, sample_spec(rejects={"max": 10, "retry": 1}, batch=few))

    assert (phase, report.progress.rows_rejected) == ("Complete", 0)
    assert await database.interactions() == expected_multiset(expect(legacy), step_start=None)


async def test_a_retired_source_is_named(database: Any) -> None:
    legacy = broken(3)
    await database.load(legacy)
    steps = [*sample_spec().to_wire()["steps"], {"name": "retire", "retire": {"table": "birthday_messages"}}]
    await migrate(database.url, retrying(0, steps=steps))
    with pytest.raises(MigrationError, match="rename birthday_messages_retired back") as failure:
        await migrate(database.url, retrying(1, steps=steps))
    assert (failure.value.reason, failure.value.retry) == ("SourceRetired", "WhenMended")


async def test_sigkill_at_random_points_of_a_retry(postgresql: Any, tmp_path: Path) -> None:
    positions = range(0, 6_000, 2)
    legacy = broken(*positions, rows=6_000)
    await postgresql.load(legacy)
    await migrate(postgresql.url, retrying(0))
    await postgresql.execute("UPDATE birthday_messages SET sent_at = '2024-03-01T09:30:00' WHERE sent_at = 'hier'")
    for position in positions:
        legacy.messages[position]["sent_at"] = "2024-03-01T09:30:00"
    # Slow enough that a kill meets it at work.
    await postgresql.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.0005); RETURN new; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON interactions FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    chance = random.Random(7)
    for _ in range(4):
        worker = start_worker(postgresql.url, retrying(1), tmp_path)
        with contextlib.suppress(Exception):
            await asyncio.to_thread(worker.wait, chance.uniform(0.9, 2.0))
        worker.kill()
        worker.communicate()
        [(total, copied, existing, rejected)] = await postgresql.rows(COUNTS)
        assert total == copied + existing + rejected
        assert sum((await postgresql.interactions()).values()) == copied

    phase, report = await migrate(postgresql.url, retrying(1))

    assert (phase, verified(report)) == ("Complete", "Equal")
    assert await postgresql.rows(COUNTS) == [(6_000, 6_000, 0, 0)]
    assert await postgresql.interactions() == expected_multiset(expect(legacy), step_start=None)
