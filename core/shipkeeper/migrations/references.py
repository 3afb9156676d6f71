"""Foreign keys that point at a table: what would be left pointing at nothing if its rows, or the table itself, went."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .catalog import quoted_name
from .database import Session
from .dialect import SqlValue, identifier

_POSTGRESQL: Final = """
SELECT c.oid::bigint, c.conrelid::regclass::text, child.attname, parent.attname,
       c.conrelid = c.confrelid
FROM pg_constraint c
CROSS JOIN LATERAL unnest(c.conkey, c.confkey) WITH ORDINALITY AS k(child, parent, n)
JOIN pg_attribute child ON child.attrelid = c.conrelid AND child.attnum = k.child
JOIN pg_attribute parent ON parent.attrelid = c.confrelid AND parent.attnum = k.parent
WHERE c.contype = 'f' AND c.confrelid = to_regclass($1) AND c.conparentid = 0
ORDER BY c.oid, k.n
"""


@dataclass(frozen=True)
class Reference:
    """A foreign key of another table."""

    table: str
    """The table that has it, as SQL writes its name."""
    columns: tuple[str, ...]
    parents: tuple[str, ...]
    """The columns that are referenced."""
    is_own: bool = False
    """Whether it is the table itself that has it."""

    def points_at(self, alias: str) -> SqlValue:
        """Return the condition that a row of the other table references the row."""
        pairs = zip(self.columns, self.parents, strict=True)
        equal = " AND ".join(f"child.{identifier(own)} = {alias}.{identifier(parent)}" for own, parent in pairs)
        return f"EXISTS (SELECT 1 FROM {self.table} AS child WHERE {equal})"

    def __str__(self) -> str:
        return f"{self.table} ({', '.join(self.columns)})"


async def references_to(session: Session, table: str) -> tuple[Reference, ...]:
    """Return the foreign keys that point at a table, whatever they do when a row goes."""
    return await (_sqlite(session, table) if session.is_sqlite else _postgresql(session, table))


def any_points_at(references: Sequence[Reference], alias: str) -> SqlValue:
    """Return the condition that any of the foreign keys references the row."""
    return " OR ".join(reference.points_at(alias) for reference in references) or "1 = 0"


async def _postgresql(session: Session, table: str) -> tuple[Reference, ...]:
    found: dict[int, Reference] = {}
    for oid, child, column, parent, is_own in await session.rows(_POSTGRESQL, quoted_name(table)):
        before = found.get(oid, Reference(child, (), ()))
        found[oid] = Reference(child, (*before.columns, column), (*before.parents, parent), is_own)
    return tuple(found.values())


async def _sqlite(session: Session, table: str) -> tuple[Reference, ...]:
    keys = await session.rows(f"PRAGMA table_info({quoted_name(table)})")
    primary = [row[1] for row in sorted((row for row in keys if row[5]), key=lambda row: row[5])]
    found: dict[tuple[str, int], Reference] = {}
    for (child,) in await session.rows("SELECT name FROM sqlite_master WHERE type = 'table'"):
        rows = await session.rows(f"PRAGMA foreign_key_list({identifier(child)})")
        for number, position, parent_table, column, parent, *_ in sorted(rows):
            if parent_table.lower() != table.lower():
                continue
            key = (child, number)
            before = found.get(key, Reference(identifier(child), (), ()))
            target = parent if parent is not None else primary[position]
            columns, parents = (*before.columns, column), (*before.parents, target)
            found[key] = Reference(identifier(child), columns, parents, child.lower() == table.lower())
    return tuple(found.values())
