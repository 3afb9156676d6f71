"""From a declared mapping to one SELECT: the target's values of each source row, and why a row cannot be converted.

The SELECT has three layers. The innermost reads the source and computes every value that costs something, once. The
middle one builds JSON objects and names the first problem of a row as `reason`. What the batch does with it (insert the
rows without a reason, keep the others, compare digests) is the outermost layer, in copying.py and verification.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from shipkeeper.resources.migrationmapping import Case, ColumnMapping, JsonField, JsonType, Lookup, TimestampFromText
from shipkeeper.resources.migrationsteps import Consolidate

from .catalog import Column, Family, Table, quoted_name
from .dialect import Dialect, SqlValue, identifier, literal
from .errors import MigrationError

SOURCE = "source"


@dataclass(frozen=True)
class Snapshot:
    """A table of lookup results, made once per step: each value of a column that is not unique, and what it stands for.

    It stays as it was, so that a resumed copy and the verification resolve a name as the first batch did.
    """

    name: str
    table: str
    match: str
    value: Column
    lookup: Lookup

    def create_sql(self) -> str:
        """Return the statement that fills it."""
        return f"CREATE TABLE {identifier(self.name)} AS {self._rows()}"

    def refresh_sql(self) -> tuple[str, ...]:
        """Return the statements that let what rejected a row stand for what it does now, and leave the rest as it was.

        Rows that were copied used a value with one match, or what the lookup says of none or several; those stay.
        """
        name = identifier(self.name)
        statements = []
        if self.lookup.when_several == "Reject":
            now = f"FROM ({self._rows()}) AS n WHERE n.match = {name}.match"
            statements.append(
                f"UPDATE {name} SET value = (SELECT n.value {now}), matches = coalesce((SELECT n.matches {now}), 0) "
                "WHERE matches > 1"
            )
        if self.lookup.when_missing == "Reject":
            known = f"SELECT 1 FROM {name} AS s WHERE s.match = n.match"
            statements.append(
                f"INSERT INTO {name} (match, value, matches) "
                f"SELECT n.match, n.value, n.matches FROM ({self._rows()}) AS n WHERE NOT EXISTS ({known})"
            )
        return tuple(statements)

    def _rows(self) -> str:
        match, value = identifier(self.match), identifier(self.value.name)
        lowest = f"min({value})"
        if self.value.family == "uuid":  # PostgreSQL has no min(uuid) before version 18.
            lowest = f"CAST(min(CAST({value} AS text)) AS {self.value.type})"
        return (
            f"SELECT {match} AS match, {lowest} AS value, count(*) AS matches "
            f"FROM {quoted_name(self.table)} WHERE {match} IS NOT NULL GROUP BY {match}"
        )

    def index_sql(self) -> str:
        """Return the statement that lets the planner find a value."""
        return f"CREATE UNIQUE INDEX {identifier(self.name + '_match')} ON {identifier(self.name)} (match)"


@dataclass
class _Draft:
    """The SELECT while it is put together."""

    inner: list[tuple[str, SqlValue]] = field(default_factory=list)
    joins: list[str] = field(default_factory=list)
    problems: list[tuple[SqlValue, str]] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    digested: dict[str, SqlValue] = field(default_factory=dict)

    def compute(self, alias: str, expression: SqlValue) -> SqlValue:
        """Add an expression to the innermost layer and return its name in the middle one."""
        self.inner.append((alias, expression))
        return f"q.{alias}"


@dataclass(frozen=True, kw_only=True)
class CompiledMapping:
    """A mapping as SQL of one dialect."""

    dialect: Dialect
    source: Table
    target: Table
    key: tuple[Column, ...]
    columns: tuple[Column, ...]
    """The target's mapped columns, in the order of `outputs`."""
    outputs: tuple[SqlValue, ...]
    digested: tuple[SqlValue, ...]
    """The same in the forms of which digests are made: equal digests, at less cost."""
    inner: tuple[tuple[str, SqlValue], ...]
    joins: tuple[str, ...]
    problems: tuple[tuple[SqlValue, str], ...]
    snapshots: tuple[Snapshot, ...]

    def key_texts(self) -> tuple[SqlValue, ...]:
        """Return each key column as text, in the innermost layer."""
        return tuple(self.dialect.as_text(source_column(column.name)) for column in self.key)

    def select(self, where: Sequence[SqlValue], *, with_row: bool = False, for_digest: bool = False) -> str:
        """Return the SELECT over the source rows that meet all conditions.

        A fence keeps an expression that is named more than once from being computed more than once; `for_digest` goes
        without, which leaves the planner free to spread the work over parallel workers. Its columns: k0.. (key as
        text), c0.. (mapped values), reason, and with_row: row_values (the row as JSON).
        """
        inner = [(f"k{index}", text) for index, text in enumerate(self.key_texts())]
        inner += self.inner
        if with_row:
            inner.append(("row_values", self.dialect.row_as_json(SOURCE, tuple(self.source.columns.values()))))
        fields = ", ".join(f"{expression} AS {alias}" for alias, expression in inner)
        conditions = f" WHERE {' AND '.join(where)}" if where else ""
        table = self.source.relation
        fence = f" {self.dialect.fence()}" if not for_digest else ""
        joins = "".join(f" {join}" for join in self.joins)
        read = f"SELECT {fields} FROM {table} AS {SOURCE}{joins}{conditions}{fence}"
        outer = [f"q.k{index}" for index in range(len(self.key))]
        outer += [f"{output} AS c{index}" for index, output in enumerate(self.digested if for_digest else self.outputs)]
        outer.append(f"{self._reason()} AS reason")
        if with_row:
            outer.append("q.row_values")
        return f"SELECT {', '.join(outer)} FROM ({read}) AS q"

    def _reason(self) -> SqlValue:
        if not self.problems:
            return self.dialect.as_text("NULL")
        branches = " ".join(f"WHEN {condition} THEN {literal(message)}" for condition, message in self.problems)
        return f"CASE {branches} END"


