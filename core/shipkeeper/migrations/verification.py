"""Verification by content: what the mapping says each source row should be, against what the target holds.

Both sides are reduced to a row count and a digest for each key range, in one pass each. Where a range differs, its rows
are compared one by one and the keys are named. The source side is computed anew from the source, so that a lost row, a
doubled one, a changed byte, a null that became '' and a shifted time zone all show.

Most of the target's cost is to find each row's key, in a JSON object for example. So the target is first compared as a
whole: where count and digest of its rows are the sums of the source's ranges, it holds the same rows, and their keys
need not be read. Where they are not, the ranges say why.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shipkeeper.resources.migrationjob_status import Difference, StepVerification
from shipkeeper.resources.migrationsteps import Consolidate

from .catalog import Column, quoted_name
from .copying import Copier, CopyStatements, shown_key
from .database import Session
from .dialect import SqlValue, identifier, literal
from .identity import writes_identity
from .ledger import REJECTS_TABLE, Owner, StepRecord

_MOST_DIFFERENCES: Final = 10
_UNKNOWN: Final = "keys that are no keys of the source"


@dataclass(frozen=True)
class Digest:
    """Row count and digest of some rows."""

    rows: int
    sums: tuple[Any, ...]


Side = Mapping[Any, Digest]


class Verifier:
    """Compares one consolidation."""

    def __init__(
        self,
        session: Session,
        *,
        name: str,
        step: Consolidate,
        owner: Owner,
        statements: CopyStatements,
        copier: Copier,
        range_size: int,
    ) -> None:
        self._session = session
        self._name = name
        self._step = step
        self._owner = owner
        self._sql = statements
        self._copier = copier
        self._range_size = range_size
        self._dialect = statements.mapping.dialect

    async def verify(self, record: StepRecord) -> StepVerification:
        """Compare all ranges and name what differs."""
        began = time.monotonic()
        async with self._session.transaction():
            if record.upper is None:
                return StepVerification(result="Equal")
            bounds = await self._bounds(record)
            source = await self._source(record, bounds)
            target = source if await self._is_same_as_a_whole(record, source) else await self._target(record, bounds)
            different = _different(source, target)
            differences: list[Difference] = []
            for number in different:
                if len(differences) >= _MOST_DIFFERENCES:
                    break
                differences += await self._compare_rows(record, bounds, number)
        compared = sum(digest.rows for digest in source.values())
        balanced = compared + self._trusted(record) + record.rows_rejected == record.rows_total
        return StepVerification(
            result="Equal" if not different and balanced else "Different",
            ranges=len(source.keys() | target.keys()),
            rows=compared,
            trusted=self._trusted(record),
            different_ranges=len(different) or int(not balanced),
            differences=tuple(differences[:_MOST_DIFFERENCES]) or self._imbalance(record, compared, balanced),
            milliseconds=round((time.monotonic() - began) * 1000),
        )

    async def different_ranges(self, record: StepRecord) -> tuple[tuple[str, ...], list[Any]]:
        """Return the bounds of the ranges and the numbers of those that differ, in the caller's transaction."""
        bounds = await self._bounds(record)
        return bounds, _different(await self._source(record, bounds), await self._target(record, bounds))

    def _trusted(self, record: StepRecord) -> int:
        return record.rows_existing if self._trusts else 0

    @property
    def _trusts(self) -> bool:
        return self._step.existing_content == "Trust"

    def _imbalance(self, record: StepRecord, compared: int, balanced: bool) -> tuple[Difference, ...]:
        if balanced:
            return ()
        text = (
            f"all rows: the source has {compared} to compare, the ledger {record.rows_total} in all, of which "
            f"{record.rows_existing} were already there and {record.rows_rejected} rejected"
        )
        return (Difference(range=text, key="", kind="Missing" if compared < record.rows_copied else "Extra"),)

    async def _bounds(self, record: StepRecord) -> tuple[str, ...]:
        """Return the keys at which ranges begin, for a key that is not an integer."""
        assert record.upper is not None  # noqa: S101 # The caller looked.
        if self._key.family == "integer":
            return ()
        column = f"source.{identifier(self._key.name)}"
        numbered = (
            f"SELECT {column} AS k, row_number() OVER (ORDER BY {column}) AS n "
            f"FROM {quoted_name(self._step.source)} AS source WHERE {self._sql.up_to(1)}"
        )
        query = f"SELECT DISTINCT r.k FROM ({numbered}) AS r WHERE r.n % {self._range_size} = 0 ORDER BY r.k"
        return tuple(str(row[0]) for row in await self._session.rows(query, *record.upper))

    @property
    def _key(self) -> Column:
        return self._sql.mapping.key[0]

    async def _source(self, record: StepRecord, bounds: tuple[str, ...]) -> Side:
        return await self._grouped(self._source_rows(record, bounds), *self._bound(record))

    async def _target(self, record: StepRecord, bounds: tuple[str, ...]) -> Side:
        return await self._grouped(self._target_rows(record, bounds))

    async def _is_same_as_a_whole(self, record: StepRecord, source: Side) -> bool:
        """Whether the rows with the identity's plain constants are, counted and digested together, the source's.

        False where that cannot be told without the rows' keys.
        """
        if self._excludes_existing(record) or not writes_identity(self._step, self._sql.mapping):
            return False
        sums = ", ".join(self._dialect.digest_sums(self._target_digest()))
        query = f"SELECT count(*), {sums} FROM {quoted_name(self._step.target)} AS t "
        count, *digest = await self._session.row(f"{query} WHERE {self._sql.has_plain_constants('t')}")
        whole = [
            sum(int(part) for part in parts) for parts in zip(*(each.sums for each in source.values()), strict=True)
        ]
        return count == sum(each.rows for each in source.values()) and [int(part or 0) for part in digest] == whole

    def _target_digest(self) -> SqlValue:
        columns = self._sql.mapping.columns
        return self._dialect.digest([f"t.{identifier(column.name)}" for column in columns], columns)

    def _bound(self, record: StepRecord) -> tuple[str, ...]:
        return record.upper or ()

    async def _grouped(self, rows: str, *parameters: str) -> Side:
        sums = ", ".join(self._dialect.digest_sums("d.digest"))
        query = f"SELECT d.range_number, count(*), {sums} FROM ({rows}) AS d GROUP BY d.range_number"
        found = await self._session.rows(query, *parameters)
        return {number: Digest(int(count), tuple(digest)) for number, count, *digest in found}

    def _source_rows(self, record: StepRecord, bounds: tuple[str, ...]) -> str:
        """Return the query for key, range and digest of what each source row should have become."""
        mapping = self._sql.mapping
        conditions = [self._sql.up_to(1), self._sql.filter()]
        if record.rows_rejected:
            conditions.append(f"NOT {self.is_rejected(self._sql.row_key())}")
        if self._excludes_existing(record):
            conditions.append(f"NOT {self._sql.is_known(self._sql.row_key())}")
        digest = self._dialect.digest([f"p.c{index}" for index in range(len(mapping.columns))], mapping.columns)
        key = self._dialect.joined_key([f"p.k{index}" for index in range(len(mapping.key))])
        number = self.range_of("p.k0", bounds)
        rows = mapping.select(conditions, for_digest=True)
        return f"SELECT {key} AS k, {number} AS range_number, {digest} AS digest FROM ({rows}) AS p"

    def _target_rows(self, record: StepRecord, bounds: tuple[str, ...]) -> str:
        """Return the query for key, range and digest of what the target holds."""
        digest = self._target_digest()
        key = self._sql.origin_key("o")
        known = f" WHERE NOT {self._sql.is_known(key)}" if self._excludes_existing(record) else ""
        return (
            f"SELECT {key} AS k, {self.range_of('o.o0', bounds)} AS range_number, o.digest "
            f"FROM ({self._sql.origins(further=[f'{digest} AS digest'])}) AS o{known}"
        )

    def range_of(self, key: SqlValue, bounds: tuple[str, ...]) -> SqlValue:
        """Return the number of the range that a key lies in; its first part, as text, is given."""
        return self._dialect.key_range(self._key, key, size=self._range_size, bounds=bounds)

    def _excludes_existing(self, record: StepRecord) -> bool:
        return self._trusts and self._copier.checks_existing(record)

    def is_rejected(self, key: SqlValue) -> SqlValue:
        """Return the condition that the row of this key is in the reject table."""
        return (
            f"EXISTS (SELECT 1 FROM {REJECTS_TABLE} r WHERE r.migration = {literal(self._owner.migration)} "
            f"AND r.revision = {self._owner.revision} AND r.step = {literal(self._name)} AND r.row_key = {key})"
        )

    async def _compare_rows(self, record: StepRecord, bounds: tuple[str, ...], number: Any) -> list[Difference]:
        source = await self._source_rows_of(record, bounds, number)
        target = await self._rows_of(self._target_rows(record, bounds), number)
        label = self._label(source, target, number)
        found = []
        for key in sorted(source.keys() | target.keys(), key=in_key_order):
            kind = _kind(source.get(key), target.get(key))
            if kind is not None:
                found.append(Difference(range=label, key=shown_key(key)[:256], kind=kind))
        return found[:_MOST_DIFFERENCES]

    async def _source_rows_of(self, record: StepRecord, bounds: tuple[str, ...], number: Any) -> Side:
        return await self._rows_of(self._source_rows(record, bounds), number, *self._bound(record))

    async def _rows_of(self, rows: str, number: Any, *parameters: str) -> Side:
        sums = ", ".join(self._dialect.digest_sums("d.digest"))
        here = "d.range_number IS NULL" if number is None else f"d.range_number = {int(number)}"
        query = f"SELECT d.k, count(*), {sums} FROM ({rows}) AS d WHERE {here} GROUP BY d.k"
        return {
            key: Digest(int(count), tuple(digest))
            for key, count, *digest in await self._session.rows(query, *parameters)
        }

    def _label(self, source: Side, target: Side, number: Any) -> str:
        if number is None:
            return _UNKNOWN
        keys = sorted(source.keys() | target.keys(), key=in_key_order)
        names = ", ".join(self._step.key)
        return f"{names} {shown_key(keys[0])}..{shown_key(keys[-1])}"[:1024] if keys else f"{names}: range {number}"


def _different(source: Side, target: Side) -> list[Any]:
    return sorted(
        (number for number in source.keys() | target.keys() if source.get(number) != target.get(number)),
        key=lambda number: (number is None, number),
    )


def in_key_order(key: str) -> tuple[bool, int, str]:
    """Sort integer keys by value and others by text."""
    digits = key.removeprefix("-").isdecimal()
    return (not digits, int(key) if digits else 0, key)


def _kind(source: Digest | None, target: Digest | None) -> Any:
    if source == target:
        return None
    if target is None:
        return "Missing"
    if source is None:
        return "Extra"
    return "Doubled" if target.rows > source.rows else "Changed"
