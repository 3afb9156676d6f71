"""What builds images: one interface over buildah (no registry needed) and Docker."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localcluster import paths
from localcluster.errors import LocalClusterError

PREFIX = "localhost/shipkeeper"
POSTGRES_TAG = f"{PREFIX}/postgres:15"
REDIS_TAG = f"{PREFIX}/redis:7"
SERVICE_TAGS = {POSTGRES_TAG: "postgres", REDIS_TAG: "redis"}
BASE_TAG = f"{PREFIX}/base:python3"


@dataclass(frozen=True, kw_only=True)
class Image:
    """A built image. `fingerprint` changes when and only when its content had to be built anew."""

    tag: str
    fingerprint: str
    archive: Path


class ImageEngine(Protocol):
    """Builds images and keeps them as archives in the cache folder."""

    def base(self) -> Image | None:
        """The base image with Python for BASE; None where the Dockerfile's own default is right."""

    def build(self, *, dockerfile: Path, context: Path, tag: str, build_args: Mapping[str, str]) -> Image:
        """Build an image from a Dockerfile, unless nothing of it changed. BASE is added where the engine has a base."""

    def service(self, tag: str) -> Image:
        """The image of PostgreSQL or Redis, by one of the tags above."""


def archive_path(tag: str, fingerprint: str) -> Path:
    """Where the archive of an image is kept."""
    return paths.cache_folder() / "images" / "archives" / f"{slug(tag)}-{fingerprint[:16]}.tar"


def slug(tag: str) -> str:
    """A tag as a file name."""
    return tag.removeprefix("localhost/").replace("/", "-").replace(":", "-")


def remove_older(image: Image) -> None:
    """Delete the archives of the image's earlier builds."""
    for path in image.archive.parent.glob(f"{slug(image.tag)}-{'?' * 16}.tar"):
        if path != image.archive:
            path.unlink(missing_ok=True)


def check_service_tag(tag: str) -> str:
    """The name of the folder under `images/` for a service's tag. Raises LocalClusterError for another tag."""
    if tag not in SERVICE_TAGS:
        raise LocalClusterError(f"No image {tag} is known here. Known: {', '.join(SERVICE_TAGS)}.")
    return SERVICE_TAGS[tag]
