"""What a scorecard is made from: what was seen in the live system, as plain data.

Nothing here is copied from a spec that was only declared: whoever fills these in reads running pods, live objects and
the status of other resources. `None` means that it could not be seen.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RequirementFacts:
    """A migration or a policy that the application requires."""

    kind: str
    name: str
    is_met: bool
    reason: str
    """Why it is not met, as one CamelCase word; the reason of its own condition where it is."""


@dataclass(frozen=True, kw_only=True)
class PodFacts:
    """A running pod of the application."""

    is_ready: bool
    image: str
    """Image of the application's container."""
    weaknesses: tuple[str, ...] = ()
    """What the pod lacks of restricted Pod Security and a read-only root, each in a few words."""


@dataclass(frozen=True, kw_only=True)
class DeploymentFacts:
    """The live Deployment."""

    is_complete: bool
    """All pods are of the newest template and available."""
    wanted: int
    available: int
    has_liveness_probe: bool
    has_readiness_probe: bool
    requests_memory: bool
    has_one_writer: bool
    """A SQLite file allows no second replica."""
    has_scrape_annotations: bool


@dataclass(frozen=True, kw_only=True)
class LiveFacts:
    """All that was seen of one application."""

    database: str | None
    """Where the pods' database URL comes from, in words; None where the application declares no database."""
    database_trouble: str | None = None
    """What of the database's volume or Secret keeps pods from starting."""
    migrations: tuple[RequirementFacts, ...] = ()
    policies: tuple[RequirementFacts, ...] = ()
    deployment: DeploymentFacts | None = None
    pods: tuple[PodFacts, ...] = ()
    has_disruption_budget: bool = False
    has_network_policy: bool = False
    has_service_monitor: bool = False
    monitoring_declared: bool = True
    tested_image: str | None = None
    """The image that a delivery pipeline says its tests passed for."""
