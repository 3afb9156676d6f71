"""What the engine reads from a user's statement: where it ends, whether it loses data, whether it can be undone."""

import pytest

from shipkeeper.migrations.errors import MigrationError
from shipkeeper.migrations.sqltext import read_guard, read_statement, require_transactional


@pytest.mark.parametrize(
    "text",
    [
        "DROP TABLE old",
        "drop index concurrently_built",
        "TRUNCATE old",
        "truncate table old",
        "DELETE FROM old WHERE id < 5",
        "WITH gone AS (DELETE FROM old RETURNING *) INSERT INTO archive SELECT * FROM gone",
        "ALTER TABLE people DROP COLUMN name",
        "ALTER TABLE people /* nothing to see */ DROP -- here\n name",
        "MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN DELETE",
        "DO $body$ BEGIN EXECUTE 'drop table ' || 'old'; END $body$",
        "DO $$ BEGIN TRUNCATE TABLE old; END $$",
    ],
)
def test_statements_that_lose_data(text: str) -> None:
    assert read_statement(text, field="statement").loses_data


@pytest.mark.parametrize(
    "text",
    [
        "ALTER TABLE people ADD COLUMN email text",
        "ALTER TABLE people ALTER name DROP NOT NULL",
        "ALTER TABLE people ALTER name DROP DEFAULT",
        "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b ON DELETE CASCADE",
        "GRANT SELECT, DELETE, TRUNCATE ON people TO app",
        "CREATE TRIGGER t AFTER DELETE ON people FOR EACH ROW EXECUTE FUNCTION note()",
        "INSERT INTO notes VALUES ('DROP TABLE people; DELETE FROM people')",
        "INSERT INTO notes VALUES (E'it\\'s; DROP TABLE people')",
        'ALTER TABLE people RENAME TO "DROP"',
        "CREATE FUNCTION clean() RETURNS void LANGUAGE sql AS $$ DELETE FROM people $$",
        "-- DROP TABLE people\nUPDATE people SET name = 'x'",
        "/* a /* nested; DROP TABLE */ comment */ UPDATE people SET name = 'x'",
        "SELECT drop_rate FROM rates",
    ],
)
def test_statements_that_keep_data(text: str) -> None:
    assert not read_statement(text, field="statement").loses_data


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (" UPDATE a SET b = 1 ; ", "UPDATE a SET b = 1"),
        ("UPDATE a SET b = ';' -- ; not here\n;\n-- done", "UPDATE a SET b = ';' -- ; not here"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $x$ SELECT 1; SELECT 2; $x$", None),
        ("CREATE TRIGGER t AFTER UPDATE ON a BEGIN UPDATE b SET c = CASE WHEN 1 THEN 2 END; DELETE FROM d; END", None),
        ("UPDATE a$b$c SET b$c = 1", None),
    ],
)
def test_a_statement_ends_where_it_ends(text: str, read: str | None) -> None:
    assert read_statement(text, field="statement").text == (text if read is None else read)


@pytest.mark.parametrize(
    "text", ["", " ; ", "-- only words", "UPDATE a SET b = 1; UPDATE c SET d = 2", "COMMIT; DROP TABLE a"]
)
def test_not_one_statement(text: str) -> None:
    with pytest.raises(MigrationError, match=r"^step x, sql\.statement: it holds") as failure:
        read_statement(text, field="step x, sql.statement")
    assert (failure.value.reason, failure.value.retry) == ("StatementRefused", "Never")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("COMMIT", "leave it out"),
        ("BEGIN", "leave it out"),
        ("savepoint a", "leave it out"),
        ("SET search_path TO other", "the worker's own session"),
        ("VACUUM FULL people", "VACUUM cannot run in a transaction"),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON people (name)", "use createIndexes"),
        ("DROP INDEX CONCURRENTLY i", "use createIndexes"),
        ("REINDEX TABLE CONCURRENTLY people", "use createIndexes"),
        ("ALTER TABLE people DETACH PARTITION p CONCURRENTLY", "leave CONCURRENTLY out"),
        ("ALTER SYSTEM SET work_mem = '1GB'", "by hand"),
        ("CREATE DATABASE other", "beforehand"),
        ("COPY people FROM STDIN", "beforehand"),
    ],
)
def test_what_cannot_run_in_a_transaction_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(MigrationError, match=advice) as failure:
        require_transactional(read_statement(text, field="statement"), field="statement")
    assert failure.value.reason == "StatementRefused"


@pytest.mark.parametrize(
    "text",
    [
        "REFRESH MATERIALIZED VIEW CONCURRENTLY counts",
        'CREATE INDEX i ON people ("concurrently")',
        "UPDATE people SET name = 'VACUUM'",
        "ALTER TABLE people DETACH PARTITION p",
    ],
)
def test_what_can_run_in_a_transaction_is_let_through(text: str) -> None:
    require_transactional(read_statement(text, field="statement"), field="statement")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 FROM pg_class WHERE relname = 'x';",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "SELECT count(*) FROM a HAVING count(*) = 0",
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM a)",
    ],
)
def test_guards(text: str) -> None:
    assert read_guard(text, field="unless").text == text.rstrip(";")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SELECT EXISTS (SELECT 1 FROM a)", "gives a row whatever it finds"),
        ("select not exists (SELECT 1 FROM a)", "gives a row whatever it finds"),
        ("SELECT count(*) FROM a", "gives a row whatever it finds"),
        ("DELETE FROM a RETURNING 1", "must be a query"),
        ("SELECT 1; SELECT 2", "more than one statement"),
    ],
)
def test_guards_that_would_never_guard(text: str, why: str) -> None:
    with pytest.raises(MigrationError, match=why):
        read_guard(text, field="unless")