def source_column(name: str) -> SqlValue:
    """Return a column of the source row."""
    return f"{SOURCE}.{identifier(name)}"


def compile_mapping(
    step: Consolidate,
    *,
    dialect: Dialect,
    source: Table,
    target: Table,
    lookups: Sequence[Table],
    prefix: str,
    start: str,
) -> CompiledMapping:
    """Turn a declared mapping into SQL.

    `lookups` are the tables that lookups name, `prefix` begins the names of the step's own tables, `start` is the
    instant at which the step began (naive UTC, ISO). Raises MigrationError where a column is missing or uncovered.
    """
    compiler = _Compiler(dialect, source, {table.name: table for table in lookups}, prefix, start)
    draft = _Draft()
    outputs = []
    columns = []
    for number, mapping in enumerate(step.columns):
        column = target.column(mapping.name, used_by=f"mapped column {mapping.name}")
        columns.append(column)
        outputs.append(compiler.value(draft, mapping, column, number))
    _refuse_uncovered(step, target)
    key = tuple(source.column(name, used_by="consolidate.key") for name in step.key)
    return CompiledMapping(
        dialect=dialect,
        source=source,
        target=target,
        key=key,
        columns=tuple(columns),
        outputs=tuple(outputs),
        digested=tuple(draft.digested.get(output, output) for output in outputs),
        inner=tuple(draft.inner),
        joins=tuple(draft.joins),
        problems=tuple(draft.problems),
        snapshots=tuple(draft.snapshots),
    )


def _refuse_uncovered(step: Consolidate, target: Table) -> None:
    mapped = {mapping.name for mapping in step.columns}
    needed = [
        column.name
        for column in target.columns.values()
        if not column.nullable and not column.has_default and column.name not in mapped
    ]
    if needed:
        raise MigrationError(
            "ColumnNotCovered",
            f"consolidate.columns must map {', '.join(needed)}: {target.name} needs a value there and has no default",
            retry="Never",
        )


