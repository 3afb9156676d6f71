"""A worker in a process of its own, so that a test can kill it: `python -m support.migration_process spec.json`.

The URL comes from DATABASE_URL. Prints the phase it ended in.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.resources.migrationjob import MigrationJobSpec
from support.migration_databases import NAME, Recorder

_TESTS = Path(__file__).parents[1]


def start_worker(url: str, spec: MigrationJobSpec, folder: Path) -> "subprocess.Popen[str]":
    """Start a worker in a process of its own; `folder` takes its spec."""
    file = folder / "spec.json"
    file.write_text(json.dumps(spec.to_wire()))
    paths = [str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"DATABASE_URL": url, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "support.migration_process", str(file)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def _run(spec: MigrationJobSpec) -> str:
    url = parse_url(os.environ["DATABASE_URL"])
    return await Migration(spec, name=NAME, url=url, sink=Recorder(), stop=asyncio.Event()).run()


if __name__ == "__main__":
    print(asyncio.run(_run(MigrationJobSpec.model_validate(json.loads(Path(sys.argv[1]).read_text())))))
