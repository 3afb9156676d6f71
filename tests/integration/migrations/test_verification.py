"""Verification by content: every kind of damage is caught, and its key range and key are named."""

import asyncio
from typing import Any

import pytest

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.migrations.errors import MigrationError
from shipkeeper.resources.migrationjob_status import MigrationReport
from support.birthday_data import generate
from support.migration_databases import NAME, Recorder, migrate, sample_spec

pytestmark = pytest.mark.integration

ROWS = 1_200
KEY = 300 * 3
SPEC = sample_spec(verification={"rangeSize": 500})


async def verify(url: str, spec: Any = SPEC) -> tuple[MigrationReport, MigrationError | None]:
    """Verify again and return the report, and the failure if there was one."""
    recorder = Recorder()
    migration = Migration(spec, name=NAME, url=parse_url(url), sink=recorder, stop=asyncio.Event())
    try:
        return await migration.verify(), None
    except MigrationError as error:
        return recorder.last, error


def where(database: Any, key: int = KEY) -> str:
    """Return the condition that finds the target row of a key."""
    if database.url.startswith("sqlite"):
        return f"json_extract(payload, '$.original_id') = {key}"
    return f"(payload ->> 'original_id')::int = {key}"


async def test_untouched_copy_is_equal(database: Any) -> None:
    await database.load(generate(rows=ROWS, seed=20))
    await migrate(database.url, SPEC)
    report, failure = await verify(database.url)
    assert failure is None
    assert report.phase == "Complete"
    assert report.steps[1].verification is not None
    assert report.steps[1].verification.result == "Equal"
    assert report.steps[1].verification.ranges == 8


DAMAGE = {
    "single byte": ("UPDATE interactions SET payload = {replaced} WHERE {row}", "Changed"),
    "null to empty": ("UPDATE interactions SET payload = {emptied} WHERE {row}", "Changed"),
    "lost row": ("DELETE FROM interactions WHERE {row}", "Missing"),
    "doubled row": (
        "INSERT INTO interactions (contact_id, type, status, payload, created_at) "
        "SELECT contact_id, type, status, payload, created_at FROM interactions WHERE {row}",
        "Doubled",
    ),
    "shifted time zone": ("UPDATE interactions SET created_at = {shifted} WHERE {row}", "Changed"),
    "other contact": ("UPDATE interactions SET contact_id = contact_id % 100 + 1 WHERE {row}", "Changed"),
    "status": ("UPDATE interactions SET status = 'Success' WHERE {row}", "Changed"),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_is_caught_and_named(database: Any, damage: str) -> None:
    legacy = generate(rows=ROWS, seed=21, odd=0)
    message = next(each for each in legacy.messages if each["id"] == KEY)
    message |= {"message_text": "Bon anniversaire", "script_mode": None, "response_text": None}
    await database.load(legacy)
    await migrate(database.url, SPEC)
    statement, kind = DAMAGE[damage]
    await database.execute(_damaging(statement, database))

    report, failure = await verify(database.url)

    assert failure is not None
    assert failure.reason == "VerificationFailed"
    found = report.steps[1].verification
    assert found is not None
    assert (found.result, found.different_ranges) == ("Different", 1)
    assert [(each.key, each.kind) for each in found.differences] == [(str(KEY), kind)]
    assert found.differences[0].range == "id 501..999"
    assert report.last_error is not None
    assert "id 501..999" in report.last_error.message
    assert report.steps[1].state == "Done"


def _damaging(statement: str, database: Any) -> str:
    sqlite = database.url.startswith("sqlite")
    cast = "payload" if sqlite else "payload::text"
    back = "" if sqlite else "::json"
    return statement.format(
        row=where(database),
        replaced=f"replace({cast}, 'Bon anniversaire', 'Bon Anniversaire'){back}",
        emptied=(
            "json_set(payload, '$.response_text', '')"
            if sqlite
            else "jsonb_set(payload::jsonb, '{{response_text}}', '\"\"')::json".replace("{{", "{").replace("}}", "}")
        ),
        shifted="strftime('%Y-%m-%d %H:%M:%f', created_at, '+1 hour')" if sqlite else "created_at + interval '1 hour'",
    )


async def test_a_source_row_that_vanished_is_named(database: Any) -> None:
    await database.load(generate(rows=ROWS, seed=22, odd=0))
    await migrate(database.url, SPEC)
    await database.execute(f"DELETE FROM birthday_messages WHERE id = {KEY}")
    report, failure = await verify(database.url)
    assert failure is not None
    assert report.steps[1].verification is not None
    assert [(each.key, each.kind) for each in report.steps[1].verification.differences] == [(str(KEY), "Extra")]


async def test_a_lost_row_is_not_made_up_for_by_a_doubled_one(database: Any) -> None:
    await database.load(generate(rows=ROWS, seed=24, odd=0))
    await migrate(database.url, SPEC)
    other = where(database, 600)
    await database.execute(
        f"DELETE FROM interactions WHERE {where(database)};"
        "INSERT INTO interactions (contact_id, type, status, payload, created_at) "
        f"SELECT contact_id, type, status, payload, created_at FROM interactions WHERE {other}"
    )
    report, failure = await verify(database.url)
    assert failure is not None
    assert report.steps[1].verification is not None
    found = report.steps[1].verification.differences
    assert {(each.key, each.kind) for each in found} == {("600", "Doubled"), (str(KEY), "Missing")}


async def test_rows_of_others_with_the_same_plain_constants_are_no_difference(database: Any) -> None:
    await database.load(generate(rows=ROWS, seed=25, odd=0))
    other = (
        "INSERT INTO interactions (contact_id, type, status, payload, created_at) "
        "VALUES (1, 'birthday_sent', 'success', '{\"note\": 1}', '2024-01-01 00:00:00')"
    )
    await database.execute(other)
    phase, _ = await migrate(database.url, SPEC)
    assert phase == "Complete"
    await database.execute(other)
    report, failure = await verify(database.url)
    assert failure is None
    assert report.steps[1].verification is not None
    assert (report.steps[1].verification.ranges, report.steps[1].verification.rows) == (8, ROWS)


async def test_a_mapping_that_writes_another_identity_fails(database: Any) -> None:
    await database.load(generate(rows=ROWS, seed=26, odd=0))
    steps = sample_spec().to_wire()["steps"][1:]
    fields = next(each["json"]["fields"] for each in steps[0]["consolidate"]["columns"] if "json" in each)
    next(each for each in fields if each["name"] == "migrated_from")["constant"] = "birthday_message"
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, sample_spec(steps=steps))
    assert failure.value.reason == "VerificationFailed"


