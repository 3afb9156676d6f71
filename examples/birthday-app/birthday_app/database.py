"""The connection to the database: one engine a process, whose errors never show a parameter or the URL."""

from typing import Any

from sqlalchemy import event, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

CONNECT_SECONDS = 5
COMMAND_SECONDS = 30

DATABASE_FAILURES = (SQLAlchemyError, OSError)
"""What a database that is down or slow raises: the driver's own connection errors are not wrapped by SQLAlchemy."""


def open_engine(url: str) -> AsyncEngine:
    """Return the engine for the URL; it connects when it is first used."""
    options: dict[str, Any] = {"hide_parameters": True}
    if make_url(url).get_backend_name() == "postgresql":
        options |= {
            "pool_pre_ping": True,
            "pool_timeout": CONNECT_SECONDS,
            "connect_args": {"timeout": CONNECT_SECONDS, "command_timeout": COMMAND_SECONDS},
        }
    engine = create_async_engine(url, **options)
    if engine.dialect.name == "sqlite":
        # SQLite checks foreign keys only where each connection asks for it.
        event.listen(
            engine.sync_engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON")
        )
    return engine


async def ping(engine: AsyncEngine) -> None:
    """Ask the database for a trivial answer.

    Raises one of DATABASE_FAILURES when it does not give it.
    """
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
