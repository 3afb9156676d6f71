"""Images for the cluster, also where no image registry can be reached."""

from localcluster.images.buildah import BuildahEngine
from localcluster.images.docker import DockerEngine
from localcluster.images.engine import ImageEngine
from localcluster.provider import provider_name


def choose_engine() -> ImageEngine:
    """Docker where kind provides the cluster, else buildah."""
    return DockerEngine() if provider_name() == "kind" else BuildahEngine()
