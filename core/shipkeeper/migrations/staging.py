"""A consolidation whose source is another database: the local one's statements, over the rows that were brought over.

The temporary table holds exactly the range that is at hand, as the source's own order has it, so the statements need no
conditions on the key: two databases need not agree on how text is sorted.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from shipkeeper.resources.migrationsteps import Consolidate

from .copying import Copier, CopyStatements
from .database import Session
from .dialect import SqlValue, identifier
from .ledger import Key, Ledger, StepRecord
from .mapping import SOURCE, CompiledMapping
from .source import MISFIT_COLUMN, SourceTable, StagedRange
from .verification import Digest, Side, Verifier

# Rows that verification brings over at once.
_CHUNK_ROWS: Final = 20_000
_LONGEST_REASON: Final = 1_000


@dataclass(frozen=True, kw_only=True)
class StagedMapping(CompiledMapping):
    """A mapping of staged rows, some of which hold a value that their column cannot."""

    def _reason(self) -> SqlValue:
        return f"coalesce(left(q.misfit, {_LONGEST_REASON}), {super()._reason()})"


def staged_mapping(mapping: CompiledMapping) -> CompiledMapping:
    """Return the mapping so that a value which does not fit its column rejects its row."""
    if MISFIT_COLUMN not in mapping.source.columns:
        return mapping
    return StagedMapping(
        dialect=mapping.dialect,
        source=mapping.source,
        target=mapping.target,
        key=mapping.key,
        columns=mapping.columns,
        outputs=mapping.outputs,
        digested=mapping.digested,
        inner=(*mapping.inner, ("misfit", _misfit())),
        joins=mapping.joins,
        problems=mapping.problems,
        snapshots=mapping.snapshots,
    )


def _misfit() -> SqlValue:
    return f"{SOURCE}.{identifier(MISFIT_COLUMN)}"


class StagedStatements(CopyStatements):
    """The SQL of a consolidation over staged rows."""

    def filter(self) -> SqlValue:
        """Return the condition that a source row is to be copied.

        Where a value that does not fit leaves it unknown, the row counts as wanted, so that it is rejected by name.
        """
        condition = super().filter()
        if self._step.filter is None or MISFIT_COLUMN not in self.mapping.source.columns:
            return condition
        return f"coalesce({condition}, {_misfit()} IS NOT NULL)"

    def _compare(self, operator: str, first: int) -> SqlValue:
        # Always true; that the parameter stands in it gives it a type.
        bound = [f"{self._dialect.parameter(first + index)} IS NOT NULL" for index in range(len(self.mapping.key))]
        return " AND ".join(bound)

    def wanted(self) -> str:
        """Return the query for the number of staged rows that are to be copied."""
        return f"SELECT count(*) FROM {self.mapping.source.relation} AS source WHERE {self.filter()}"


class StagedRows:
    """The rows of a source table, range by range in the temporary table."""

    def __init__(self, session: Session, table: SourceTable) -> None:
        self._session = session
        self.table = table

    async def chunks(self, upper: Key) -> AsyncIterator[tuple[Key | None, StagedRange]]:
        """Stage range after range, and yield each with the key before it while it is there."""
        after: Key | None = None
        while (found := await self.stage(after, upper, _CHUNK_ROWS)) is not None:
            yield after, found
            await self.clear()
            after = found.last

    async def stage(self, after: Key | None, upper: Key, size: int) -> StagedRange | None:
        """Stage one range, in the running transaction."""
        return await self.table.stage(self._session, after=after, upper=upper, size=size)

    async def clear(self) -> None:
        """Empty the temporary table before the transaction's end does."""
        await self._session.execute(f"TRUNCATE {self.table.staged.relation}")


class StagedCopier(Copier):
    """Copies a table of another database, batch by batch."""

    def __init__(
        self,
        session: Session,
        ledger: Ledger,
        *,
        name: str,
        step: Consolidate,
        statements: StagedStatements,
        rows: StagedRows,
    ) -> None:
        super().__init__(session, ledger, name=name, step=step, statements=statements)
        self._staged_sql = statements
        self._rows = rows

    async def _last_key(self) -> Key | None:
        return await self._rows.table.last_key()

    async def _total(self, upper: Key | None) -> int:
        if upper is None:
            return 0
        if self._step.filter is None:
            return await self._rows.table.count(upper)
        total = 0
        async for _ in self._rows.chunks(upper):
            total += int(await self._session.scalar(self._staged_sql.wanted()))
        return total

    async def _next_range(self, record: StepRecord, *, size: int) -> Any:
        assert record.upper is not None  # noqa: S101 # The callers looked.
        found = await self._rows.stage(record.cursor, record.upper, size)
        if found is None:
            return None
        wanted = found.rows
        if self._step.filter is not None:
            wanted = int(await self._session.scalar(self._staged_sql.wanted()))
        return (*found.last, found.rows, wanted)


class StagedVerifier(Verifier):
    """Compares a table of another database: its rows are brought over once more, and reduced to the same digests."""

    def __init__(self, session: Session, *, rows: StagedRows, **further: Any) -> None:
        super().__init__(session, **further)
        self._rows = rows
        self._chunks_of: dict[Any, list[tuple[Key | None, StagedRange]]] = {}

    async def _bounds(self, record: StepRecord) -> tuple[str, ...]:
        assert record.upper is not None  # noqa: S101 # The caller looked.
        if self._key.family == "integer":
            return ()
        found = await self._rows.table.every(self._range_size, upper=record.upper)
        # In the target's order, which is the one that ranges are told apart by.
        in_order = f"SELECT k.k FROM unnest(CAST($1 AS text[])) AS k(k) ORDER BY CAST(k.k AS {self._key.type})"
        return tuple(key for (key,) in await self._session.rows(in_order, list(found)))

    async def _source(self, record: StepRecord, bounds: tuple[str, ...]) -> Side:
        assert record.upper is not None  # noqa: S101 # The caller looked.
        merged: dict[Any, Digest] = {}
        self._chunks_of = {}
        async for after, chunk in self._rows.chunks(record.upper):
            part = await super()._source(record, bounds)
            for number, digest in part.items():
                merged[number] = _sum(merged.get(number), digest)
                self._chunks_of.setdefault(number, []).append((after, chunk))
        return merged

    async def _source_rows_of(self, record: StepRecord, bounds: tuple[str, ...], number: Any) -> Side:
        assert record.upper is not None  # noqa: S101 # The caller looked.
        found: dict[Any, Digest] = {}
        for after, chunk in self._chunks_of.get(number, ()):
            await self._rows.stage(after, record.upper, chunk.rows)
            found.update(await super()._source_rows_of(record, bounds, number))
            await self._rows.clear()
        return found


def _sum(one: Digest | None, other: Digest) -> Digest:
    if one is None:
        return other
    sums = tuple(str(int(a) + int(b)) for a, b in zip(one.sums, other.sums, strict=True))
    return Digest(one.rows + other.rows, sums)
