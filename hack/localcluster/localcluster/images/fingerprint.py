"""A hash of everything that decides an image's content, so that an unchanged image is not built again."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from localcluster.errors import LocalClusterError

IGNORED = ("__pycache__", "*.pyc", "*.egg-info")


def fingerprint(*, dockerfile: Path, context: Path, build_args: Mapping[str, str], salt: str) -> str:
    """The hash over the Dockerfile, the files it copies, the build arguments and the salt (the base's own hash).

    Raises LocalClusterError where the Dockerfile copies something that does not exist.
    """
    text = dockerfile.read_text()
    digest = hashlib.sha256(json.dumps([text, dict(sorted(build_args.items())), salt]).encode())
    for pattern in copied_patterns(text):
        matches = sorted(context.glob(pattern.strip("/"))) if pattern.strip("./") else [context]
        if not matches:
            raise LocalClusterError(f"{dockerfile} copies {pattern}, which does not exist in {context}.")
        for match in matches:
            for path in _files(match):
                mode = "x" if os.access(path, os.X_OK) else "-"
                digest.update(f"{path.relative_to(context)} {mode} ".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def copied_patterns(dockerfile: str) -> list[str]:
    """The sources of all COPY and ADD instructions that take files from the build context."""
    found: list[str] = []
    for line in re.sub(r"\\\n", " ", dockerfile).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction.upper() not in ("COPY", "ADD") or "--from=" in rest:
            continue
        words = shlex.split(rest)
        flags = [word for word in words if word.startswith("--")]
        arguments = words[len(flags) :]
        if arguments and arguments[0].startswith("["):
            arguments = json.loads(rest[rest.index("[") :])
        found += arguments[:-1]
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(each for each in folders if not _ignored(Path(each)))
        for name in sorted(names):
            file = Path(folder) / name
            if file.is_file() and not _ignored(file):
                yield file


def _ignored(path: Path) -> bool:
    return any(path.match(pattern) for pattern in IGNORED)
