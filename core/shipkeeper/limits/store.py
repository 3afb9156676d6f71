"""Putting policies and the function library on a store, and reading back what is really there.

Nothing here decides. `read_store` reports what each primary answers, so that "enforced" can rest on what was read,
never on what was written.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from redis import ResponseError

from shipkeeper.resources.ratelimitpolicy import RateLimitPolicySpec

from .compiler import CompiledPolicy, compile_policy
from .connection import AsyncStore, Primary, StoreAddress
from .failures import StoreError, StoreFailure, classify
from .function_library import library_text, library_version
from .keys import DEFAULT_PREFIX, PolicyKeys
from .store_state import Circuit, PrimaryState, StoreState, SubjectUse
from .verdict import Reply, instant, limit_states

DEFAULT_TIMEOUT = timedelta(seconds=2)
_SCAN_COUNT = 500
# Until then calls are told that the policy has expired, which says more than that there is none.
_KEPT_AFTER_ITS_END = timedelta(days=30)
# A server in such a state answers reads as ever, and no call can be charged on it.
_REFUSALS = frozenset(
    {
        StoreFailure.OUT_OF_MEMORY,
        StoreFailure.READ_ONLY,
        StoreFailure.PERSISTENCE_FAILED,
        StoreFailure.TOO_FEW_REPLICAS,
    }
)


async def read_store(store: AsyncStore, keys: PolicyKeys) -> StoreState:
    """Ask every primary for its library, and the policy's primary for the policy. Raises StoreError."""
    primaries = await store.primaries()
    holder = await store.primary_of(keys.config)
    states, status = [], None
    for primary in primaries:
        holds = primary.address == holder
        if holds:
            status = await _library(store, primary, "shipkeeper_status", keys.config)
            version = str(status[0]) if status else ""
            if version != library_version():
                status = None  # another version may answer in another form
            config_hash = str(status[1]) if status else ""
        else:
            # In a Cluster this primary may not touch the policy's key.
            version, config_hash = str(await _library(store, primary, "shipkeeper_version") or ""), ""
        states.append(await _primary_state(store, primary, version, config_hash, holds=holds))
    return StoreState(
        primaries=tuple(states),
        now=instant(status[3]) if status else await _clock(store),
        denied=_counts(status[5]) if status else {},
        would_deny=_counts(status[6]) if status else {},
        refusal=await _refusal(store, keys),
        state_lost_at=instant(status[2]) if status and status[2] else None,
        busy_subjects=tuple(sorted(keys.subject_of(key) for key in status[7])) if status else (),
    )


async def _library(store: AsyncStore, primary: Primary, function: str, *arguments: str) -> Any:
    """Call a function without keys on one primary; None where the library is missing."""
    try:
        return await _checked(store, "FCALL", function, 0, *arguments, target=primary.target)
    except StoreError as error:
        # At maxmemory Redis refuses a function that it does not know, and never one that it knows to write nothing.
        if error.failure in (StoreFailure.LIBRARY_MISSING, StoreFailure.OUT_OF_MEMORY):
            return None
        raise


async def _checked(store: AsyncStore, *command: str | int, target: Any = None) -> Any:
    try:
        return await store.execute(*command, target=target)
    except ResponseError as error:
        raise StoreError(classify(error), store.where) from None


async def _primary_state(
    store: AsyncStore, primary: Primary, version: str, config_hash: str, *, holds: bool
) -> PrimaryState:
    info = await _checked(store, "INFO", "server", "memory", target=primary.target)
    policy = str(info.get("maxmemory_policy", ""))
    return PrimaryState(
        address=primary.address,
        run_id=str(info.get("run_id", "")),
        library_version=version,
        holds_policy=holds,
        config_hash=config_hash,
        may_evict=bool(info.get("maxmemory")) and policy.startswith(("allkeys", "volatile")),
    )


async def _refusal(store: AsyncStore, keys: PolicyKeys) -> StoreFailure | None:
    """Return why the policy's primary refuses writes, if it does: by a write that is judged as any and changes nothing.

    What INFO shows would not do: the limits behind it are settings, which the operator's user may not read.
    """
    try:
        await _checked(store, "SET", keys.absent, "", "XX")
    except StoreError as error:
        if error.failure in _REFUSALS:
            return error.failure
        raise
    return None


async def _clock(store: AsyncStore) -> datetime:
    seconds, microseconds = await _checked(store, "TIME")
    return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(microseconds))


