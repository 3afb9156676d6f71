"""A worker in a process of its own, so that a test can kill it: `python -m support.migration_process spec.json`.

The URL comes from DATABASE_URL. Prints the phase it ended in.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.resources.migrationjob import MigrationJobSpec
from support.migration_databases import NAME, Recorder


async def _run(spec: MigrationJobSpec) -> str:
    url = parse_url(os.environ["DATABASE_URL"])
    return await Migration(spec, name=NAME, url=url, sink=Recorder(), stop=asyncio.Event()).run()


if __name__ == "__main__":
    print(asyncio.run(_run(MigrationJobSpec.model_validate(json.loads(Path(sys.argv[1]).read_text())))))
