"""The two types of campaign: birthday messages and profile visits, each recorded as an interaction."""

import logging
from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from birthday_app import messages
from birthday_app.campaigns import CampaignType, Order
from birthday_app.models import BIRTHDAY_SENT, PROFILE_VISIT, Contact, Interaction, utc_now

log = logging.getLogger(__name__)


class SendError(Exception):
    """The message was not delivered."""


class Sender(Protocol):
    """Delivers a message to a contact."""

    name: str
    """Written into the record of each message."""

    async def send(self, contact: Contact, text: str) -> None:
        """Deliver it.

        Raises SendError where it was not delivered.
        """


class DryRunSender:
    """Delivers nothing: the record in the database is all that a message leaves."""

    name = "dry-run"

    async def send(self, contact: Contact, text: str) -> None:
        """Say that a message would be sent; its text stays out of the log."""
        log.info("message sent", extra={"contact": contact.id, "sender": self.name, "characters": len(text)})


class BirthdayMessages:
    """Congratulates those whose birthday it is."""

    type: CampaignType = "birthday"

    def __init__(self, sender: Sender) -> None:
        """Take what delivers the messages."""
        self._sender = sender

    async def contacts(self, session: AsyncSession, order: Order) -> Sequence[Contact]:
        """Return those who are due, the punctual ones first."""
        return await messages.due(session, on=messages.today(), max_days_late=order.max_days_late, limit=order.limit)

    async def act(self, session: AsyncSession, contact: Contact) -> bool:
        """Send one message and record it, delivered or not."""
        on = messages.today()
        days_late = messages.days_late(contact.birth_date or on, on=on)
        text = messages.compose(contact, days_late=days_late)
        delivered = True
        try:
            await self._sender.send(contact, text)
            contact.last_birthday_message_at = utc_now()
        except SendError:
            log.warning("message not delivered", extra={"contact": contact.id, "sender": self._sender.name})
            delivered = False
        payload = {
            "message_text": text,
            "contact_name": contact.name,
            "is_late": days_late > 0,
            "days_late": days_late,
            "sender": self._sender.name,
        }
        status = "success" if delivered else "failed"
        session.add(Interaction(contact_id=contact.id, type=BIRTHDAY_SENT, status=status, payload=payload))
        return delivered


class ProfileVisits:
    """Looks at the profiles of new contacts."""

    type: CampaignType = "sourcing"

    async def contacts(self, session: AsyncSession, order: Order) -> Sequence[Contact]:
        """Return the contacts that nobody has looked at, the most promising first."""
        query = select(Contact).where(Contact.status == "new").order_by(Contact.fit_score.desc(), Contact.id)
        return list(await session.scalars(query.limit(order.limit)))

    async def act(self, session: AsyncSession, contact: Contact) -> bool:
        """Record a visit and that the contact is no longer new."""
        contact.status = "visited"
        payload = {"profile_url": contact.profile_url}
        session.add(Interaction(contact_id=contact.id, type=PROFILE_VISIT, status="success", payload=payload))
        return True
