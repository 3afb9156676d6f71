"""Builds images with a Docker engine, which has the public images at hand."""

from collections.abc import Mapping
from pathlib import Path

from localcluster import paths
from localcluster.images.engine import Image, archive_path, check_service_tag, remove_older, slug
from localcluster.images.fingerprint import fingerprint
from localcluster.progress import step
from localcluster.shell import run, run_logged


class DockerEngine:
    """See the module."""

    def base(self) -> None:
        """See ImageEngine: the Dockerfile's own default is right."""
        return

    def build(self, *, dockerfile: Path, context: Path, tag: str, build_args: Mapping[str, str]) -> Image:
        """See ImageEngine."""
        mark = fingerprint(dockerfile=dockerfile, context=context, build_args=build_args, salt="docker")
        image = Image(tag=tag, fingerprint=mark, archive=archive_path(tag, mark))
        if not image.archive.exists():
            arguments = [f"--build-arg={name}={value}" for name, value in build_args.items()]
            with step(f"building the image {tag}"):
                run_logged(
                    *("docker", "build", *arguments, f"--file={dockerfile}", f"--tag={tag}", str(context)),
                    log=_log(tag),
                    env={"DOCKER_BUILDKIT": "1"},
                )
                _save(image)
        return image

    def service(self, tag: str) -> Image:
        """See ImageEngine: the public image under our tag."""
        public = f"{check_service_tag(tag)}:{tag.rpartition(':')[2]}"
        image = Image(tag=tag, fingerprint=public, archive=archive_path(tag, "public".ljust(16, "0")))
        if not image.archive.exists():
            with step(f"pulling the image {public}"):
                run_logged("docker", "pull", public, log=_log(tag))
                run("docker", "tag", public, tag)
                _save(image)
        return image


def _log(tag: str) -> Path:
    return paths.cache_folder() / "logs" / f"image-{slug(tag)}.log"


def _save(image: Image) -> None:
    image.archive.parent.mkdir(parents=True, exist_ok=True)
    draft = image.archive.with_suffix(".draft")
    run("docker", "save", "--output", draft, image.tag)
    draft.replace(image.archive)
    remove_older(image)
