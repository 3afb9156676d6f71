"""Start campaigns and see what came of them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, status
from pydantic import BaseModel, ConfigDict, Field

from birthday_app.api.keys import require_key
from birthday_app.campaigns import CampaignRunningError, Order, Work, recent
from birthday_app.models import Campaign
from birthday_app.sending import BirthdayMessages, ProfileVisits
from birthday_app.services import Services, ServicesOfRequest

router = APIRouter(prefix="/campaigns", tags=["campaigns"], dependencies=[Depends(require_key)])


class SourcingOrder(BaseModel):
    """How far a campaign may go."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=15, ge=1, le=1000, description="Contacts to try at most.")
    wait: bool = Field(
        default=True,
        description="True: sit out the pauses that the policy asks for, end at its first long limit. "
        "False: try every contact once, at once, and count the answers.",
    )


class BirthdayOrder(SourcingOrder):
    """How far a birthday campaign may go."""

    max_days_late: int = Field(
        default=0, ge=0, le=365, description="How many days after the birthday a message is still sent."
    )


class Started(BaseModel):
    """A campaign that was started."""

    id: int
    status: str = "running"


class CampaignView(BaseModel):
    """A campaign: what was asked and what has come of it so far."""

    id: int
    name: str
    type: str
    status: str
    order: dict[str, Any]
    result: dict[str, Any]
    started_at: str | None
    ended_at: str | None

    @classmethod
    def of(cls, campaign: Campaign) -> "CampaignView":
        """Read it from its row. Rows of other releases may lack parts of the snapshot."""
        snapshot = campaign.config_snapshot or {}
        return cls(
            id=campaign.id,
            name=campaign.name,
            type=campaign.type,
            status=campaign.status,
            order=snapshot.get("order", {}),
            result=snapshot.get("result", {}),
            started_at=snapshot.get("started_at"),
            ended_at=snapshot.get("ended_at"),
        )


class CampaignsStatus(BaseModel):
    """The newest campaigns of all replicas."""

    running: bool
    campaigns: list[CampaignView]


async def _start(services: Services, work: Work, order: Order) -> Started:
    try:
        return Started(id=await services.campaigns.start(work, order))
    except CampaignRunningError:
        raise HTTPException(status.HTTP_409_CONFLICT, "a campaign is running; see /campaigns/status") from None


@router.post("/birthday", status_code=status.HTTP_202_ACCEPTED)
async def start_birthday(services: ServicesOfRequest, order: BirthdayOrder | None = None) -> Started:
    """Congratulate those whose birthday it is."""
    wanted = Order(**(order or BirthdayOrder()).model_dump())
    return await _start(services, BirthdayMessages(services.sender), wanted)


@router.post("/sourcing", status_code=status.HTTP_202_ACCEPTED)
async def start_sourcing(services: ServicesOfRequest, order: SourcingOrder | None = None) -> Started:
    """Visit the profiles of new contacts."""
    return await _start(services, ProfileVisits(), Order(**(order or SourcingOrder()).model_dump()))


@router.get("/status")
async def campaigns_status(
    services: ServicesOfRequest, limit: Annotated[int, Query(ge=1, le=100)] = 10
) -> CampaignsStatus:
    """Return the newest campaigns and whether one runs."""
    async with services.sessions() as session:
        views = [CampaignView.of(campaign) for campaign in await recent(session, limit=limit)]
    return CampaignsStatus(running=any(view.status == "running" for view in views), campaigns=views)
