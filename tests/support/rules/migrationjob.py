"""Every rule of MigrationJob, broken and kept.

The steps of the complete object are indexes, consolidate, backfill, sql and retire, in this order.
"""

from typing import Any

from support.paths import ABSENT
from support.rules.case import RuleCase

_DATABASE = "a database needs exactly one of urlFrom or sqlite"
_ONE_WORK = "a step needs exactly one of createIndexes, consolidate, backfill, sql or retire"
_IDENTITY = "consolidate.identity must hold each column of key once as source"
_ONE_VALUE = "a mapped column needs exactly one of"
_OPTIONAL = "optional applies to a value made from a column"
_ZONE = "write the name of an IANA time zone as in the zone database"
_WORK = "spec.database, spec.source and spec.steps cannot change once the work has begun"
_BATCH = "batch.minSize must not be above batch.initialSize, nor that above batch.maxSize"
_LOCKS = "locks.tableTimeout and locks.indexBuildTimeout must be longer than zero"
_JSON = "a JSON field needs exactly one of column, constant or expression"
_CASE = "value belongs to the tests Equals and NotEquals"
_RETENTION = "retire.retention is needed with action Drop, and only there"
_HASH = "method Hash takes one key, and is never unique"
_KEY_ASSIGNED = "backfill.assignments must not set a column of key"
_SQL_TIMEOUT = "sql.timeout must be longer than zero"
_PATH = "sqlite.path must stay in the volume"

_INDEX = "spec.steps[0].createIndexes.indexes[0]"
_CONSOLIDATE = "spec.steps[1].consolidate"
_COLUMNS = f"{_CONSOLIDATE}.columns"
_RETIRE = "spec.steps[4].retire"
_NO_CONSOLIDATION: Any = {
    "table": "interactions",
    "key": ["id"],
    "assignments": [{"name": "a", "expression": "1"}],
    "where": "a = 0",
}


def _case(field: str, message: str, path: str, refused: Any, accepted: Any) -> RuleCase:
    """Return the case of a rule that one value of a field breaks and another keeps."""
    rule = "".join(character for character in field if not character.isdigit())
    return RuleCase(rule=rule, message=message, field=field, refused=((path, refused),), accepted=((path, accepted),))


