"""Which kind of source a URL names."""

from .database import DatabaseUrl
from .source import Source
from .source_postgresql import PostgresqlSource
from .source_sqlite import SqliteSource


def source_of(url: DatabaseUrl, *, name: str) -> Source:
    """Return the source, not yet opened; `name` is the application name that its server's operators see."""
    return SqliteSource(url) if url.is_sqlite else PostgresqlSource(url, name=name)
