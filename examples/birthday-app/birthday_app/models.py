"""The tables of version 2. Times are TIMESTAMP WITHOUT TIME ZONE and hold UTC, by convention of the whole application.

The five indexes that the application's queries need are not declared here: they were forgotten in the first releases of
version 2, and the MigrationJob of the sample builds them on the tables that are in service.
"""

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, func
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BIRTHDAY_SENT = "birthday_sent"
PROFILE_VISIT = "profile_visit"


def utc_now() -> datetime:
    """Return the current instant as the tables store it: UTC, naive."""
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    """The metadata of version 2."""


class Contact(Base):
    """A person who may get a message."""

    __tablename__ = "contacts"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    profile_url: Mapped[str] = mapped_column(unique=True)
    headline: Mapped[str | None]
    location: Mapped[str | None]
    open_to_work: Mapped[bool] = mapped_column(default=False)
    fit_score: Mapped[float] = mapped_column(default=0.0)
    skills: Mapped[Any | None] = mapped_column(JSON)
    work_history: Mapped[Any | None] = mapped_column(JSON)
    birth_date: Mapped[date | None]
    last_birthday_message_at: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(default="new")
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now)


class Interaction(Base):
    """Something done with a contact: a message sent, a profile visited."""

    __tablename__ = "interactions"

    id: Mapped[int] = mapped_column(primary_key=True)
    contact_id: Mapped[int] = mapped_column(ForeignKey("contacts.id"))
    type: Mapped[str]
    status: Mapped[str]
    payload: Mapped[Any | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=utc_now, server_default=func.now())


class LinkedinSelector(Base):
    """Where something stands on a profile's page."""

    __tablename__ = "linkedin_selectors"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    selector_value: Mapped[str]
    score: Mapped[int] = mapped_column(default=0)
    last_success_at: Mapped[datetime | None]


class Campaign(Base):
    """One run of a campaign; `config_snapshot` holds what was asked and what came of it."""

    __tablename__ = "campaigns"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    type: Mapped[str]
    status: Mapped[str]
    config_snapshot: Mapped[Any | None] = mapped_column(JSON)


async def create_tables(engine: AsyncEngine) -> None:
    """Create the tables that are missing."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