async def test_a_target_that_changes_what_is_written_fails_the_job(database: Any) -> None:
    await database.load(generate(rows=ROWS, seed=23, odd=0))
    row = where(database).replace("payload", "new.payload")
    if database.url.startswith("sqlite"):
        await database.execute(
            f"CREATE TRIGGER meddle AFTER INSERT ON interactions WHEN {row} "
            "BEGIN UPDATE interactions SET status = 'failed' WHERE id = new.id; END"
        )
    else:
        await database.execute(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {row} THEN new.status := 'failed'; END IF; RETURN new; END $$;"
            "CREATE TRIGGER meddle BEFORE INSERT ON interactions FOR EACH ROW EXECUTE FUNCTION meddle()"
        )
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, SPEC)
    assert (failure.value.reason, failure.value.retry, failure.value.key) == ("VerificationFailed", "Never", str(KEY))

    await database.execute(f"UPDATE interactions SET status = 'success' WHERE {where(database)}")
    phase, _ = await migrate(database.url, SPEC)
    assert phase == "Complete"


@pytest.mark.parametrize(("key", "values"), [("uuid", "uuid"), ("text", "text")])
async def test_keys_that_are_no_integers(postgresql: Any, key: str, values: str) -> None:
    await postgresql.execute(
        f"CREATE TABLE old (k {values} PRIMARY KEY, v text); CREATE TABLE new (k text, v text NOT NULL);"
        "INSERT INTO old SELECT md5(n::text)::uuid" + ("::text" if key == "text" else "") + ", 'v' || n "
        "FROM generate_series(1, 3000) n"
    )
    spec = _plain_spec(key=["k"], identity=[{"column": "k", "source": "k"}])
    phase, report = await migrate(postgresql.url, spec)
    assert phase == "Complete"
    assert report.steps[0].verification is not None
    assert report.steps[0].verification.ranges > 5
    [(lost,)] = await postgresql.rows("DELETE FROM new WHERE k = (SELECT k FROM new ORDER BY k LIMIT 1) RETURNING k")
    report, failure = await verify(postgresql.url, spec)
    assert failure is not None
    assert report.steps[0].verification is not None
    assert [(each.key, each.kind) for each in report.steps[0].verification.differences] == [(lost, "Missing")]


async def test_composite_keys(database: Any) -> None:
    await database.execute(
        "CREATE TABLE old (a integer NOT NULL, k varchar(20) NOT NULL, v text, PRIMARY KEY (a, k));"
        "CREATE TABLE new (a integer, k varchar(20), v text NOT NULL);"
    )
    rows = ", ".join(f"({n % 7}, 'k{n}', 'v{n}')" for n in range(1_000))
    await database.execute(f"INSERT INTO old VALUES {rows}")
    identity = [{"column": "a", "source": "a"}, {"column": "k", "source": "k"}]
    spec = _plain_spec(key=["a", "k"], identity=identity, columns=[{"name": "a", "column": "a"}])
    phase, report = await migrate(database.url, spec)
    assert phase == "Complete"
    assert report.progress.rows_copied == 1_000
    assert await database.rows(
        "SELECT count(*) FROM new JOIN old ON old.a = new.a AND old.k = new.k AND old.v = new.v"
    ) == [(1_000,)]
    await database.execute("UPDATE new SET v = 'x' WHERE a = 3 AND k = 'k10'")
    report, _ = await verify(database.url, spec)
    assert report.steps[0].verification is not None
    assert [(each.key, each.kind) for each in report.steps[0].verification.differences] == [("3, k10", "Changed")]


def _plain_spec(*, key: list[str], identity: list[dict[str, str]], columns: tuple[Any, ...] | list[Any] = ()) -> Any:
    consolidate = {
        "source": "old",
        "target": "new",
        "key": key,
        "identity": identity,
        "columns": [*columns, {"name": "k", "column": "k"}, {"name": "v", "column": "v"}],
    }
    return sample_spec(
        steps=[{"name": "copy", "consolidate": consolidate}],
        batch={"initialSize": 150, "minSize": 100},
        verification={"rangeSize": 400},
    )
