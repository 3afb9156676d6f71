"""What of a SQLite file's values can be staged in PostgreSQL, and which columns a step uses."""

from typing import Any

import pytest

from shipkeeper.migrations.catalog import Column, sqlite_family
from shipkeeper.migrations.sqlite_values import StagedColumn, fitting, staged_column
from shipkeeper.migrations.used_columns import used_columns
from support.migration_databases import sample_spec


def column(declared: str, *, is_used: bool = True) -> StagedColumn:
    described = Column(name="c", type=declared, family=sqlite_family(declared), nullable=True, has_default=False)
    return staged_column(described, is_used=is_used, is_key=False)


@pytest.mark.parametrize(
    ("declared", "staged"),
    [
        ("INTEGER", "bigint"),
        ("VARCHAR(10)", "text"),
        ("DOUBLE PRECISION", "double precision"),
        ("DECIMAL(10,2)", "numeric"),
        ("BOOLEAN", "boolean"),
        ("DATETIME", "text"),
        ("JSON", "text"),
        ("BLOB", "bytea"),
        ("", "text"),
    ],
)
def test_declared_types_are_staged_as(declared: str, staged: str) -> None:
    assert column(declared).staged.type == staged


@pytest.mark.parametrize(
    ("declared", "value", "staged"),
    [
        ("INTEGER", 5, 5),
        ("REAL", 5, 5),
        ("BOOLEAN", "Yes", True),
        ("BOOLEAN", "off", False),
        ("DATETIME", 1.5, "1.5"),
        ("TEXT", None, None),
    ],
)
def test_what_fits_has_no_misfit(declared: str, value: Any, staged: Any) -> None:
    assert fitting((value, 1), [column(declared)]) == (staged, None)


@pytest.mark.parametrize(
    ("declared", "value", "misfit"),
    [
        ("INTEGER", "five", "c holds five: not a whole number"),
        ("INTEGER", 1.5, "c holds 1.5: not a whole number"),
        ("NUMERIC", "much", "c holds much: not a number"),
        ("BOOLEAN", "2", "c holds 2: not a truth value"),
        ("TEXT", b"\x00\x01", "c holds \\x0001: bytes, not text"),
        ("TEXT", "a\0b", "c holds a\\0b: text with a NUL character, which PostgreSQL cannot hold"),
        ("TEXT", "a\udcff", "c holds a\\udcff: text that is not UTF-8"),
        ("BLOB", "text", "c holds text: not bytes"),
        ("TEXT", b"x" * 500, f"c holds \\x{'78' * 99}...: bytes, not text"),
    ],
)
def test_what_does_not_fit_is_null_and_named(declared: str, value: Any, misfit: str) -> None:
    assert fitting((value, 1), [column(declared)]) == (None, misfit)


@pytest.mark.parametrize(("value", "shown"), [(b"\x01", "\\x01"), ("a\0", "a\\0"), ("\udcff", "\\udcff"), (7, "7")])
def test_a_column_that_nothing_is_made_from_never_rejects(value: Any, shown: str) -> None:
    assert fitting((value, 1), [column("INTEGER", is_used=False)]) == (shown, None)


def test_used_columns_are_those_that_the_step_names() -> None:
    step = sample_spec().steps[1].consolidate
    assert step is not None
    found = used_columns(step, ("id", "contact_id", "contact_name", "sent_at", "days_late", "other"))
    assert found == {"id", "contact_id", "contact_name", "sent_at", "days_late"}
    filtered = step.model_copy(update={"filter": "source.Other > 0"})
    assert "other" in used_columns(filtered, ("id", "other"))
