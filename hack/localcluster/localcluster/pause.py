"""The image of the container that keeps a pod's namespaces open: one static program, packed without any image tool."""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

from localcluster import paths, programs
from localcluster.nodeconfig import PAUSE_IMAGE

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def pause_archive() -> Path:
    """A docker archive of the pause image; made once per version of the program."""
    program = programs.ensure(["pause"])["pause"]
    path = paths.cache_folder() / "images" / "archives" / f"pause-{program.parent.name}.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_bytes(docker_archive(program.read_bytes(), PAUSE_IMAGE))
        draft.replace(path)
    return path


def docker_archive(program: bytes, tag: str) -> bytes:
    """A docker archive with an image whose only file is its entry point; the same bytes from the same input."""
    layer = _tar({"pause": program}, mode=0o755)
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    config_text = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(config_text).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": ["layer.tar"]}]
    return _tar(
        {"manifest.json": json.dumps(manifest).encode(), config_name: config_text, "layer.tar": layer}, mode=0o644
    )


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
