"""What a policy's store holds now: asked of every primary, each time. Failures come back as data, not as exceptions."""

import base64
import binascii
import time
from dataclasses import replace
from datetime import UTC, datetime

from shipkeeper.limits.connection import AsyncStore, StoreAddress
from shipkeeper.limits.failures import StoreError
from shipkeeper.limits.function_library import library_version
from shipkeeper.limits.keys import DEFAULT_SUBJECT
from shipkeeper.limits.store import read_store, read_use
from shipkeeper.limits.store_state import StoreState, SubjectUse
from shipkeeper.resources.base import SecretKeyReference
from shipkeeper.resources.ratelimitpolicy import RateLimitPolicy
from shipkeeper_operator.effects.stores import STORES, Memory, problem_of
from shipkeeper_operator.reconcile.ratelimitpolicy import policy_keys
from shipkeeper_operator.reconcile.ratelimitpolicy_facts import ObservedStore, Problem
from shipkeeper_operator.reconcile.ratelimitpolicy_usage import subjects_to_read, usage_is_due

from .reader import ClusterReader

# Between two readings of the Secret the store is read several times; a failure makes the next one read it again.
_SECRET_SECONDS = 15.0


class _SecretProblemError(Exception):
    """The URL could not be had from the Secret."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


async def observe(resource: RateLimitPolicy, reader: ClusterReader) -> ObservedStore:
    """Read the Secret, the store and, when it is time, the use of the limits."""
    memory = STORES.memory(resource.metadata.uid)
    try:
        address = await _address(resource, reader, memory)
    except _SecretProblemError as error:
        return replace(_remembered(memory), problem=error.problem)
    try:
        async with STORES.reading(address) as store:
            state = await read_store(store, policy_keys(resource))
            uses = await _uses(resource, store, state)
    except StoreError as error:
        memory.secret_read_at = float("-inf")
        return replace(_remembered(memory), address=address, problem=problem_of(error, address))
    refusal = problem_of(StoreError(state.refusal, store.where), address) if state.refusal else None
    return replace(_remembered(memory), address=address, store=state, uses=uses, refusal=refusal)


def _remembered(memory: Memory) -> ObservedStore:
    return ObservedStore(write_problem=memory.write_problem, repair=memory.repair, keys_removed=memory.keys_removed)


async def _address(resource: RateLimitPolicy, reader: ClusterReader, memory: Memory) -> StoreAddress:
    store, is_fresh = resource.spec.store, time.monotonic() - memory.secret_read_at < _SECRET_SECONDS
    known = memory.address
    if known and is_fresh and (known.topology, known.sentinel_master) == (store.topology, store.sentinel_master):
        return known
    try:
        url = await _url(resource.metadata.namespace, store.url_from, reader)
    except _SecretProblemError:
        # A policy that is being deleted may outlive its Secret: the address it had serves for the removal.
        if known is not None and resource.metadata.deletion_timestamp is not None:
            return known
        raise
    memory.address = StoreAddress(url=url, topology=store.topology, sentinel_master=store.sentinel_master)
    memory.secret_read_at = time.monotonic()
    return memory.address


async def _url(namespace: str, reference: SecretKeyReference, reader: ClusterReader) -> str:
    secret = await reader.secret(namespace, reference.name)
    if secret is None:
        message = (
            f"Secret {reference.name} does not exist in namespace {namespace}: create it, with the key {reference.key}."
        )
        raise _SecretProblemError(Problem("SecretNotFound", message, needs_person=True))
    encoded = (secret.get("data") or {}).get(reference.key)
    if encoded is None:
        message = (
            f"Secret {reference.name} has no key {reference.key}: add it, or name another in spec.store.urlFrom.key."
        )
        raise _SecretProblemError(Problem("SecretKeyMissing", message, needs_person=True))
    try:
        return base64.b64decode(encoded, validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError):
        message = f"Key {reference.key} of Secret {reference.name} is not text: a URL is needed, redis://..."
        raise _SecretProblemError(Problem("SecretValueInvalid", message, needs_person=True)) from None


async def _uses(resource: RateLimitPolicy, store: AsyncStore, state: StoreState) -> tuple[SubjectUse, ...] | None:
    """Read the use of the limits; a circuit breaker is looked at each time, the rest at a slow pace."""
    holder = next((primary for primary in state.primaries if primary.holds_policy), None)
    if resource.metadata.deletion_timestamp is not None or holder is None or not holder.config_hash:
        return None
    if holder.library_version != library_version():
        return None  # another version may answer in another form
    has_breaker = resource.spec.circuit_breaker is not None
    if not has_breaker and not usage_is_due(resource, now=datetime.now(UTC)):
        return None
    keys = policy_keys(resource)
    subjects = subjects_to_read(resource, state, default=DEFAULT_SUBJECT)
    return tuple([await read_use(store, keys, subject) for subject in subjects])
