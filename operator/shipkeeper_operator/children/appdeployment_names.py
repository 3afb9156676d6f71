"""The names and labels of an application's objects, in one place: builders, observers and messages use the same."""

from typing import Any, Final

from shipkeeper.resources.appdeployment import AppDeployment
from shipkeeper.resources.base import GROUP

from .metadata import MANAGED_BY, OWNER_LABELS, child_metadata

KIND: Final = "AppDeployment"
COMPONENT: Final = "application"
CONTAINER_NAME: Final = "app"

RELEASED_TEMPLATE_ANNOTATION: Final = f"{GROUP}/released-template"
"""On the Deployment: which pod template was released. What equals it is never held again."""
KEY_IDS_ANNOTATION: Final = f"{GROUP}/api-key-ids"
"""On the pods: which API keys they accept, by the keys' random names."""
TESTED_IMAGE_ANNOTATION: Final = f"{GROUP}/tested-image"
"""On the AppDeployment, written by a delivery pipeline: the image whose tests passed."""

# Under which keys the generated Secret holds what. Callers read the first; pods get the other two.
CALLER_KEY: Final = "api-key"
ACCEPTED_KEY: Final = "accepted"
ACCEPTED_PREVIOUS_KEY: Final = "accepted-previous"


def app_metadata(resource: AppDeployment, *, name: str | None = None) -> dict[str, Any]:
    """Return the metadata of one of the application's objects; without a name it has the application's."""
    return child_metadata(KIND, resource.metadata, name=name or resource.metadata.name, component=COMPONENT)


def unowned_metadata(resource: AppDeployment, *, name: str) -> dict[str, Any]:
    """Return the metadata of an object that outlives the application: labelled, without an owner."""
    return {key: value for key, value in app_metadata(resource, name=name).items() if key != "ownerReferences"}


def pod_labels(resource: AppDeployment) -> dict[str, str]:
    """Return the labels by which the application's pods are selected. A Deployment's selector cannot be changed."""
    return {OWNER_LABELS[KIND]: resource.metadata.name}


def selector_text(resource: AppDeployment) -> str:
    """Return the selector of the pods as text, as `kubectl -l` and the scale subresource want it."""
    return ",".join(f"{label}={value}" for label, value in pod_labels(resource).items())


def api_key_secret_name(resource: AppDeployment) -> str:
    """Return the name of the Secret with the generated API key."""
    return f"{resource.metadata.name}-api-key"


def volume_claim_name(resource: AppDeployment) -> str | None:
    """Return the name of the volume claim of the SQLite file, ours or the user's, or None without such a file."""
    database = resource.spec.database
    if database is None or database.sqlite is None:
        return None
    return database.sqlite.claim_name or f"{resource.metadata.name}-data"


def service_account_name(resource: AppDeployment) -> str:
    """Return the name of the pods' ServiceAccount."""
    return resource.spec.service_account_name or resource.metadata.name


def service_url(resource: AppDeployment) -> str:
    """Return the application's address within the cluster."""
    metadata = resource.metadata
    return f"http://{metadata.name}.{metadata.namespace}.svc:{resource.spec.service.port}"


def is_ours(labels: dict[str, str], resource: AppDeployment) -> bool:
    """Whether an object without an owner was made for an application of this name."""
    expected = {**MANAGED_BY, **pod_labels(resource)}
    return all(labels.get(label) == value for label, value in expected.items())
