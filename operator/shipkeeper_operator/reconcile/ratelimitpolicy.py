"""RateLimitPolicy: from what the store answered to what must be written there, and what status may claim.

`Enforced` is true only for what was read back: the hash of this very policy, computed by the server over what it holds,
and the library's version, from every primary.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache

from shipkeeper.limits.binding import limits_that_never_bind
from shipkeeper.limits.compiler import CompiledPolicy, compile_policy, table_start
from shipkeeper.limits.function_library import library_version
from shipkeeper.limits.keys import PolicyKeys
from shipkeeper.limits.store_state import PrimaryState, StoreState
from shipkeeper.resources import conditions
from shipkeeper.resources.conditions import Claim
from shipkeeper.resources.ratelimitpolicy import RateLimitPolicy, RateLimitPolicySpec
from shipkeeper.resources.ratelimitpolicy_status import RateLimitPolicyStatus, Repair, StorePrimary

from .outcome import Event, Outcome
from .ratelimitpolicy_facts import (
    InstallLibrary,
    InstallPolicy,
    ObservedStore,
    PastRepair,
    Problem,
    RemovePolicy,
    StoreEffect,
)
from .ratelimitpolicy_usage import with_usage

ENFORCED = "Enforced"
STORE_REACHABLE = "StoreReachable"
LIMITS_EFFECTIVE = "LimitsEffective"
COUNTERS_SAFE = "CountersSafe"

# A flush, a restart, a failover, a mended permission, a corrected Secret: each must be followed within five seconds,
# however long the fault lasted. Looking only reads.
LOOK_AGAIN = timedelta(seconds=3)
# A policy that is being deleted waits so long for its store, and so long for a Secret that is gone (a deleted namespace
# takes the Secret first). Counters left behind expire by themselves.
GIVE_UP_ON_STORE = timedelta(minutes=5)
GIVE_UP_ON_SECRET = timedelta(minutes=1)
_LONGEST_MESSAGE = 1024  # of a repair, as the CRD has it

_Outcome = Outcome[RateLimitPolicyStatus, StoreEffect]


def references(resource: RateLimitPolicy) -> Iterable[tuple[str, str]]:
    """Return the objects whose events concern this policy."""
    yield "Secret", resource.spec.store.url_from.name


def policy_keys(resource: RateLimitPolicy) -> PolicyKeys:
    """Return where the policy lives in its store."""
    meta = resource.metadata
    return PolicyKeys(namespace=meta.namespace, policy=meta.name, prefix=resource.spec.store.key_prefix)


def reconcile(resource: RateLimitPolicy, observed: ObservedStore, *, now: datetime) -> _Outcome:
    """Decide what to write to the store and what to say."""
    if resource.metadata.deletion_timestamp is not None:
        return _let_go(resource, observed, now=now)
    if observed.store is None or observed.address is None:
        problem = observed.problem or Problem("StoreUnknown", "The store has not been read yet.", False)
        return _troubled(resource, problem, now=now)
    month = table_start(observed.store.now)
    policy = _compiled(resource.spec, policy_keys(resource), month)
    effects = tuple(_needed(resource, observed, observed.store, policy, now=now))
    status = _read_back(resource, observed, observed.store, policy)
    never_binding = _never_binding(resource.spec, month)
    trouble = observed.refusal or (observed.write_problem if effects else None)
    if trouble is not None:
        claims = _claims_of_problem(resource, trouble, reachable=True)
    else:
        is_installed = not _must_install(resource, observed.store, policy)
        claims = _claims_of_store(resource, observed.store, is_installed=is_installed)
        status = with_usage(resource, observed, status, never_binding=never_binding, now=now)
    return _answer(
        resource,
        status,
        (*claims, *_warnings(never_binding, observed.store)),
        now=now,
        # A store that refuses every write is not asked for one: what is missing is put back once it takes them.
        effects=effects if observed.refusal is None else (),
        events=_events(resource, status),
        requeue_after=LOOK_AGAIN,
    )


@lru_cache(maxsize=4096)
def _compiled(spec: RateLimitPolicySpec, keys: PolicyKeys, month: datetime) -> CompiledPolicy:
    return compile_policy(spec, keys, now=month)


@lru_cache(maxsize=4096)
def _never_binding(spec: RateLimitPolicySpec, month: datetime) -> dict[str, str]:
    return limits_that_never_bind(spec, now=month)


def _holder(store: StoreState) -> PrimaryState:
    return next(primary for primary in store.primaries if primary.holds_policy)


def _without_library(store: StoreState) -> list[PrimaryState]:
    return [primary for primary in store.primaries if primary.library_version != library_version()]


def _was_enforced(resource: RateLimitPolicy) -> bool:
    return resource.status is not None and bool(resource.status.config_hash)


def _needed(
    resource: RateLimitPolicy, observed: ObservedStore, store: StoreState, policy: CompiledPolicy, *, now: datetime
) -> Iterable[StoreEffect]:
    """Yield the writes that make the store hold this policy."""
    if observed.address is None:
        return
    uid, lost = (
        resource.metadata.uid,
        _with_unsaid(resource, observed, _loss(resource, store, at=now.replace(microsecond=0))),
    )
    without = _without_library(store)
    if without:
        yield InstallLibrary(uid=uid, address=observed.address, repair=lost)
    holder = _holder(store)
    # Without this library nothing is known about the policy: it is read once the library is there.
    if holder in without or holder.config_hash == policy.hash:
        return
    state_lost_at = store.now if not holder.config_hash and _was_enforced(resource) else store.state_lost_at
    yield InstallPolicy(
        uid=uid,
        address=observed.address,
        keys=policy_keys(resource),
        policy=policy,
        state_lost_at=state_lost_at,
        repair=lost,
    )


def _with_unsaid(resource: RateLimitPolicy, observed: ObservedStore, lost: PastRepair | None) -> PastRepair | None:
    """Return a loss together with the one that was repaired just before it and stands in no status yet.

    A server that restarts without its data loses the library and the policy; the second is seen once the first is back.
    """
    earlier, said = observed.repair, resource.status.last_repair if resource.status else None
    if lost is None or earlier is None or _repair_status(earlier) == said:
        return lost
    return replace(lost, message=f"{earlier.message} {lost.message}")


def _repair_status(repair: PastRepair) -> Repair:
    return Repair(at=repair.at, reason=repair.reason, message=repair.message[:_LONGEST_MESSAGE])


def _loss(resource: RateLimitPolicy, store: StoreState, *, at: datetime) -> PastRepair | None:
    """Return what the store has lost that it had held for this generation."""
    status = resource.status
    if status is None or not status.config_hash:
        return None
    gone = [primary.address for primary in store.primaries if not primary.library_version]
    if gone:
        return PastRepair(at, "LibraryMissing", f"The function library was gone from {', '.join(gone)}.")
    other = [primary.address for primary in _without_library(store)]
    if other and status.library_version == library_version():
        return PastRepair(at, "LibraryDiffers", f"The function library on {', '.join(other)} had been replaced.")
    holder = _holder(store)
    if not holder.config_hash:
        return PastRepair(at, "ConfigMissing", f"The policy was gone from {holder.address}.")
    if holder.config_hash != status.config_hash and status.observed_generation == resource.metadata.generation:
        return PastRepair(at, "ConfigDiffers", f"The policy on {holder.address} had been changed by somebody else.")
    return None


def _must_install(resource: RateLimitPolicy, store: StoreState, policy: CompiledPolicy) -> bool:
    """Whether what the store holds is not this policy (tables of an earlier month still are)."""
    if _without_library(store):
        return True
    held, status = _holder(store).config_hash, resource.status
    if held == policy.hash:
        return False
    is_same_policy = status is not None and status.observed_generation == resource.metadata.generation
    return not (is_same_policy and status is not None and held and held == status.config_hash)


def _read_back(
    resource: RateLimitPolicy, observed: ObservedStore, store: StoreState, policy: CompiledPolicy
) -> RateLimitPolicyStatus:
    """Return the status with what the store answered; conditions are decided elsewhere."""
    before = resource.status or RateLimitPolicyStatus()
    holder = _holder(store)
    versions = {primary.library_version for primary in store.primaries}
    return before.model_copy(
        update={
            # What was once enforced stays named while it is lost: by it the loss is known.
            "config_hash": holder.config_hash or before.config_hash,
            "library_version": versions.pop() if len(versions) == 1 else "",
            "valid_until": policy.valid_until if holder.config_hash == policy.hash else before.valid_until,
            "primaries": tuple(_primary_status(primary) for primary in store.primaries),
            "state_lost_at": store.state_lost_at or before.state_lost_at,
            "last_repair": _repair_status(observed.repair) if observed.repair is not None else before.last_repair,
        }
    )


def _primary_status(primary: PrimaryState) -> StorePrimary:
    return StorePrimary(
        address=primary.address,
        run_id=primary.run_id,
        library_version=primary.library_version,
        holds_policy=primary.holds_policy,
        config_hash=primary.config_hash,
    )


def _claims_of_store(resource: RateLimitPolicy, store: StoreState, *, is_installed: bool) -> tuple[Claim, ...]:
    reachable = Claim(STORE_REACHABLE, "True", "Answered", "Every primary of the store answers.")
    if is_installed:
        count = len(store.primaries)
        where = "the store" if count == 1 else f"all {count} primaries of the store"
        message = f"Policy and function library were read back from {where}; mode {resource.spec.mode}."
        return (
            *conditions.ready("PolicyEnforced", message),
            Claim(ENFORCED, "True", "ReadBack", message),
            reachable,
        )
    message = "The policy is being put on the store; it counts as enforced once it was read back from every primary."
    reason = "Repairing" if _was_enforced(resource) else "Installing"
    return (*conditions.reconciling(reason, message), Claim(ENFORCED, "False", reason, message), reachable)


def _claims_of_problem(resource: RateLimitPolicy, problem: Problem, *, reachable: bool) -> tuple[Claim, ...]:
    kstatus = conditions.stalled if problem.needs_person else conditions.retrying
    # What a store holds that does not answer is not known; what was never there is not enforced.
    enforced = Claim(
        ENFORCED, "Unknown" if _was_enforced(resource) and not reachable else "False", problem.reason, problem.message
    )
    answered = (
        Claim(STORE_REACHABLE, "True", "Answered", "Every primary of the store answers.")
        if reachable
        else Claim(STORE_REACHABLE, "False", problem.reason, problem.message)
    )
    return (*kstatus(problem.reason, problem.message), enforced, answered)


def _warnings(never_binding: Mapping[str, str], store: StoreState) -> tuple[Claim, ...]:
    if never_binding:
        text = "; ".join(f"limit {name} can never deny: {reason}" for name, reason in sorted(never_binding.items()))
        effective = Claim(LIMITS_EFFECTIVE, "False", "NeverBinds", f"{text}. Change the amounts or remove the limit.")
    else:
        effective = Claim(LIMITS_EFFECTIVE, "True", "CanBind", "Every limit can be the one that denies.")
    evicting = [primary.address for primary in store.primaries if primary.may_evict]
    if evicting:
        message = (
            f"{', '.join(evicting)} may evict counters that are in use (maxmemory-policy), which resets quotas: "
            "set maxmemory-policy noeviction."
        )
        return effective, Claim(COUNTERS_SAFE, "False", "EvictionPossible", message)
    return effective, Claim(COUNTERS_SAFE, "True", "NoEviction", "The store does not evict counters that are in use.")


def _events(resource: RateLimitPolicy, status: RateLimitPolicyStatus) -> tuple[Event, ...]:
    before = resource.status.last_repair if resource.status else None
    repair = status.last_repair
    if repair is None or repair == before:
        return ()
    return (Event("Warning", "StoreRepaired", f"{repair.message} It was put back and read back."),)


def _troubled(resource: RateLimitPolicy, problem: Problem, *, now: datetime) -> _Outcome:
    """Say what is wrong and keep what was known."""
    status = resource.status or RateLimitPolicyStatus()
    kept = [
        Claim(condition.type, condition.status, condition.reason, condition.message)
        for condition in status.conditions
        if condition.type in (LIMITS_EFFECTIVE, COUNTERS_SAFE)
    ]
    claims = (*_claims_of_problem(resource, problem, reachable=False), *kept)
    return _answer(resource, status, claims, now=now, requeue_after=LOOK_AGAIN)


def _let_go(resource: RateLimitPolicy, observed: ObservedStore, *, now: datetime) -> _Outcome:
    """Remove the keys; without a store that answers, give up after a while: what is left expires by itself."""
    status = resource.status or RateLimitPolicyStatus()
    since = resource.metadata.deletion_timestamp or now
    if observed.keys_removed:
        return Outcome(status=status, finalizer=False)
    problem = observed.write_problem or observed.problem
    limit = GIVE_UP_ON_SECRET if observed.address is None else GIVE_UP_ON_STORE
    if problem is not None and now - since >= limit:
        note = f"The keys of this policy stay in its store and expire by themselves: {problem.message}"
        return Outcome(status=status, finalizer=False, events=(Event("Warning", "KeysLeftBehind", note),))
    if observed.store is not None and observed.address is not None:
        effect = RemovePolicy(uid=resource.metadata.uid, address=observed.address, keys=policy_keys(resource))
        claims = conditions.reconciling("RemovingKeys", "The policy's keys are being removed from the store.")
        outcome = _answer(resource, status, claims, now=now, effects=(effect,), requeue_after=LOOK_AGAIN)
    else:
        text = problem.message if problem else "The store has not been read yet."
        minutes = int(limit.total_seconds() // 60)
        wait = f"Waiting at most {minutes} min for the store, to remove the policy's keys: {text}"
        claims = conditions.retrying("WaitingForStore", wait)
        outcome = _answer(resource, status, claims, now=now, requeue_after=LOOK_AGAIN)
    return replace(outcome, finalizer=True)


def _answer(
    resource: RateLimitPolicy,
    status: RateLimitPolicyStatus,
    claims: Iterable[Claim],
    *,
    now: datetime,
    effects: tuple[StoreEffect, ...] = (),
    events: tuple[Event, ...] = (),
    requeue_after: timedelta,
) -> _Outcome:
    previous = resource.status.conditions if resource.status else ()
    generation = resource.metadata.generation
    dated = conditions.dated(claims, previous=previous, generation=generation, now=now)
    return Outcome(
        status=status.model_copy(update={"conditions": dated, "observed_generation": generation}),
        effects=effects,
        events=events,
        finalizer=True,
        requeue_after=requeue_after,
    )
