"""Runs one campaign at a time: asks the rate limit policy before each contact, acts, and writes down what came of it.

The policy is the only judge of what may be sent: it counts over all replicas and all campaigns, in Redis. A campaign
that may wait sits out short pauses (the spacing, an open circuit) and ends at a limit whose window is long; one that
may not wait tries every contact once, so that its result says what the policy answered each time.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from birthday_app.campaign_lock import CampaignLock
from birthday_app.database import DATABASE_FAILURES
from birthday_app.metrics import BREAKER_STATES, Metrics
from birthday_app.models import Campaign, Contact, utc_now
from shipkeeper.limits import AsyncLimiter, Verdict

CampaignType = Literal["birthday", "sourcing"]

# Longer than the spacing and the circuit's open time, shorter than any quota's window.
LONGEST_PAUSE = timedelta(minutes=10)

log = logging.getLogger(__name__)


class CampaignRunningError(Exception):
    """A campaign runs already, in this process or in another replica."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the caller asked for."""

    limit: int
    """Contacts to try at most."""
    wait: bool
    """Whether to sit out short pauses, or to try every contact once, at once."""
    max_days_late: int = 0
    """How many days after the birthday a message is still sent."""


@dataclass
class Refusals:
    """How often one rule of the policy said no, and until when."""

    reason: str
    count: int = 0
    retry_after_seconds: float | None = None
    retry_at: str | None = None


@dataclass
class Result:
    """What has come of a campaign so far."""

    tried: int = 0
    done: int = 0
    failed: int = 0
    refused: dict[str, Refusals] = field(default_factory=dict)
    ended_because: str = ""

    def refuse(self, verdict: Verdict) -> None:
        """Count a refusal under the rule that bound."""
        refusals = self.refused.setdefault(verdict.rule, Refusals(verdict.reason))
        refusals.count += 1
        refusals.retry_after_seconds = verdict.retry_after.total_seconds() if verdict.retry_after else None
        refusals.retry_at = verdict.retry_at.isoformat(timespec="seconds") if verdict.retry_at else None


class Work(Protocol):
    """What a type of campaign does: whom it is for, and one contact's part of it."""

    type: CampaignType

    async def contacts(self, session: AsyncSession, order: Order) -> Sequence[Contact]:
        """Return the contacts to try, in order."""

    async def act(self, session: AsyncSession, contact: Contact) -> bool:
        """Do it for one contact and record it in the session's transaction; False where it failed."""


