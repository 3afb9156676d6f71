"""A worker in a process of its own, so that a test can kill it: `python -m support.migration_process spec.json`.

The URL comes from DATABASE_URL, that of another source from SOURCE_DATABASE_URL. Prints the phase it ended in.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


async def killed_at_random(
    start: "Callable[[], subprocess.Popen[str]]", *, times: int, chance: random.Random, longest: float
) -> int:
    """Start a worker after another and kill each at a random moment, `longest` seconds after its start at the latest.

    Return how often one was killed: fewer times when one came to the end before. Raises AssertionError if it failed.
    """
    for kills in range(times):
        worker = start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Most of a second goes by before it connects; a copy takes about three.
            await asyncio.to_thread(worker.wait, chance.uniform(0.8, longest))
        if worker.poll() is not None:
            assert worker.returncode == 0, worker.communicate()[1]
            return kills
        worker.kill()
        worker.communicate()
    return times


async def killed_in_the_middle(
    database: Any, spec: MigrationJobSpec, folder: Path, *, progress: str, pause: float
) -> bool:
    """Start a worker and kill it `pause` seconds after the number that a query gives has grown.

    False: it was through before. Raises AssertionError if it failed by itself or nothing happened in a minute.
    """
    [(before,)] = await database.rows(progress)
    worker = start_worker(database.url, spec, folder)
    deadline = time.monotonic() + 60
    while worker.poll() is None:
        assert time.monotonic() < deadline, "nothing happened in a minute"
        [(now,)] = await database.rows(progress)
        if now > before:
            await asyncio.sleep(pause)
            break
        await asyncio.sleep(0.005)
    worker.kill()
    _, errors = worker.communicate()
    assert worker.returncode in (0, -signal.SIGKILL), errors
    return worker.returncode != 0


async def _run(spec: MigrationJobSpec) -> str:
    url = parse_url(os.environ["DATABASE_URL"])
    source = os.environ.get("SOURCE_DATABASE_URL")
    source_url = parse_url(source) if source is not None else None
    migration = Migration(spec, name=NAME, url=url, sink=Recorder(), stop=asyncio.Event(), source_url=source_url)
    return await migration.run()


if __name__ == "__main__":
    print(asyncio.run(_run(MigrationJobSpec.model_validate(json.loads(Path(sys.argv[1]).read_text())))))
