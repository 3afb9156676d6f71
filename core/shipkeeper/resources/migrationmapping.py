"""How a source row becomes a target row: the values that a consolidation or a backfill may declare.

Each value names its one way of being made (`column`, `constant`, `expression`, ...). The engine turns the whole mapping
into set-based SQL of the database's own dialect, so that the same declaration gives the same rows on PostgreSQL and
on SQLite.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .base import ResourceModel, cel, list_map, with_cel
from .schedule import TimeZone

_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_$]*$"

ColumnName = Annotated[str, Field(min_length=1, max_length=63, pattern=_IDENTIFIER)]
"""A column's name, as the database stores it."""

TableName = Annotated[
    str, Field(min_length=1, max_length=127, pattern=r"^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?$")
]
"""A table's name, with its schema before a dot where it is not on the search path."""

SqlText = Annotated[str, Field(min_length=1, max_length=2048)]
"""SQL of the target database's dialect; in a mapping the source row's columns are named as `source.column`."""

ConstantText = Annotated[str, Field(max_length=1024)]
"""A fixed value as text; the database casts it to the type of the column it is for."""


def exactly_one(model: ResourceModel, names: tuple[str, ...], message: str) -> None:
    """Raise ValueError with the message unless exactly one of the fields is set."""
    if sum(getattr(model, name) is not None for name in names) != 1:
        raise ValueError(message)


def exactly_one_rule(names: tuple[str, ...], message: str) -> dict[str, str]:
    """Return the CEL rule of `exactly_one` (the names as on the wire). A sum: the cheapest form, by the API server."""
    return cel(" + ".join(f"(has(self.{name}) ? 1 : 0)" for name in names) + " == 1", message)


JsonType = Literal["Auto", "Text", "Integer", "Number", "Boolean", "Json"]

_ONE_JSON_VALUE: Final = "a JSON field needs exactly one of column, constant or expression"
_JSON_VALUES: Final = ("column", "constant", "expression")
_OPTIONAL_COLUMN: Final = "optional applies to a value made from a column; remove optional, or set column"
_OPTIONAL_RULE: Final = cel("!self.optional || has(self.column)", _OPTIONAL_COLUMN)


class JsonField(ResourceModel):
    """One field of a JSON object."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(exactly_one_rule(_JSON_VALUES, _ONE_JSON_VALUE), _OPTIONAL_RULE)
    )

    name: str = Field(min_length=1, max_length=63)
    """Name of the field in the JSON object."""
    column: ColumnName | None = None
    """The source column whose value it holds."""
    constant: ConstantText | None = None
    """A fixed value."""
    expression: SqlText | None = None
    """An SQL expression over the source row, whose columns are named as source.column."""
    type: JsonType = "Auto"
    """JSON type of the value. Auto keeps the source's own; the others convert, and a value that cannot be converted
    rejects its row. Boolean takes 0/1, t/f, true/false, yes/no and on/off; Json embeds text that is itself JSON."""
    optional: bool = False
    """Take null where the source table has no such column, as older forms of a table may not."""

    @model_validator(mode="after")
    def _is_one_value(self) -> Self:
        exactly_one(self, _JSON_VALUES, f"{self.name}: {_ONE_JSON_VALUE}")
        if self.optional and self.column is None:
            raise ValueError(f"{self.name}: {_OPTIONAL_COLUMN}")
        return self


class JsonObject(ResourceModel):
    """A JSON object made from columns, constants and expressions."""

    fields: tuple[JsonField, ...] = Field(min_length=1, max_length=48, json_schema_extra=list_map("name"))
    """The fields, written in this order."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        refuse_repeated("json.fields", [field.name for field in self.fields])
        return self


TimestampForm = Literal[
    "Iso8601WithOffset", "Iso8601", "Iso8601Date", "DayMonthYear", "MonthDayYear", "EpochSeconds", "EpochMilliseconds"
]

_REPEATED_FORM: Final = "timestamp.forms must not name a form twice"
_TWO_ORDERS: Final = "timestamp.forms must not hold both DayMonthYear and MonthDayYear: 01/02/2024 would be either"