def _counts(flat: list[Any]) -> dict[str, int]:
    return {str(rule): int(calls) for rule, calls in zip(flat[::2], flat[1::2], strict=True)}


async def read_use(store: AsyncStore, keys: PolicyKeys, subject: str) -> SubjectUse:
    """Return what a subject has used; of an execution's limit nothing is shown. Raises StoreError."""
    key = keys.state(subject)
    reply = Reply(str(await _checked(store, "FCALL", "shipkeeper_peek", 1, key, keys.config, 1, "")))
    numbers = await _checked(store, "FCALL", "shipkeeper_circuit", 1, key, keys.config)
    circuit = _circuit(numbers) if numbers else None
    return SubjectUse(subject=subject, limits=limit_states(reply, (keys.policy,)), circuit=circuit)


def _circuit(numbers: list[int]) -> Circuit:
    state, since, open_until, permits, failures, trip = numbers
    return Circuit(
        state=state,
        since=instant(since) if since else None,
        open_until=instant(open_until) if open_until else None,
        permits_in_use=permits,
        consecutive_failures=failures,
        last_trip=trip,
    )


async def install_library(store: AsyncStore, *, text: str | None = None) -> None:
    """Load the function library on every primary that lacks it, in place of any other version.

    Raises StoreError for the first primary that refuses, after all others were tried.
    """
    refused: StoreError | None = None
    for primary in await store.primaries():
        try:
            # Loading it anew where it is would drop the counts of denied calls that it keeps.
            if text or await _library(store, primary, "shipkeeper_version") != library_version():
                await _checked(store, "FUNCTION LOAD", "REPLACE", text or library_text(), target=primary.target)
        except StoreError as error:
            refused = refused or error
    if refused is not None:
        raise refused


async def install_config(
    store: AsyncStore, keys: PolicyKeys, policy: CompiledPolicy, *, state_lost_at: datetime | None = None
) -> None:
    """Store a compiled policy. `state_lost_at` is when counters were last lost, if they were. Raises StoreError.

    A policy that nobody renews or removes is gone some time after its tables end.
    """
    loss = round(state_lost_at.timestamp() * 1000) if state_lost_at else 0
    stored = f"{policy.hash} {loss:013d} {policy.body.decode()}"
    expiry = round((policy.valid_until + _KEPT_AFTER_ITS_END).timestamp() * 1000)
    await _checked(store, "SET", keys.config, stored, "PXAT", expiry)
    await _let_library_look(store, await _holder(store, keys), keys)


async def _holder(store: AsyncStore, keys: PolicyKeys) -> Primary:
    """Return the primary that holds a policy and its counters."""
    address = await store.primary_of(keys.config)
    return next(primary for primary in await store.primaries() if primary.address == address)


async def _let_library_look(store: AsyncStore, holder: Primary, keys: PolicyKeys) -> None:
    """Make the library look at the stored policy now; it trusts the one it keeps for a second otherwise."""
    await _library(store, holder, "shipkeeper_status", keys.config)


async def remove_policy(store: AsyncStore, keys: PolicyKeys) -> int:
    """Remove the policy and every counter under it, and return how many keys there were. Raises StoreError.

    Walks the keyspace in small steps and unlinks, so that a shared Redis is never blocked.
    """
    # First the policy: without it no call makes a new counter.
    removed, holder = int(await _checked(store, "UNLINK", keys.config)), await _holder(store, keys)
    await _let_library_look(store, holder, keys)
    removed += int(await _checked(store, "UNLINK", keys.subjects))
    cursor, pattern = "0", _escaped(keys.states) + "*"
    while True:
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
        cursor, found = await _checked(store, *command, target=holder.target)
        if found:
            removed += int(await _checked(store, "UNLINK", *found))
        if str(cursor) == "0":
            return removed


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text)


async def install_policy(
    url: str, spec: RateLimitPolicySpec, *, namespace: str, name: str, library: str | None = None
) -> CompiledPolicy:
    """Put a policy and the library on a store without an operator, for tests and for development. Raises StoreError."""
    address = StoreAddress(url=url, topology=spec.store.topology, sentinel_master=spec.store.sentinel_master)
    store = AsyncStore(address, timeout=DEFAULT_TIMEOUT.total_seconds())
    keys = PolicyKeys(namespace=namespace, policy=name, prefix=spec.store.key_prefix or DEFAULT_PREFIX)
    try:
        await install_library(store, text=library)
        policy = compile_policy(spec, keys, now=await _clock(store))
        await install_config(store, keys, policy)
    finally:
        await store.close()
    return policy
