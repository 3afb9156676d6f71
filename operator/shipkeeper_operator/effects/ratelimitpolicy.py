"""Writes to a policy's store. A failure is remembered for the next observation and raised for the controller."""

from shipkeeper.limits.failures import StoreError
from shipkeeper.limits.store import install_config, install_library, remove_policy
from shipkeeper_operator.reconcile.ratelimitpolicy_facts import (
    InstallLibrary,
    InstallPolicy,
    RemovePolicy,
    StoreEffect,
)

from .stores import STORES, problem_of


async def perform(effect: StoreEffect) -> None:
    """Do one write. Raises StoreError, whose text holds no secret."""
    memory = STORES.memory(effect.uid)
    try:
        store = await STORES.at(effect.address)
        match effect:
            case InstallLibrary():
                await install_library(store)
            case InstallPolicy():
                await install_config(store, effect.keys, effect.policy, state_lost_at=effect.state_lost_at)
            case RemovePolicy():
                await remove_policy(store, effect.keys)
                memory.keys_removed = True
    except StoreError as error:
        memory.write_problem = problem_of(error, effect.address)
        raise
    memory.write_problem = None
    if not isinstance(effect, RemovePolicy) and effect.repair is not None:
        memory.repair = effect.repair