class CampaignRunner:
    """Starts campaigns, at most one at once, and ends the running one between two contacts when told so."""

    def __init__(self, *, engine: AsyncEngine, limiter: AsyncLimiter, metrics: Metrics) -> None:
        """Take what campaigns need; nothing connects yet."""
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._lock = CampaignLock(engine)
        self._limiter = limiter
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def start(self, work: Work, order: Order) -> int:
        """Begin a campaign in the background and return its id.

        Raises CampaignRunningError where one runs, here or in another replica.
        """
        if self._stopping.is_set() or not await self._lock.take():
            raise CampaignRunningError
        try:
            campaign_id = await self._record_start(work.type, order)
        except BaseException:
            await self._lock.release()
            raise
        self._task = asyncio.create_task(self._run(work, order, campaign_id), name=f"campaign-{campaign_id}")
        return campaign_id

    async def stop(self) -> None:
        """Let the contact in hand be finished, then end the campaign; start no other one."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _record_start(self, type_: CampaignType, order: Order) -> int:
        async with self._sessions.begin() as session:
            # We hold the lock, so whatever still says that it runs was cut off with its process.
            await session.execute(update(Campaign).where(Campaign.status == "running").values(status="interrupted"))
            snapshot = {"order": asdict(order), "started_at": _now(), "result": asdict(Result())}
            campaign = Campaign(name=f"{type_} {_now()}", type=type_, status="running", config_snapshot=snapshot)
            session.add(campaign)
            await session.flush()
            return campaign.id

    async def _run(self, work: Work, order: Order, campaign_id: int) -> None:
        began = time.perf_counter()
        result = Result()
        status = "failed"
        try:
            status = await self._work_through(work, order, campaign_id, result)
        except DATABASE_FAILURES:
            self._metrics.database_errors.inc()
            result.ended_because = "the database failed"
            log.exception("campaign %d ended: the database failed", campaign_id)
        except Exception:
            result.ended_because = "an error of the program; see the log"
            log.exception("campaign %d ended by an error", campaign_id)
        finally:
            await self._finish(campaign_id, status, result)
        if work.type == "birthday":
            self._metrics.campaign_seconds.observe(time.perf_counter() - began)
        log.info("campaign ended", extra={"campaign": campaign_id, "status": status, "result": asdict(result)})

    async def _finish(self, campaign_id: int, status: str, result: Result) -> None:
        try:
            await self._record(campaign_id, status, result)
        except DATABASE_FAILURES:
            self._metrics.database_errors.inc()
            log.exception("the result of campaign %d could not be written", campaign_id)
        finally:
            await self._lock.release()

    async def _work_through(self, work: Work, order: Order, campaign_id: int, result: Result) -> str:
        async with self._sessions() as session:
            contacts = await work.contacts(session, order)
        for contact in contacts:
            verdict = await self._ask(work.type, order, campaign_id)
            if self._stopping.is_set():
                if verdict.allowed:
                    await self._limiter.report(verdict, "Released")
                result.ended_because = "the application is shutting down; the rest is left to the next campaign"
                return "stopped"
            result.tried += 1
            if verdict.allowed:
                await self._act(work, contact, verdict, result)
            else:
                result.refuse(verdict)
                if order.wait:
                    result.ended_because = f"refused by {verdict.rule} ({verdict.reason})"
                    return "limited"
            await self._record(campaign_id, "running", result)
        result.ended_because = "every contact was tried" if contacts else "nobody was due"
        return "completed"

    async def _ask(self, type_: CampaignType, order: Order, campaign_id: int) -> Verdict:
        """Return the policy's verdict; where the campaign may wait, after the short pauses that it asks for."""
        while True:
            verdict = await self._limiter.acquire(type_, execution=f"campaign-{campaign_id}")
            self._observe(type_, verdict)
            pause = verdict.retry_after
            if verdict.allowed or not order.wait or pause is None or pause > LONGEST_PAUSE:
                return verdict
            try:
                await asyncio.wait_for(self._stopping.wait(), timeout=pause.total_seconds())
            except TimeoutError:
                continue
            return verdict

    async def _act(self, work: Work, contact: Contact, verdict: Verdict, result: Result) -> None:
        began = time.perf_counter()
        try:
            async with self._sessions.begin() as session:
                succeeded = await work.act(session, await session.merge(contact))
        except BaseException:
            await self._limiter.report(verdict, "Failure")
            raise
        took = timedelta(seconds=time.perf_counter() - began)
        await self._limiter.report(verdict, "Success" if succeeded else "Failure", duration=took)
        if succeeded:
            result.done += 1
        else:
            result.failed += 1
        if work.type == "birthday":
            self._metrics.messages_sent.labels("success" if succeeded else "failed").inc()

    def _observe(self, type_: CampaignType, verdict: Verdict) -> None:
        self._metrics.rate_limit_hits.labels(type_, "allowed" if verdict.allowed else "denied").inc()
        for limit in verdict.limits:
            self._metrics.quota_remaining.labels(f"{type_}_{limit.name}").set(limit.remaining)
        if verdict.breaker in BREAKER_STATES:
            self._metrics.breaker_state.labels(type_).set(BREAKER_STATES[verdict.breaker])
        if verdict.store_failure:
            self._metrics.redis_errors.inc()

    async def _record(self, campaign_id: int, status: str, result: Result) -> None:
        async with self._sessions.begin() as session:
            campaign = await session.get_one(Campaign, campaign_id)
            ended: dict[str, Any] = {} if status == "running" else {"ended_at": _now()}
            campaign.status = status
            campaign.config_snapshot = {**(campaign.config_snapshot or {}), "result": asdict(result), **ended}


async def recent(session: AsyncSession, *, limit: int) -> Sequence[Campaign]:
    """Return the newest campaigns of all replicas, newest first."""
    return list(await session.scalars(select(Campaign).order_by(Campaign.id.desc()).limit(limit)))


def _now() -> str:
    return f"{utc_now().isoformat(timespec='seconds')}Z"
