"""The one interface between the commands and what provides a cluster, and the choice of a provider."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

from localcluster.errors import LocalClusterError
from localcluster.kind import KindProvider
from localcluster.local import LocalProvider


class Provider(Protocol):
    """Provides one named cluster."""

    name: str

    def create(self) -> None:
        """Bring the cluster up. Mends what is broken, does nothing where all is well."""

    def status(self) -> dict[str, str]:
        """What of the cluster works: part -> `ok`, or what is wrong with it."""

    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig. Raises LocalClusterError where there is no cluster."""

    def kubectl(self) -> Path:
        """A kubectl that fits the cluster."""

    def load_image(self, archive: Path) -> None:
        """Make the image of an archive (docker or OCI) known to the node. Cheap where the node has it already."""

    def delete(self) -> None:
        """Remove the cluster and all that belongs to it from the machine."""


def docker_answers() -> bool:
    """Whether a Docker engine answers on this machine."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode == 0


def provider_name() -> str:
    """`kind` or `local`: what CLUSTER asks for, else kind where a Docker engine answers.

    Raises LocalClusterError where CLUSTER is something else.
    """
    wanted = os.environ.get("CLUSTER") or ("kind" if docker_answers() else "local")
    if wanted not in ("kind", "local"):
        raise LocalClusterError(
            f"CLUSTER={wanted} is unknown. Use CLUSTER=kind (with a Docker engine) or CLUSTER=local."
        )
    return wanted


def choose_provider(cluster: str) -> Provider:
    """The provider of a cluster, see `provider_name`."""
    return KindProvider(cluster) if provider_name() == "kind" else LocalProvider(cluster)