class TimestampFromText(ResourceModel):
    """An instant read from text. Stored in UTC; a column without time zone gets the UTC wall-clock time."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("self.forms.all(f, self.forms.exists_one(g, g == f))", _REPEATED_FORM),
            cel("!('DayMonthYear' in self.forms && 'MonthDayYear' in self.forms)", _TWO_ORDERS),
        )
    )

    column: ColumnName
    """The source column. One that is already a timestamp in the database is taken as it is (naive: in naiveZone)."""
    forms: tuple[TimestampForm, ...] = Field(default=("Iso8601WithOffset", "Iso8601"), min_length=1, max_length=7)
    """The forms of text that are accepted; any other rejects the row. Spaces around the text are ignored.
    Iso8601WithOffset: 2024-03-01T09:30:00+01:00 (T or a space; seconds and fraction optional; Z, +01, +0100).
    Iso8601: the same without offset. Iso8601Date: 2024-03-01, midnight. DayMonthYear: 01/03/2024 or 01/03/2024 09:30:00
    (also with - or . between). MonthDayYear: 03/01/2024 likewise. EpochSeconds: 9 to 11 digits.
    EpochMilliseconds: 12 or 13 digits."""
    naive_zone: TimeZone = "UTC"
    """The time zone of text that carries no offset."""
    ambiguous: Literal["Later", "Earlier", "Reject"] = "Later"
    """A naive time that exists twice, as clocks go back: the later instant (standard time), the earlier, or reject."""
    nonexistent: Literal["ShiftForward", "Reject"] = "ShiftForward"
    """A naive time that a clock change skips: read with the offset before it (02:30 becomes 03:30), or reject."""
    when_empty: Literal["Reject", "SetNull", "RunStart"] = "Reject"
    """Null or empty text: reject the row, set null, or the instant at which the step began (the same for every row and
    every resumption)."""

    @model_validator(mode="after")
    def _forms_are_distinct(self) -> Self:
        if len(set(self.forms)) < len(self.forms):
            raise ValueError(_REPEATED_FORM)
        if {"DayMonthYear", "MonthDayYear"} <= set(self.forms):
            raise ValueError(_TWO_ORDERS)
        return self


class LookupMatch(ResourceModel):
    """One way to find the row of the other table."""

    source: ColumnName
    """Column of the source row."""
    target: ColumnName
    """Column of the other table that must equal it."""


class Lookup(ResourceModel):
    """A foreign key found in another table of the target database."""

    table: TableName
    """The table that is looked into."""
    column: ColumnName = "id"
    """Its column whose value is taken."""
    match: tuple[LookupMatch, ...] = Field(min_length=1, max_length=4)
    """Ways to find the row, in order. The first whose source column is neither null nor empty decides."""
    when_missing: Literal["Reject", "SetNull"] = "Reject"
    """No row matches: reject the row, or set null."""
    when_several: Literal["Reject", "SetNull", "Lowest"] = "Reject"
    """Several rows match: reject the row, set null, or take the lowest value."""


CaseTest = Literal["Empty", "NotEmpty", "Equals", "NotEquals"]

_CASE_VALUE: Final = "value belongs to the tests Equals and NotEquals, which need it; Empty and NotEmpty take none"


class CaseBranch(ResourceModel):
    """One branch: if the test holds, this value."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(cel("(self.test in ['Equals', 'NotEquals']) == has(self.value)", _CASE_VALUE))
    )

    column: ColumnName
    """The source column that is tested."""
    test: CaseTest
    """Empty: null, or nothing but spaces. NotEmpty: its opposite. Equals, NotEquals: compared as text with `value`
    (null equals nothing)."""
    value: ConstantText | None = None
    """The text that Equals and NotEquals compare with."""
    then: ConstantText
    """The result, a fixed value."""

    @model_validator(mode="after")
    def _value_fits_the_test(self) -> Self:
        if (self.test in ("Equals", "NotEquals")) != (self.value is not None):
            raise ValueError(_CASE_VALUE)
        return self


class Case(ResourceModel):
    """A fixed value chosen by a test of the source row."""

    branches: tuple[CaseBranch, ...] = Field(min_length=1, max_length=16)
    """Tried in order; the first whose test holds gives the value."""
    otherwise: ConstantText | None = None
    """The value when no test holds. Absent: null."""


_VALUES: Final = ("column", "constant", "expression", "json", "timestamp", "lookup", "case")
_PYTHON_VALUES: Final = ("column", "constant", "expression", "json_object", "timestamp", "lookup", "case")
_ONE_VALUE: Final = "a mapped column needs exactly one of column, constant, expression, json, timestamp, lookup or case"


class ColumnMapping(ResourceModel):
    """How one column of the target gets its value."""

    model_config = ConfigDict(json_schema_extra=with_cel(exactly_one_rule(_VALUES, _ONE_VALUE), _OPTIONAL_RULE))

    name: ColumnName
    """The column of the target table."""
    column: ColumnName | None = None
    """The source column whose value is taken."""
    constant: ConstantText | None = None
    """A fixed value."""
    expression: SqlText | None = None
    """An SQL expression over the source row, whose columns are named as source.column."""
    json_object: JsonObject | None = Field(default=None, alias="json")
    """A JSON object made from the source row."""
    timestamp: TimestampFromText | None = None
    """An instant read from a text column."""
    lookup: Lookup | None = None
    """A foreign key found in another table."""
    case: Case | None = None
    """A fixed value chosen by a test."""
    optional: bool = False
    """Take null where the source table has no such column, as older forms of a table may not."""

    @model_validator(mode="after")
    def _is_one_value(self) -> Self:
        exactly_one(self, _PYTHON_VALUES, f"{self.name}: {_ONE_VALUE}")
        if self.optional and self.column is None:
            raise ValueError(f"{self.name}: {_OPTIONAL_COLUMN}")
        return self


def refuse_repeated(field: str, names: list[Any]) -> None:
    """Raise ValueError if a name stands twice in a list that is keyed by it."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{field} names {repeated!r} twice; give each name once")
