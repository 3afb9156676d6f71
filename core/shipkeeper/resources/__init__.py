"""The resources of `shipkeeper.dev/v1alpha1`: the single source of the CRDs, of validation and of the API reference."""

from . import appdeployment, migrationjob, ratelimitpolicy
from .kinds import Kind

KINDS: tuple[Kind, ...] = (appdeployment.KIND, ratelimitpolicy.KIND, migrationjob.KIND)
"""Every kind of the API, in the order in which they are documented."""
