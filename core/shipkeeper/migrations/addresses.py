"""Where a row of a target table stands, for statements that change exactly that row and no other that looks like it."""

from dataclasses import dataclass

from .dialect import SqlValue


@dataclass(frozen=True)
class Addresses:
    """Addresses of rows: table and ctid on PostgreSQL (partitions have ctids of their own), the rowid on SQLite.

    An address holds within a transaction. In a later one the row may have moved, which its content then tells.
    """

    is_sqlite: bool

    def columns(self, alias: str) -> list[SqlValue]:
        """Return a row's address as two columns, `tab` and `loc`."""
        if self.is_sqlite:
            return ["0 AS tab", f"{alias}.rowid AS loc"]
        return [f"CAST({alias}.tableoid AS bigint) AS tab", f"{alias}.ctid AS loc"]

    def is_at(self, alias: str, address: str) -> SqlValue:
        """Return the condition that a row stands at the address that another relation's columns hold."""
        if self.is_sqlite:
            return f"{alias}.rowid = {address}.loc"
        return f"{alias}.ctid = {address}.loc AND CAST({alias}.tableoid AS bigint) = {address}.tab"

    def is_among(self, alias: str, places: str) -> SqlValue:
        """Return the condition that a row's `loc` is one that a query gives; it lets the database go straight there."""
        if self.is_sqlite:
            return f"{alias}.rowid IN ({places})"
        return f"{alias}.ctid = ANY (ARRAY({places}))"

    def listed(self, count: int, *, first_parameter: int) -> str:
        """Return the common table expression `w` (k, tab, loc) of so many addresses, three parameters (texts) each."""
        rows = []
        for index in range(first_parameter, first_parameter + 3 * count, 3):
            if self.is_sqlite:
                rows.append(f"(?{index}, CAST(?{index + 1} AS INTEGER), CAST(?{index + 2} AS INTEGER))")
            else:
                table, place = f"CAST(${index + 1} AS text)", f"CAST(${index + 2} AS text)"
                rows.append(f"(CAST(${index} AS text), CAST({table} AS bigint), CAST({place} AS tid))")
        return f"w (k, tab, loc) AS (VALUES {', '.join(rows)})"
