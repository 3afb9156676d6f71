"""Fills a database with the legacy rows: `python -m birthday_app.legacy_data --rows 50000`, with DATABASE_URL.

The last line it prints is JSON: how many rows there are and what must become of them. All is written in one
transaction, and a database that has legacy rows is left as it is, so a second run only prints the line again.
"""

import argparse
import asyncio
import json
import os
import sys
from collections import Counter

from birthday_app.database import open_engine
from birthday_app.legacy_data.rows import MOST_ROWS, contacts_for, make_rows
from birthday_app.legacy_data.writer import write


def expected_counts(rows: int) -> dict[str, int]:
    """Return what must become of so many generated rows."""
    outcomes = Counter(row.outcome for row in make_rows(rows, contacts_for(rows)))
    return {"rows": rows, **{outcome: outcomes[outcome] for outcome in ("copied", "already", "rejected")}}


async def fill(url: str, *, rows: int) -> bool:
    """Write the rows; False where the database has legacy rows already."""
    engine = open_engine(url)
    try:
        return await write(engine, rows=rows)
    finally:
        await engine.dispose()


def main() -> None:
    """Read the arguments and DATABASE_URL, write, and print the expected outcome."""
    parser = argparse.ArgumentParser(description="Fill a database with the rows of an old install.")
    parser.add_argument("--rows", type=int, default=50_000, help=f"how many legacy rows (50000, at most {MOST_ROWS})")
    rows = parser.parse_args().rows
    url = os.environ.get("DATABASE_URL")
    if not url:
        sys.exit("DATABASE_URL is not set")
    if not 1 <= rows <= MOST_ROWS:
        sys.exit(f"--rows must be from 1 to {MOST_ROWS}")
    written = asyncio.run(fill(url, rows=rows))
    print(f"wrote {rows} legacy rows" if written else "legacy rows were there already")
    print(json.dumps(expected_counts(rows)))


if __name__ == "__main__":
    main()
