"""The resources of `shipkeeper.dev/v1alpha1`: the single source of the CRDs, of validation and of the API reference."""

from .kinds import Kind

KINDS: tuple[Kind, ...] = ()
"""Every kind of the API, in the order in which they are documented."""
