"""`shipkeeper migrate` as a person runs it: a process of its own, its exit code and what it prints."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.birthday_data import generate
from support.migration_databases import SAMPLE

pytestmark = pytest.mark.integration


async def shipkeeper(*arguments: str, url: str | None) -> "subprocess.CompletedProcess[str]":
    """Run the program."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment |= {"COLUMNS": "200"} | ({"DATABASE_URL": url} if url is not None else {})
    program = "from shipkeeper.migrations.command import run; run()"
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


async def test_plan_run_status_verify(database: Any) -> None:
    await database.load(generate(rows=300, seed=31, odd=0))

    plan = await shipkeeper("migrate", "plan", "-f", str(SAMPLE), url=database.url)
    assert plan.returncode == 0, plan.stderr
    assert "CREATE INDEX" in plan.stdout
    assert 'INSERT INTO "interactions"' in plan.stdout
    assert "rows 300" in plan.stdout
    assert sum((await database.interactions()).values()) == 0
    assert await database.rows(_LEDGER[database.url.startswith("sqlite")]) == [(0,)]

    before = await shipkeeper("migrate", "status", "-f", str(SAMPLE), url=database.url)
    assert "Pending" in before.stdout

    run = await shipkeeper("migrate", "run", "-f", str(SAMPLE), url=database.url)
    assert run.returncode == 0, run.stderr
    assert "Complete" in run.stdout
    assert sum((await database.interactions()).values()) == 300

    status = await shipkeeper("migrate", "status", "-f", str(SAMPLE), url=database.url)
    assert "Complete" in status.stdout
    assert "Equal" in status.stdout

    assert (await shipkeeper("migrate", "verify", "-f", str(SAMPLE), url=database.url)).returncode == 0
    await database.execute("UPDATE interactions SET status = 'lost' WHERE id = (SELECT max(id) FROM interactions)")
    verify = await shipkeeper("migrate", "verify", "-f", str(SAMPLE), url=database.url)
    assert verify.returncode == 65
    assert "VerificationFailed" in verify.stderr


_LEDGER = {
    True: "SELECT count(*) FROM sqlite_master WHERE name LIKE 'shipkeeper%'",
    False: "SELECT count(*) FROM pg_class WHERE relname LIKE 'shipkeeper%'",
}


async def test_bad_input_is_named(tmp_path: Path, postgres: Any) -> None:
    missing = await shipkeeper("migrate", "run", "-f", str(SAMPLE), url=None)
    assert (missing.returncode, "DATABASE_URL" in missing.stderr) == (65, True)

    document = yaml.safe_load(SAMPLE.read_text())
    del document["spec"]["steps"][1]["consolidate"]["key"]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(document))
    answer = await shipkeeper("migrate", "run", "-f", str(wrong), url=postgres.url())
    assert answer.returncode == 65
    assert "consolidate.key" in answer.stderr.replace("\n", "")

    absent = await shipkeeper("migrate", "run", "-f", str(tmp_path / "absent.yaml"), url=postgres.url())
    assert absent.returncode == 65


async def test_no_secret_is_shown(postgres: Any) -> None:
    url = postgres.url().replace("correct", "wrong")
    answer = await shipkeeper("migrate", "run", "-f", str(SAMPLE), url=url)
    assert answer.returncode == 65
    assert "DatabaseAuthFailed" in answer.stderr
    assert "battery" not in answer.stderr + answer.stdout
    assert "staple" not in answer.stderr + answer.stdout


async def test_rollback_and_repair_say_what_they_did(database: Any, tmp_path: Path) -> None:
    await database.load(generate(rows=30, seed=33, odd=0))
    assert (await shipkeeper("migrate", "run", "-f", str(SAMPLE), url=database.url)).returncode == 0
    await database.execute("DELETE FROM interactions WHERE id = (SELECT max(id) FROM interactions)")
    assert (await shipkeeper("migrate", "verify", "-f", str(SAMPLE), url=database.url)).returncode == 65

    repair = _changed(tmp_path, verification={"rangeSize": 5000, "repair": True})
    run = await shipkeeper("migrate", "run", "-f", repair, url=database.url)
    assert run.returncode == 0, run.stderr
    assert "repaired birthday-messages" in run.stdout
    assert sum((await database.interactions()).values()) == 30

    rollback = _changed(tmp_path, rollback=True)
    plan = await shipkeeper("migrate", "plan", "-f", rollback, url=database.url)
    assert "[DESTRUCTIVE]" in plan.stdout
    run = await shipkeeper("migrate", "run", "-f", rollback, url=database.url)
    assert run.returncode == 0, run.stderr
    assert "RolledBack" in run.stdout
    assert "removed birthday-messages: 30 rows" in run.stdout
    assert sum((await database.interactions()).values()) == 0


def _changed(folder: Path, **spec: Any) -> str:
    """Write the sample with fields of its spec replaced, and return the file's path."""
    manifest = yaml.safe_load(SAMPLE.read_text())
    manifest["spec"] |= spec
    file = folder / "changed.yaml"
    file.write_text(yaml.safe_dump(manifest))
    return str(file)


async def test_the_url_of_another_source_is_asked_for(tmp_path: Path, postgres: Any) -> None:
    document = yaml.safe_load(SAMPLE.read_text())
    document["spec"]["source"] = {"urlFrom": {"name": "old", "key": "url"}}
    file = tmp_path / "source.yaml"
    file.write_text(yaml.safe_dump(document))
    answer = await shipkeeper("migrate", "run", "-f", str(file), url=postgres.url())
    assert answer.returncode == 65
    assert "SOURCE_DATABASE_URL" in answer.stderr
