"""What came of it, counted in the database by questions of our own and held against what the resources claim."""

from dataclasses import dataclass
from typing import Any

from demo.kubectl import Kubectl
from demo.legacy import Expected
from demo.servers import query

# One row: legacy rows, copies, rejects, rows that are in neither, rows copied twice, copies whose text differs.
_COUNTS = """
WITH copies AS (
  SELECT (payload->>'original_id')::bigint AS original_id, payload->>'message_text' AS message_text
  FROM interactions WHERE payload->>'migrated_from' = 'birthday_messages'
), rejects AS (
  SELECT row_key FROM shipkeeper_migration_rejects
)
SELECT
  (SELECT count(*) FROM birthday_messages),
  (SELECT count(*) FROM copies),
  (SELECT count(*) FROM rejects),
  (SELECT count(*) FROM birthday_messages m
    WHERE NOT EXISTS (SELECT 1 FROM copies c WHERE c.original_id = m.id)
      AND NOT EXISTS (SELECT 1 FROM rejects r WHERE r.row_key = m.id::text)),
  (SELECT count(*) FROM (SELECT 1 FROM copies GROUP BY original_id HAVING count(*) > 1) doubled),
  (SELECT count(*) FROM birthday_messages m JOIN copies c ON c.original_id = m.id
    WHERE c.message_text IS DISTINCT FROM m.message_text);
"""

_INDEXES = """
SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relname IN ('idx_contact_birth_date', 'idx_contact_status', 'idx_contact_created_at',
                    'idx_interaction_contact_type', 'idx_selector_success');
"""


@dataclass(frozen=True)
class Counts:
    """The rows as they stand in the database."""

    legacy: int
    copies: int
    rejects: int
    lost: int
    doubled: int
    different: int


def count(kubectl: Kubectl, *, namespace: str) -> Counts:
    """Count the rows in the database itself."""
    (row,) = query(kubectl, _COUNTS, namespace=namespace)
    return Counts(*(int(number) for number in row))


def valid_indexes(kubectl: Kubectl, *, namespace: str) -> int:
    """Return how many of the sample's five indexes exist and are valid."""
    return sum(valid == "t" for _, valid in query(kubectl, _INDEXES, namespace=namespace))


@dataclass(frozen=True)
class Claim:
    """One figure that two independent sources must agree on."""

    what: str
    status: int
    independent: int

    @property
    def holds(self) -> bool:
        """Whether both say the same."""
        return self.status == self.independent


def claims(migration: dict[str, Any], counts: Counts, expected: Expected) -> list[Claim]:
    """Hold what the migration's status says against the database and against the generator's own reckoning."""
    progress = migration["status"]["progress"]
    copied, existing = progress.get("rowsCopied", 0), progress.get("rowsExisting", 0)
    rejected = progress.get("rowsRejected", 0)
    return [
        Claim("legacy rows / counted in the database", progress["rowsTotal"], counts.legacy),
        Claim("copied / expected by the generator", copied, expected.copied),
        Claim("already there / expected by the generator", existing, expected.already),
        Claim("rejected / expected by the generator", rejected, expected.rejected),
        Claim("copied + already there / counted in the database", copied + existing, counts.copies),
        Claim("rejected / counted in the reject table", rejected, counts.rejects),
        Claim("lost rows", 0, counts.lost),
        Claim("doubled rows", 0, counts.doubled),
        Claim("copies whose text differs", 0, counts.different),
    ]


def table(rows: list[Claim]) -> str:
    """Return the claims as lines for a person."""
    width = max(len(row.what) for row in rows)
    return "\n".join(
        f"    {row.what:<{width}}  {row.status:>7} / {row.independent:>7}  {'ok' if row.holds else 'DIFFERS'}"
        for row in rows
    )


def verification(migration: dict[str, Any]) -> str:
    """Return what the migration's own comparison by content says."""
    found = [step["verification"] for step in migration["status"].get("steps", []) if "verification" in step]
    return "; ".join(f"{each['result']}: {each['rows']} rows in {each['ranges']} key ranges" for each in found)
