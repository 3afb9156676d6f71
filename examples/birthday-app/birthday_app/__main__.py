"""Runs the application: `python -m birthday_app` (or `birthday-app`). `--create-tables` prepares an empty database."""

import argparse
import asyncio
import os
import sys

from birthday_app.database import open_engine
from birthday_app.logs import configure
from birthday_app.models import create_tables
from birthday_app.server import serve
from birthday_app.services import Services
from birthday_app.settings import Settings, SettingsError


def main() -> None:
    """Read the environment and serve until SIGTERM or SIGINT; wrong settings end with status 2."""
    parser = argparse.ArgumentParser(description="Birthday messages, under quotas.")
    parser.add_argument("--create-tables", action="store_true", help="create the tables that are missing, and end")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    arguments = parser.parse_args()
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        print(f"birthday-app: {error}", file=sys.stderr)
        sys.exit(2)
    configure(settings.log_level)
    if arguments.create_tables:
        asyncio.run(_create_tables(settings.database_url))
    else:
        asyncio.run(serve(Services(settings), port=arguments.port))


async def _create_tables(url: str) -> None:
    engine = open_engine(url)
    try:
        await create_tables(engine)
    finally:
        await engine.dispose()


if __name__ == "__main__":
    main()
