"""Repair of what a verification found: the rows of a range that differ are made again what the mapping says they are.

A range is repaired in one transaction. A lost row is inserted, a changed one is set to the mapped value where it stands
(so that what references it still does), of a doubled one the copy that is referenced or right stays. What the copy did
not write is never touched: rows that were there before, and rows whose source row is gone.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter

from shipkeeper.resources.migrationjob_status import Difference

from .addresses import Addresses
from .catalog import quoted_name
from .copying import shown_key
from .database import Session
from .dialect import identifier
from .errors import MigrationError, is_row_error, server_message
from .journal import Journal
from .ledger import StepRecord
from .preparation import Consolidation
from .references import any_points_at, references_to
from .verification import Verifier, in_key_order

_AT_ONCE: Final = 500
_MOST_SHOWN: Final = 10
_SHOWN: Final = TypeAdapter(tuple[Difference, ...])


@dataclass(frozen=True)
class _Copy:
    """A row of the target that came from a key."""

    key: str
    digest: Any
    table: str
    place: str
    referenced: bool

    @property
    def address(self) -> tuple[str, str, str]:
        return self.key, self.table, self.place


@dataclass
class _Damage:
    """What is to be done in a range."""

    missing: list[str]
    changed: list[_Copy]
    surplus: list[_Copy]
    found: list[tuple[str, Any]]


class Repairer:
    """Repairs the ranges of one consolidation that differ."""

    def __init__(
        self,
        session: Session,
        journal: Journal,
        ready: Consolidation,
        verifier: Verifier,
        *,
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        """`pause` is awaited before each range: it holds back, and raises Interrupted where a stop is asked for."""
        self._session = session
        self._journal = journal
        self._ready = ready
        self._verifier = verifier
        self._pause = pause
        self._sql = ready.statements
        self._addresses = Addresses(session.is_sqlite)

    async def repair(self, record: StepRecord) -> None:
        """Repair every range that differs.

        Raises MigrationError (RepairFailed, RowReferenced) where a range cannot be repaired; it is then as it was.
        """
        async with self._session.transaction():
            bounds, numbers = await self._verifier.different_ranges(record)
        for number in numbers:
            if number is None:
                continue  # Keys that are no keys of the source: nothing says what they should be.
            await self._pause()
            try:
                async with self._session.transaction():
                    await self._range(record, bounds, number)
            except Exception as error:
                if is_row_error(error):
                    raise MigrationError(
                        "RepairFailed",
                        f"step {self._ready.name}: a range cannot be repaired: {server_message(error)}",
                        retry="WhenMended",
                    ) from error
                raise

    async def _range(self, record: StepRecord, bounds: tuple[str, ...], number: int) -> None:
        source = await self._source(record, bounds, number)
        copies = await self._copies(record, bounds, number)
        damage = self._damage(source, copies)
        await self._insert(damage.missing)
        await self._update(damage.changed)
        await self._delete(damage.surplus)
        if damage.found:
            await self._note(damage.found, sorted({*source, *copies}, key=in_key_order))

    async def _source(self, record: StepRecord, bounds: tuple[str, ...], number: int) -> dict[str, Any]:
        """Return the digest of what each convertible row of the range should be."""
        mapping = self._sql.mapping
        conditions = [self._sql.up_to(1), self._sql.filter()]
        assert record.upper is not None  # noqa: S101 # A range differs, so there is one.
        digest = mapping.dialect.digest([f"p.c{index}" for index in range(len(mapping.columns))], mapping.columns)
        rows = (
            f"SELECT {self._sql.selected_key('p')} AS k, {digest} AS digest FROM ({mapping.select(conditions)}) AS p "
            f"WHERE p.reason IS NULL AND {self._verifier.range_of('p.k0', bounds)} = {int(number)}"
        )
        query = f"SELECT d.k, d.digest FROM ({rows}) AS d WHERE {self._is_ours(record, 'd.k')}"
        return dict(await self._session.rows(query, *record.upper))

    async def _copies(self, record: StepRecord, bounds: tuple[str, ...], number: int) -> dict[str, list[_Copy]]:
        """Return the target's rows of the range, by the key that they came from."""
        columns = self._sql.mapping.columns
        values = [f"t.{identifier(column.name)}" for column in columns]
        digest = self._sql.mapping.dialect.digest(values, columns)
        references = await references_to(self._session, self._ready.step.target)
        referenced = f"CASE WHEN {any_points_at(references, 't')} THEN 1 ELSE 0 END AS referenced"
        origins = self._sql.origins(further=[f"{digest} AS digest", *self._addresses.columns("t"), referenced])
        rows = (
            f"SELECT {self._sql.origin_key('o')} AS k, o.digest, o.tab, o.loc, o.referenced FROM ({origins}) AS o "
            f"WHERE {self._verifier.range_of('o.o0', bounds)} = {int(number)}"
        )
        query = (
            f"SELECT d.k, d.digest, CAST(d.tab AS text), CAST(d.loc AS text), d.referenced FROM ({rows}) AS d "
            f"WHERE {self._is_ours(record, 'd.k')} ORDER BY d.k, d.tab, d.loc"
        )
        copies: dict[str, list[_Copy]] = {}
        for key, content, table, place, is_referenced in await self._session.rows(query):
            copies.setdefault(key, []).append(_Copy(key, content, table, place, bool(is_referenced)))
        return copies

    def _is_ours(self, record: StepRecord, key: str) -> str:
        """Return the condition that the copy wrote, or had to write, the row of this key."""
        conditions = [f"NOT {self._verifier.is_rejected(key)}"] if record.rows_rejected else []
        if self._ready.copier.checks_existing(record):
            conditions.append(f"NOT {self._sql.is_known(key)}")
        return " AND ".join(conditions) or "1 = 1"

    def _damage(self, source: dict[str, Any], copies: dict[str, list[_Copy]]) -> _Damage:
        damage = _Damage([], [], [], [])
        for key in sorted(source, key=in_key_order):
            here = copies.get(key, [])
            if not here:
                damage.missing.append(key)
                damage.found.append((key, "Missing"))
                continue
            kept, *surplus = sorted(here, key=lambda copy: (not copy.referenced, copy.digest != source[key]))
            if any(copy.referenced for copy in surplus):
                raise MigrationError(
                    "RowReferenced",
                    f"step {self._ready.name}: key {shown_key(key)} stands more than once in "
                    f"{self._ready.step.target}, and other tables reference more than one of these rows: "
                    "let them reference one",
                    retry="WhenMended",
                    key=shown_key(key),
                )
            damage.surplus += surplus
            if kept.digest != source[key]:
                damage.changed.append(kept)
            if surplus or kept.digest != source[key]:
                damage.found.append((key, "Doubled" if surplus else "Changed"))
        return damage

    async def _insert(self, keys: Sequence[str]) -> None:
        for some in _portions(keys):
            condition, parameters = self._sql.key_among(some)
            await self._session.execute(self._sql.insert_where([condition, self._sql.filter()]), *parameters)

    async def _update(self, copies: Sequence[_Copy]) -> None:
        for some in _portions(copies):
            condition, parameters = self._sql.key_among([copy.key for copy in some])
            listed = self._addresses.listed(len(some), first_parameter=len(parameters) + 1)
            columns = self._sql.mapping.columns
            values = ", ".join(f"{identifier(column.name)} = p.c{index}" for index, column in enumerate(columns))
            rows = self._sql.mapping.select([condition, self._sql.filter()])
            await self._session.execute(
                f"WITH {listed} UPDATE {self._target} AS t SET {values} FROM ({rows}) AS p "
                f"JOIN w ON w.k = {self._sql.selected_key('p')} WHERE {self._addresses.is_at('t', 'w')}",
                *parameters,
                *(part for copy in some for part in copy.address),
            )

    async def _delete(self, copies: Sequence[_Copy]) -> None:
        for some in _portions(copies):
            listed = self._addresses.listed(len(some), first_parameter=1)
            await self._session.execute(
                f"WITH {listed} DELETE FROM {self._target} AS t "
                f"WHERE EXISTS (SELECT 1 FROM w WHERE {self._addresses.is_at('t', 'w')})",
                *(part for copy in some for part in copy.address),
            )

    @property
    def _target(self) -> str:
        return quoted_name(self._ready.step.target)

    async def _note(self, found: Sequence[tuple[str, Any]], keys: Sequence[str]) -> None:
        """Keep in the journal what was repaired, in the transaction of the repair."""
        if await self._journal.entry(self._ready.name, "Repair") is None:
            await self._journal.begin(self._ready.name, "Repair")
        action = await self._journal.entry(self._ready.name, "Repair")
        assert action is not None  # noqa: S101 # It was just entered.
        names = ", ".join(self._ready.step.key)
        label = f"{names} {shown_key(keys[0])}..{shown_key(keys[-1])}"[:1024]
        here = tuple(Difference(range=label, key=shown_key(key)[:256], kind=kind) for key, kind in found[:_MOST_SHOWN])
        shown = (*repaired_rows(action.details), *here)[:_MOST_SHOWN]
        details = json.dumps([each.to_wire() for each in shown])
        await self._journal.add(action, rows=len(found), details=details)


def repaired_rows(details: str | None) -> tuple[Difference, ...]:
    """Return the first of the rows that were repaired, from the journal's details."""
    return _SHOWN.validate_json(details) if details else ()


def _portions(items: Sequence[Any]) -> list[Any]:
    return [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
