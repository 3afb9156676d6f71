"""Read contacts and interactions, page by page: by key, so that a page costs the same however deep it lies."""

from datetime import date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select

from birthday_app.api.keys import require_key
from birthday_app.models import Contact, Interaction
from birthday_app.services import ServicesOfRequest

router = APIRouter(tags=["records"], dependencies=[Depends(require_key)])

PageSize = Annotated[int, Query(ge=1, le=500, description="Rows of a page.")]
After = Annotated[int, Query(ge=0, description="The last id of the page before.")]


class ContactView(BaseModel):
    """A contact."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    profile_url: str
    headline: str | None
    location: str | None
    birth_date: date | None
    last_birthday_message_at: datetime | None
    status: str


class InteractionView(BaseModel):
    """Something that was done with a contact."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    contact_id: int
    type: str
    status: str
    payload: Any | None
    created_at: datetime


@router.get("/contacts")
async def contacts(
    services: ServicesOfRequest, after: After = 0, limit: PageSize = 50, status: str | None = None
) -> list[ContactView]:
    """Return contacts by ascending id, perhaps of one status only."""
    query = select(Contact).where(Contact.id > after).order_by(Contact.id).limit(limit)
    if status is not None:
        query = query.where(Contact.status == status)
    async with services.sessions() as session:
        return [ContactView.model_validate(contact) for contact in await session.scalars(query)]


@router.get("/interactions")
async def interactions(
    services: ServicesOfRequest,
    after: After = 0,
    limit: PageSize = 50,
    contact_id: int | None = None,
    type: str | None = None,
) -> list[InteractionView]:
    """Return interactions by ascending id, perhaps of one contact or one type only."""
    query = select(Interaction).where(Interaction.id > after).order_by(Interaction.id).limit(limit)
    if contact_id is not None:
        query = query.where(Interaction.contact_id == contact_id)
    if type is not None:
        query = query.where(Interaction.type == type)
    async with services.sessions() as session:
        return [InteractionView.model_validate(each) for each in await session.scalars(query)]
