"""Builds images with buildah, from Debian packages and the language registries alone: no image registry is needed."""

from collections.abc import Mapping
from pathlib import Path

from localcluster import debian, paths
from localcluster.images import buildsettings
from localcluster.images.baseimage import base_root_archive
from localcluster.images.engine import BASE_TAG, Image, archive_path, check_service_tag, remove_older, slug
from localcluster.images.fingerprint import fingerprint
from localcluster.locks import exclusive
from localcluster.progress import step
from localcluster.shell import run, run_logged

UNUSED_IMAGES = 60
BASE_DOCKERFILE = """FROM scratch
ADD {root} /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3"]
"""


class BuildahEngine:
    """See the module. Layers are kept in a storage of its own under the cache folder."""

    def __init__(self) -> None:
        self._folder = paths.cache_folder() / "images"
        self._storage = ("--root", str(self._folder / "storage"), "--runroot", str(self._folder / "storage-run"))

    def base(self) -> Image:
        """See ImageEngine."""
        root = base_root_archive()
        return Image(tag=BASE_TAG, fingerprint=root.stem, archive=root)

    def build(self, *, dockerfile: Path, context: Path, tag: str, build_args: Mapping[str, str]) -> Image:
        """See ImageEngine."""
        debian.ensure(debian.IMAGE_PACKAGES)
        base = self.base()
        mark = fingerprint(dockerfile=dockerfile, context=context, build_args=build_args, salt=base.fingerprint)
        image = Image(tag=tag, fingerprint=mark, archive=archive_path(tag, mark))
        with exclusive(self._folder / "buildah.lock", "building an image"):
            if not image.archive.exists():
                with step(f"building the image {tag}"):
                    self._make_base(base)
                    self._build(dockerfile, context, tag, {"BASE": BASE_TAG, **build_args})
                    self._export(image)
        remove_older(image)
        return image

    def service(self, tag: str) -> Image:
        """See ImageEngine."""
        folder = paths.source_folder() / "images" / check_service_tag(tag)
        return self.build(dockerfile=folder / "Dockerfile", context=folder, tag=tag, build_args={})

    def _make_base(self, base: Image) -> None:
        """Import the base's root file system, unless the storage has it."""
        marker = f"{base.tag}-{base.fingerprint.rpartition('-')[2]}"
        present = run("buildah", *self._storage, "images", "--all", "--format", "{{.Name}}:{{.Tag}}")
        if marker not in present.split():
            dockerfile = self._folder / "base.Dockerfile"
            paths.write_atomically(dockerfile, BASE_DOCKERFILE.format(root=base.archive.name))
            self._build(dockerfile, base.archive.parent, marker, {})
        run("buildah", *self._storage, "tag", marker, base.tag)

    def _build(self, dockerfile: Path, context: Path, tag: str, build_args: Mapping[str, str]) -> None:
        volumes = [f"--volume={mount}" for mount in buildsettings.mounts()]
        arguments = [f"--build-arg={name}={value}" for name, value in build_args.items()]
        run_logged(
            *("buildah", *self._storage, "bud", "--isolation=chroot", "--network=host", "--layers", "--pull-never"),
            *(*volumes, *arguments, f"--file={dockerfile}", f"--tag={tag}", str(context)),
            log=paths.cache_folder() / "logs" / f"image-{slug(tag)}.log",
        )

    def _export(self, image: Image) -> None:
        image.archive.parent.mkdir(parents=True, exist_ok=True)
        draft = image.archive.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        run("buildah", *self._storage, "push", "--quiet", image.tag, f"docker-archive:{draft}:{image.tag}")
        draft.replace(image.archive)
        # Layers of earlier builds make the next one quick, up to a number.
        unused = run("buildah", *self._storage, "images", "--quiet", "--filter", "dangling=true").split()
        if len(unused) > UNUSED_IMAGES:
            run("buildah", *self._storage, "rmi", "--prune")
