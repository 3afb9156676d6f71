"""Crashes: the worker killed, the server restarted, the connection cut around COMMIT. Nothing lost or doubled."""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from support.birthday_data import expect, generate
from support.migration_databases import expected_multiset, migrate, sample_spec
from support.migration_process import killed_at_random, start_worker
from support.postgres_server import running_postgres

pytestmark = pytest.mark.integration

# 100 for the proof of the design's figure; enough here to hit every phase.
KILLS = int(os.environ.get("SHIPKEEPER_KILLS", "8"))
BATCH = {"initialSize": 200, "minSize": 200, "maxSize": 200}
STEP_START = "SELECT started_at FROM shipkeeper_migration_steps WHERE step = 'birthday-messages'"


async def exact(database: Any, legacy: Any) -> None:
    """Assert that the target is exactly what the oracle says."""
    [(start,)] = await database.rows(STEP_START)
    expected = expect(legacy)
    assert await database.interactions() == expected_multiset(expected, step_start=start)
    rejects = await database.rows("SELECT row_key FROM shipkeeper_migration_rejects")
    assert sorted(int(key) for (key,) in rejects) == sorted(expected.rejected)


async def test_sigkill_at_random_points(postgresql: Any, tmp_path: Path) -> None:
    legacy = generate(rows=4_000 * KILLS, seed=11)
    await postgresql.load(legacy)
    spec = sample_spec(batch=BATCH, rejects={"max": 1_000_000})
    kills = await killed_at_random(
        lambda: start_worker(postgresql.url, spec, tmp_path), times=KILLS, chance=random.Random(42), longest=1.6
    )
    assert kills > KILLS // 4
    phase, _ = await migrate(postgresql.url, spec)
    assert phase == "Complete"
    await exact(postgresql, legacy)
    await _assert_redone(postgresql, at_most=kills * 200 + _trials(kills))


def _trials(kills: int) -> int:
    """Rows of the trial batches of plans, which are rolled back on purpose: one each time before the work began."""
    return (kills + 1) * 200


async def _assert_redone(postgresql: Any, *, at_most: int) -> None:
    """PostgreSQL counts inserted rows of transactions that were rolled back too."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        [(inserted, there)] = await postgresql.rows(
            "SELECT (SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'interactions'), "
            "(SELECT count(*) FROM interactions)"
        )
        if inserted >= there:
            break
        await asyncio.sleep(0.2)  # The statistics of an ended session come in a moment later.
    assert inserted - there <= at_most


async def test_server_restarted_in_mid_copy() -> None:
    with running_postgres() as server:
        url = await server.create_database("app")
        database = await _loaded(server, seed=12)
        task = asyncio.create_task(migrate(url, sample_spec(batch=BATCH)))
        await _until_copied(database, rows=1_000)
        await database.connection.close()
        await asyncio.to_thread(server.restart)
        phase, _ = await task
        assert phase == "Complete"
        database.connection = await server.connect("app")
        await exact(database, generate(rows=8_000, seed=12))
        await database.connection.close()


async def _loaded(server: Any, *, seed: int) -> Any:
    from support.birthday_data import POSTGRESQL_SCHEMA
    from support.migration_databases import interactions_in_postgresql, load_postgresql

    class Database:
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        async def rows(self, sql: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in await self.connection.fetch(sql)]

        async def interactions(self) -> Any:
            return await interactions_in_postgresql(self.connection)

    database = Database(await server.connect("app"))
    await database.connection.execute(POSTGRESQL_SCHEMA)
    await load_postgresql(database.connection, generate(rows=8_000, seed=seed))
    return database


async def _until_copied(database: Any, *, rows: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        [(there,)] = await database.rows("SELECT count(*) FROM interactions")
        if there >= rows:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"fewer than {rows} rows were copied in a minute")


class CuttingProxy:
    """Stands between the worker and the server and cuts the connection at chosen COMMITs."""

    def __init__(self, port: int, *, cut: Literal["before", "after"], commits: frozenset[int]) -> None:
        self._port = port
        self._cut = cut
        self._commits = commits
        self._seen = 0
        self.cuts = 0

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        """Serve, and yield the port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        answers = asyncio.create_task(self._pump(server_reader, writer))
        try:
            while data := await reader.read(65536):
                if b"COMMIT" in data and self._is_due():
                    self.cuts += 1
                    answers.cancel()
                    if self._cut == "after":
                        server_writer.write(data)
                        await server_writer.drain()
                    break
                server_writer.write(data)
                await server_writer.drain()
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            server_writer.close()
            writer.close()

    def _is_due(self) -> bool:
        self._seen += 1
        return self._seen in self._commits

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_connection_cut_in_the_middle_of_commit(postgres: Any, postgresql: Any, cut: Any) -> None:
    legacy = generate(rows=20_000, seed=13)
    await postgresql.load(legacy)
    proxy = CuttingProxy(postgres.port, cut=cut, commits=frozenset(range(30, 900, 30)))
    async with proxy.serve() as port:
        url = postgresql.url.replace(f":{postgres.port}/", f":{port}/")
        phase, _ = await migrate(url, sample_spec(steps=sample_spec().to_wire()["steps"][1:], batch=BATCH))
    assert proxy.cuts > 3
    assert phase == "Complete"
    await exact(postgresql, legacy)


async def test_two_workers_at_once(postgresql: Any, tmp_path: Path) -> None:
    legacy = generate(rows=8_000, seed=14)
    await postgresql.load(legacy)
    spec = sample_spec(batch=BATCH)
    workers = [start_worker(postgresql.url, spec, tmp_path) for _ in range(2)]
    for worker in workers:
        out, errors = await asyncio.to_thread(worker.communicate, timeout=120)
        assert (worker.returncode, out.strip()) == (0, "Complete"), errors
    await exact(postgresql, legacy)


async def test_two_workers_at_once_on_sqlite(sqlite: Any, tmp_path: Path) -> None:
    legacy = generate(rows=3_000, seed=15)
    await sqlite.load(legacy)
    spec = sample_spec(batch=BATCH)
    workers = [start_worker(sqlite.url, spec, tmp_path) for _ in range(2)]
    for worker in workers:
        out, errors = await asyncio.to_thread(worker.communicate, timeout=120)
        assert (worker.returncode, out.strip()) == (0, "Complete"), errors
    assert sum((await sqlite.interactions()).values()) == len(expect(legacy).copied)


async def test_two_migrations_on_one_table(postgresql: Any) -> None:
    legacy = generate(rows=4_000, seed=16)
    await postgresql.load(legacy)
    spec = sample_spec(batch=BATCH)
    await asyncio.gather(migrate(postgresql.url, spec, name="a/one"), migrate(postgresql.url, spec, name="b/two"))
    assert sum((await postgresql.interactions()).values()) == len(expect(legacy).copied)


async def test_stop_finishes_the_batch_and_resumes(database: Any) -> None:
    legacy = generate(rows=3_000, seed=17)
    await database.load(legacy)
    stop = asyncio.Event()
    spec = sample_spec(batch=BATCH)
    asyncio.get_running_loop().call_later(0.3, stop.set)
    phase, report = await migrate(database.url, spec, stop=stop)
    assert phase == "Interrupted"
    assert report.progress.rows_copied < 3_000
    phase, _ = await migrate(database.url, spec)
    assert phase == "Complete"
    assert sum((await database.interactions()).values()) == len(expect(legacy).copied)
