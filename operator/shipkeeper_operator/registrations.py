"""The kinds this operator reconciles, each with its way to look, to decide and to act."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from shipkeeper.resources import appdeployment, migrationjob, ratelimitpolicy
from shipkeeper_operator.children.appdeployment import CHILD_KINDS as APPDEPLOYMENT_CHILD_KINDS
from shipkeeper_operator.children.migrationjob import WorkerSettings
from shipkeeper_operator.controller import ResourceController
from shipkeeper_operator.effects import ratelimitpolicy as effects_ratelimitpolicy
from shipkeeper_operator.effects.appdeployment import ApplicationEffects
from shipkeeper_operator.observe import appdeployment as observe_appdeployment
from shipkeeper_operator.observe import migrationjob as observe_migrationjob
from shipkeeper_operator.observe import ratelimitpolicy as observe_ratelimitpolicy
from shipkeeper_operator.reconcile import appdeployment as reconcile_appdeployment
from shipkeeper_operator.reconcile import migrationjob as reconcile_migrationjob
from shipkeeper_operator.reconcile import ratelimitpolicy as reconcile_ratelimitpolicy
from shipkeeper_operator.settings import Settings


def registrations(settings: Settings) -> Sequence[ResourceController[Any, Any, Any, Any]]:
    """Return the controllers of the three kinds."""
    worker = WorkerSettings(image=settings.worker_image)
    return (
        ResourceController(
            kind=appdeployment.KIND,
            observe=observe_appdeployment.observe,
            reconcile=reconcile_appdeployment.reconcile,
            references=reconcile_appdeployment.references,
            child_kinds=APPDEPLOYMENT_CHILD_KINDS,
            performer=lambda cluster: ApplicationEffects(cluster, remember=cluster.cache.put).perform,
        ),
        ResourceController(
            kind=ratelimitpolicy.KIND,
            observe=observe_ratelimitpolicy.observe,
            reconcile=reconcile_ratelimitpolicy.reconcile,
            references=reconcile_ratelimitpolicy.references,
            child_kinds=(),
            perform=effects_ratelimitpolicy.perform,
        ),
        ResourceController(
            kind=migrationjob.KIND,
            observe=observe_migrationjob.observe,
            reconcile=partial(reconcile_migrationjob.reconcile, settings=worker),
            references=reconcile_migrationjob.references,
            child_kinds=("Job", "ConfigMap", "ServiceAccount", "Role", "RoleBinding"),
        ),
    )