class _Compiler:
    """Compiles the values of one mapping."""

    def __init__(self, dialect: Dialect, source: Table, lookups: dict[str, Table], prefix: str, start: str) -> None:
        self._dialect = dialect
        self._source = source
        self._lookups = lookups
        self._prefix = prefix
        self._start = start

    def value(self, draft: _Draft, mapping: ColumnMapping, target: Column, number: int) -> SqlValue:
        """Add one mapped column and return its value in the middle layer."""
        if mapping.constant is not None:
            return self._dialect.constant(mapping.constant, target)
        if mapping.json_object is not None:
            members = [
                (member.name, self._json_member(draft, member, f"j{number}_{index}"), self._family(member))
                for index, member in enumerate(mapping.json_object.fields)
            ]
            built = self._dialect.json_object([(name, value) for name, value, _ in members], target)
            draft.digested[built] = self._dialect.json_object_digested(members, target) or built
            return built
        name = f"v{number}"
        if mapping.timestamp is not None:
            value = self._timestamp(draft, mapping.timestamp, target, name)
        elif mapping.lookup is not None:
            value = self._lookup(draft, mapping.lookup, target, name)
        elif mapping.case is not None:
            value = draft.compute(name, self._case(mapping.case, target))
        else:
            value = draft.compute(name, self._plain(mapping, target))
        if not target.nullable:
            draft.problems.append((f"{value} IS NULL", f"{target.name} would be null, which the column refuses"))
        return value

    def _column(self, name: str, *, optional: bool, used_by: str) -> Column | None:
        if optional and name not in self._source.columns:
            return None
        return self._source.column(name, used_by=used_by)

    def _plain(self, mapping: ColumnMapping, target: Column) -> SqlValue:
        if mapping.expression is not None:
            return self._dialect.stored(f"({mapping.expression})", source=None, target=target)
        assert mapping.column is not None  # noqa: S101 # The model requires exactly one kind of value.
        column = self._column(mapping.column, optional=mapping.optional, used_by=f"mapped column {mapping.name}")
        if column is None:
            return self._dialect.stored("NULL", source=None, target=target)
        return self._dialect.stored(source_column(column.name), source=column, target=target)

    def _json_member(self, draft: _Draft, member: JsonField, alias: str) -> SqlValue:
        if member.constant is not None:
            converted: SqlValue = self._dialect.as_text(literal(member.constant))
            if member.type not in ("Auto", "Text"):
                converted = draft.compute(alias, self._dialect.convertible(converted, type_=member.type, source=None))
            return self._dialect.json_member(converted, type_=member.type)
        column = None
        if member.column is not None:
            column = self._column(member.column, optional=member.optional, used_by=f"JSON field {member.name}")
            raw = source_column(column.name) if column is not None else self._dialect.as_text("NULL")
        else:
            raw = f"({member.expression})"
        value = draft.compute(alias, self._dialect.convertible(raw, type_=member.type, source=column))
        if self._dialect.convertible(raw, type_=member.type, source=column) != raw and member.type != "Text":
            given = draft.compute(f"{alias}_given", f"({raw} IS NOT NULL)")
            draft.problems.append((f"{value} IS NULL AND {given}", f"{member.name} is not of type {member.type}"))
        return self._dialect.json_member(value, type_=member.type)

    def _family(self, member: JsonField) -> Family:
        """Return the family of a member's value, "other" where it cannot be told."""
        column = self._source.columns.get(member.column or "")
        if member.type == "Auto":
            return column.family if column is not None else "other"
        families: dict[JsonType, Family] = {"Boolean": "boolean", "Integer": "integer"}
        return families.get(member.type, "other")

    def _timestamp(self, draft: _Draft, rules: TimestampFromText, target: Column, name: str) -> SqlValue:
        column = self._source.column(rules.column, used_by=f"timestamp of {target.name}")
        raw = source_column(column.name)
        read = self._dialect.timestamp(raw, source=column, rules=rules, target=target)
        if rules.when_empty == "RunStart":
            start = self._dialect.run_start(self._start, target)
            read = f"coalesce({read}, CASE WHEN {self._dialect.is_blank(raw, column)} THEN {start} END)"
        value = draft.compute(name, read)
        # Looked at in the middle layer, so that only a row without an instant pays for it.
        is_empty = self._dialect.is_blank(draft.compute(f"{name}_raw", raw), column)
        if rules.when_empty == "Reject":
            draft.problems.append((f"{value} IS NULL AND {is_empty}", f"{rules.column} is empty"))
        draft.problems.append(
            (f"{value} IS NULL AND NOT {is_empty}", f"{rules.column} names no instant in an accepted form")
        )
        return value

    def _case(self, case: Case, target: Column) -> SqlValue:
        branches = []
        for branch in case.branches:
            column = self._source.column(branch.column, used_by=f"case of {target.name}")
            raw = source_column(column.name)
            match branch.test:
                case "Empty":
                    condition = self._dialect.is_blank(raw, column)
                case "NotEmpty":
                    condition = f"NOT {self._dialect.is_blank(raw, column)}"
                case "Equals":
                    condition = f"{self._dialect.as_text(raw)} = {literal(branch.value or '')}"
                case "NotEquals":
                    condition = f"{self._dialect.as_text(raw)} <> {literal(branch.value or '')}"
            branches.append(f"WHEN {condition} THEN {self._dialect.constant(branch.then, target)}")
        otherwise = "NULL" if case.otherwise is None else self._dialect.constant(case.otherwise, target)
        return f"CASE {' '.join(branches)} ELSE {otherwise} END"

    def _lookup(self, draft: _Draft, lookup: Lookup, target: Column, name: str) -> SqlValue:
        """The first way whose source column is given decides: its number, its matches and its value."""
        table = self._lookups[lookup.table]
        found = table.column(lookup.column, used_by=f"lookup of {target.name}")
        values, matches, ways = [], [], []
        for number, way in enumerate(lookup.match):
            given = self._source.column(way.source, used_by=f"lookup of {target.name}")
            matched = table.column(way.target, used_by=f"lookup of {target.name}")
            alias = f"l{name}_{number}"
            value, count = self._join(draft, lookup, way.target, alias, given=given, matched=matched, found=found)
            values.append(draft.compute(f"{name}_value{number}", value))
            matches.append(draft.compute(f"{name}_count{number}", count))
            ways.append(f"WHEN NOT {self._dialect.is_blank(source_column(given.name), given)} THEN {number}")
        way_used = draft.compute(f"{name}_way", f"CASE {' '.join(ways)} ELSE -1 END")
        self._lookup_problems(draft, lookup, target, way_used, matches)
        if lookup.when_several == "SetNull":
            values = [f"CASE WHEN {count} = 1 THEN {value} END" for value, count in zip(values, matches, strict=True)]
        chosen = " ".join(f"WHEN {number} THEN {value}" for number, value in enumerate(values))
        return self._dialect.stored(f"CASE {way_used} {chosen} END", source=found, target=target)

    def _lookup_problems(
        self, draft: _Draft, lookup: Lookup, target: Column, way_used: SqlValue, matches: Sequence[SqlValue]
    ) -> None:
        if lookup.when_missing == "Reject":
            names = " and ".join(way.source for way in lookup.match)
            text = f"{target.name}: {names} are empty, so no row of {lookup.table} is named"
            draft.problems.append((f"{way_used} = -1", text))
        for number, (way, count) in enumerate(zip(lookup.match, matches, strict=True)):
            if lookup.when_missing == "Reject":
                message = f"{target.name}: no row of {lookup.table} has this {way.source} as its {way.target}"
                draft.problems.append((f"{way_used} = {number} AND {count} = 0", message))
            if lookup.when_several == "Reject":
                message = f"{target.name}: several rows of {lookup.table} have this {way.source} as their {way.target}"
                draft.problems.append((f"{way_used} = {number} AND {count} > 1", message))

    def _join(
        self, draft: _Draft, lookup: Lookup, match: str, alias: str, *, given: Column, matched: Column, found: Column
    ) -> tuple[SqlValue, SqlValue]:
        """Join one way of a lookup and return its value and the number of its matches."""
        unique = frozenset({match}) in self._lookups[lookup.table].unique_keys
        if unique:
            relation, column, value = (
                quoted_name(lookup.table),
                f"{alias}.{identifier(match)}",
                identifier(lookup.column),
            )
            count = f"CASE WHEN {column} IS NULL THEN 0 ELSE 1 END"
        else:
            snapshot = Snapshot(f"{self._prefix}_{alias}", lookup.table, match, found, lookup)
            draft.snapshots.append(snapshot)
            relation, column, value = identifier(snapshot.name), f"{alias}.match", "value"
            count = f"coalesce({alias}.matches, 0)"
        raw = source_column(given.name)
        if given.family != matched.family:
            raw = self._comparable(raw, matched)
            column = column if matched.family == "integer" else self._dialect.as_text(column)
        draft.joins.append(f"LEFT JOIN {relation} AS {alias} ON {column} = {raw}")
        return f"{alias}.{value}", count

    def _comparable(self, raw: SqlValue, matched: Column) -> SqlValue:
        if matched.family == "integer":
            return self._dialect.convertible(raw, type_="Integer", source=None)
        return self._dialect.as_text(raw)