CASES = (
    RuleCase(
        rule="",
        message="metadata.name must be at most 52 characters",
        field="<nil>",
        refused=(("metadata.name", "a" * 53),),
        accepted=(("metadata.name", "a" * 52),),
    ),
    RuleCase(
        rule="",
        message=_WORK,
        field="<nil>",
        stored=(),
        refused=(("spec.steps[2].backfill.where", "kind = ''"),),
        accepted=(("spec.steps[2].backfill.where", "kind = ''"), ("spec.revision", 3)),
    ),
    RuleCase(
        rule="",
        message=_WORK,
        field="<nil>",
        stored=(),
        refused=(("spec.database.urlFrom.name", "other"),),
        accepted=(("spec.batch.initialSize", 500), ("spec.suspend", True), ("spec.parallelism", 1)),
    ),
    RuleCase(rule="", message=_WORK, field="<nil>", stored=(), refused=(("spec.source", ABSENT),)),
    RuleCase(rule="", message=_WORK, field="<nil>", stored=(), refused=(("spec.source.sqlite.path", "other.db"),)),
    RuleCase(
        rule="",
        message=_WORK,
        field="<nil>",
        stored=(("spec.source", ABSENT),),
        refused=(),
        accepted=(("spec.source", ABSENT),),
    ),
    RuleCase(
        rule="spec",
        message="revision must not become lower",
        field="spec.revision",
        stored=(),
        refused=(("spec.revision", 1),),
        accepted=(("spec.revision", 2),),
    ),
    RuleCase(
        rule="spec",
        message="retire.table must be the source of a consolidate step",
        field="spec.steps",
        refused=((f"{_RETIRE}.table", "contacts"),),
        accepted=((f"{_RETIRE}.table", "contacts"), (f"{_CONSOLIDATE}.source", "contacts")),
    ),
    RuleCase(
        rule="spec",
        message="retire.table must be the source of a consolidate step",
        field="spec.steps",
        refused=(("spec.steps[1]", {"name": "other", "backfill": _NO_CONSOLIDATION}),),
    ),
    RuleCase(
        rule="spec.database",
        message=_DATABASE,
        field="spec.database",
        refused=(("spec.database", {}),),
        accepted=(("spec.database", {"sqlite": {"claimName": "data", "path": "app.db"}}),),
    ),
    RuleCase(
        rule="spec.source",
        message=_DATABASE,
        field="spec.source",
        refused=(("spec.source.urlFrom", {"name": "legacy", "key": "url"}),),
        accepted=(("spec.source", {"urlFrom": {"name": "legacy", "key": "url"}}),),
    ),
    _case("spec.source.sqlite", _PATH, "spec.source.sqlite.path", "old/../../etc", "old..er/messages.db"),
    RuleCase(
        rule="spec.database.sqlite",
        message=_PATH,
        field="spec.database.sqlite",
        base="within-sqlite",
        refused=(("spec.database.sqlite.path", ".."),),
        accepted=(("spec.database.sqlite.path", "..."),),
    ),
    _case(
        "spec.steps[3]", _ONE_WORK, "spec.steps[3]", {"name": "nothing"}, {"name": "b", "backfill": _NO_CONSOLIDATION}
    ),
    RuleCase(
        rule="spec.steps[]",
        message=_ONE_WORK,
        field="spec.steps[2]",
        refused=(("spec.steps[2].sql", {"statement": "SELECT 1", "unless": "SELECT 1"}),),
    ),
    RuleCase(
        rule="spec.steps[].createIndexes.indexes[]",
        message=_HASH,
        field=_INDEX,
        refused=((f"{_INDEX}.method", "Hash"),),
        accepted=((f"{_INDEX}.method", "Hash"), (f"{_INDEX}.keys", [{"column": "email"}]), (f"{_INDEX}.unique", False)),
    ),
    _case(
        f"{_INDEX}.keys[0]",
        "an index part needs exactly one of column or expression",
        f"{_INDEX}.keys[0]",
        {"column": "email", "expression": "lower(email)"},
        {"expression": "lower(email)"},
    ),
    _case(_CONSOLIDATE, _IDENTITY, f"{_CONSOLIDATE}.key", ["id", "sent_at"], ["id"]),
    RuleCase(
        rule="spec.steps[].consolidate",
        message=_IDENTITY,
        field=_CONSOLIDATE,
        refused=((f"{_CONSOLIDATE}.identity[0].source", "sent_at"),),
        accepted=((f"{_CONSOLIDATE}.identity[0].source", "sent_at"), (f"{_CONSOLIDATE}.key", ["sent_at"])),
    ),
    _case(
        _CONSOLIDATE,
        "consolidate.target must be another table than source",
        f"{_CONSOLIDATE}.target",
        "birthday_messages",
        "archive.birthday_messages",
    ),
    _case("spec.steps[2].backfill", _KEY_ASSIGNED, "spec.steps[2].backfill.key", ["kind"], ["id"]),
    _case("spec.steps[3].sql", _SQL_TIMEOUT, "spec.steps[3].sql.timeout", "0s", "1h"),
    _case(
        f"{_CONSOLIDATE}.identity[1]",
        "a part of identity needs exactly one of source or constant",
        f"{_CONSOLIDATE}.identity[1]",
        {"column": "extra", "field": "origin"},
        {"column": "extra", "constant": "birthday"},
    ),
    _case(f"{_COLUMNS}[1]", _ONE_VALUE, f"{_COLUMNS}[1]", {"name": "kind"}, {"name": "kind", "column": "type"}),
    _case(
        f"{_COLUMNS}[1]",
        _ONE_VALUE,
        f"{_COLUMNS}[1]",
        {"name": "kind", "column": "type", "constant": "birthday"},
        {"name": "kind", "expression": "'birthday'"},
    ),
    _case(
        f"{_COLUMNS}[1]",
        _OPTIONAL,
        f"{_COLUMNS}[1]",
        {"name": "kind", "constant": "birthday", "optional": True},
        {"name": "kind", "column": "type", "optional": True},
    ),
    _case(
        f"{_COLUMNS}[3].json.fields[0]",
        _JSON,
        f"{_COLUMNS}[3].json.fields[0]",
        {"name": "origin"},
        {"name": "origin", "expression": "'birthday'"},
    ),
    _case(
        f"{_COLUMNS}[3].json.fields[0]",
        _OPTIONAL,
        f"{_COLUMNS}[3].json.fields[0]",
        {"name": "origin", "constant": "birthday", "optional": True},
        {"name": "origin", "column": "origin", "optional": True},
    ),
    _case(
        f"{_COLUMNS}[4].timestamp",
        "timestamp.forms must not name a form twice",
        f"{_COLUMNS}[4].timestamp.forms",
        ["Iso8601", "EpochSeconds", "Iso8601"],
        ["Iso8601", "EpochSeconds", "DayMonthYear"],
    ),
    _case(
        f"{_COLUMNS}[4].timestamp",
        "timestamp.forms must not hold both DayMonthYear and MonthDayYear",
        f"{_COLUMNS}[4].timestamp.forms",
        ["DayMonthYear", "Iso8601", "MonthDayYear"],
        ["MonthDayYear"],
    ),
    _case(
        f"{_COLUMNS}[4].timestamp.naiveZone", _ZONE, f"{_COLUMNS}[4].timestamp.naiveZone", "Europe/Pari", "Europe/Paris"
    ),
    _case(
        f"{_COLUMNS}[6].case.branches[0]",
        _CASE,
        f"{_COLUMNS}[6].case.branches[0]",
        {"column": "status", "test": "NotEquals", "then": "sent"},
        {"column": "status", "test": "NotEmpty", "then": "sent"},
    ),
    _case(
        f"{_COLUMNS}[6].case.branches[0]",
        _CASE,
        f"{_COLUMNS}[6].case.branches[0]",
        {"column": "status", "test": "Empty", "value": "", "then": "sent"},
        {"column": "status", "test": "Equals", "value": "", "then": "sent"},
    ),
    _case(_RETIRE, _RETENTION, f"{_RETIRE}.retention", ABSENT, "0s"),
    RuleCase(
        rule="spec.steps[].retire",
        message=_RETENTION,
        field=_RETIRE,
        refused=((f"{_RETIRE}.action", "Rename"),),
        accepted=((f"{_RETIRE}.action", "Rename"), (f"{_RETIRE}.retention", ABSENT)),
    ),
    _case("spec.batch", _BATCH, "spec.batch.minSize", 2001, 2000),
    _case("spec.batch", _BATCH, "spec.batch.maxSize", 1999, 2000),
    _case("spec.throttle.window.timeZone", _ZONE, "spec.throttle.window.timeZone", "CEST", "CET"),
    _case("spec.locks", _LOCKS, "spec.locks.tableTimeout", "0s", "1ms"),
    _case("spec.locks", _LOCKS, "spec.locks.indexBuildTimeout", "0h", "24h"),
)
