"""A small kind of our own that uses every part of the loop, and an operator for it: `python -m support.widgets`.

A Widget has a ConfigMap per part, may have a Deployment, may keep a file outside the cluster (with a finalizer), may
refer to another Widget. What the file is to it, Redis is to a RateLimitPolicy.
"""

import asyncio
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from shipkeeper.resources.base import Duration, Resource, ResourceModel, StatusModel, parse_duration
from shipkeeper.resources.conditions import dated, ready, reconciling
from shipkeeper.resources.kinds import Kind, PrinterColumn
from shipkeeper_operator.children.metadata import child_metadata
from shipkeeper_operator.controller import ResourceController
from shipkeeper_operator.logs import configure_logging
from shipkeeper_operator.main import run_operator
from shipkeeper_operator.observe.reader import ClusterReader
from shipkeeper_operator.reconcile.outcome import Outcome
from shipkeeper_operator.settings import read_settings

STORE_VARIABLE = "WIDGET_STORE"


def _fit(text: str) -> str:
    """Refuse what the schema lets in, as a newer model does with what an older CRD accepted."""
    if text == "unfit":
        raise ValueError("the text must fit; write another one")
    return text


class WidgetSpec(ResourceModel):
    """What a Widget is told."""

    text: Annotated[str, AfterValidator(_fit)] = Field(default="hello", max_length=100)
    """Text of every part."""
    note: str | None = Field(default=None, max_length=100)
    """Another text, which may be absent."""
    parts: tuple[str, ...] = Field(default=("one",), max_length=10)
    """Names of the parts: a ConfigMap each."""
    deployment: bool = False
    """Whether it has a Deployment."""
    memory: str = Field(default="64Mi", max_length=20)
    """The Deployment's memory request."""
    stored: bool = False
    """Whether its text is kept in a file outside the cluster."""
    refers_to: str | None = Field(default=None, max_length=52)
    """Name of a Widget whose text it repeats."""
    look_again: Duration | None = None
    """How soon it wants to be looked at again."""


class WidgetStatus(StatusModel):
    """What a Widget says."""

    parts: int | None = Field(default=None, ge=0)
    """How many parts were seen."""
    replicas: int | None = Field(default=None, ge=0)
    """Replicas that the Deployment's status counts."""
    repeated: str | None = Field(default=None, max_length=100)
    """The text of the Widget that it refers to."""


Widget = Resource[WidgetSpec, WidgetStatus]

KIND = Kind(
    kind="Widget",
    plural="widgets",
    singular="widget",
    short_names=("wid",),
    spec=WidgetSpec,
    status=WidgetStatus,
    description="A kind for tests.",
    columns=(PrinterColumn("Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether it is ready."),),
)


@dataclass(frozen=True)
class Observed:
    """What is true about a Widget."""

    parts: int
    replicas: int
    repeated: str | None
    stored: str | None


@dataclass(frozen=True)
class Store:
    """Write the text to the file, or remove the file."""

    path: Path
    text: str | None


def stored_at(resource: Widget) -> Path:
    """Return the file of a Widget."""
    return Path(os.environ.get(STORE_VARIABLE, "/nonexistent")) / resource.metadata.uid


async def observe(resource: Widget, reader: ClusterReader) -> Observed:
    """Look at the children, the file and the other Widget."""
    deployments = reader.children("Deployment", resource.metadata.uid)
    other = reader.get("Widget", resource.metadata.namespace, resource.spec.refers_to or "")
    path = stored_at(resource)
    return Observed(
        parts=len(reader.children("ConfigMap", resource.metadata.uid)),
        replicas=sum(found.get("status", {}).get("replicas", 0) for found in deployments),
        repeated=other["spec"].get("text") if other else None,
        stored=path.read_text() if path.exists() else None,
    )


def reconcile(resource: Widget, observed: Observed, *, now: datetime) -> Outcome[WidgetStatus, Store]:
    """Decide."""
    spec, metadata = resource.spec, resource.metadata
    if spec.text == "bug":
        raise RuntimeError("a bug, as the test asked for")
    wanted = spec.text if spec.stored and metadata.deletion_timestamp is None else None
    effects = (Store(stored_at(resource), wanted),) if observed.stored != wanted else ()
    settled = observed.parts == len(spec.parts) and not effects
    claims = ready("Complete", "all is there") if settled else reconciling("Building", "parts are missing")
    status = WidgetStatus(
        observed_generation=metadata.generation,
        conditions=dated(
            claims,
            previous=resource.status.conditions if resource.status else (),
            generation=metadata.generation,
            now=now,
        ),
        parts=observed.parts,
        replicas=observed.replicas if spec.deployment else None,
        repeated=observed.repeated,
    )
    return Outcome(
        status=status,
        children=tuple(children(resource)),
        effects=effects,
        finalizer=wanted is not None or observed.stored is not None,
        requeue_after=parse_duration(spec.look_again) if spec.look_again else None,
    )


def children(resource: Widget) -> Iterable[dict[str, Any]]:
    """Build the ConfigMaps and the Deployment."""
    spec, metadata = resource.spec, resource.metadata
    for part in spec.parts:
        data = {"text": spec.text} if spec.note is None else {"text": spec.text, "note": spec.note}
        name = f"{metadata.name}-{part}"
        yield {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": child_metadata("AppDeployment", metadata, name=name, component="part") | _owner(resource),
            "data": data,
        }
    if spec.deployment:
        labels = {"app.kubernetes.io/instance": metadata.name}
        container = {
            "name": "main",
            "image": "example.invalid/none:1",
            "ports": [{"containerPort": 8080}],
            "resources": {"requests": {"memory": spec.memory, "cpu": "1000m"}},
        }
        yield {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": child_metadata("AppDeployment", metadata, name=metadata.name, component="app")
            | _owner(resource),
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        }


def _owner(resource: Widget) -> dict[str, Any]:
    """Return the owner references with the Widget's own kind."""
    metadata = child_metadata("AppDeployment", resource.metadata, name="any", component="any")
    return {"ownerReferences": [{**metadata["ownerReferences"][0], "kind": "Widget"}]}


def references(resource: Widget) -> Iterable[tuple[str, str]]:
    """Return the Widget that it refers to."""
    return (("Widget", resource.spec.refers_to),) if resource.spec.refers_to else ()


async def perform(effect: Store) -> None:
    """Write or remove the file."""
    if effect.text is None:
        effect.path.unlink(missing_ok=True)
    else:
        effect.path.write_text(effect.text)


CONTROLLER: ResourceController[Widget, Observed, WidgetStatus, Store] = ResourceController(
    kind=KIND,
    observe=observe,
    reconcile=reconcile,
    references=references,
    child_kinds=("ConfigMap", "Deployment"),
    perform=perform,
)

if __name__ == "__main__":
    settings = read_settings()
    configure_logging(settings.log_level)
    sys.exit(asyncio.run(run_operator(settings, [CONTROLLER])))
