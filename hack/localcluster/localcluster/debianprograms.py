"""Programs of several Debian releases side by side, in the cache folder: nothing of them is installed on the machine.

The tests need servers that this machine's own release does not have. Packages come from the machine's mirror through
apt, which checks their signatures; each release gets a folder with a root of its own, and the programs run with that
root's loader and libraries. A release's folder appears by one rename when it is whole.
"""

import hashlib
import platform
import tempfile
from pathlib import Path
from typing import Final

from localcluster import debian, paths
from localcluster.errors import LocalClusterError
from localcluster.images.baseimage import KEYRING, apt_index_targets
from localcluster.locks import exclusive
from localcluster.progress import step
from localcluster.shell import run, run_logged

PACKAGES: Final = {"bookworm": ("redis-server",), "trixie": ("redis-server", "valkey-server")}
PUBLIC_MIRROR: Final = "http://deb.debian.org/debian"
PROGRAMS: Final = ("redis-server", "redis-cli", "valkey-server", "valkey-cli")

# $0 is asked for the place, so that the cache folder may be moved.
_WRAPPER: Final = """#!/bin/sh
root=${{0%/*}}/root
exec "$root/{loader}" --library-path "$root/lib/{triplet}:$root/usr/lib/{triplet}" --argv0 {name} \\
  "$root/usr/bin/{name}" "$@"
"""


def program(release: str, name: str) -> Path:
    """Return the path of a program of a release. Raises LocalClusterError where it was not fetched."""
    path = _folder(release) / name
    if not path.exists():
        raise LocalClusterError(f"{name} of Debian {release} is not there. Fetch it: make programs")
    return path


def ensure() -> None:
    """Fetch and unpack what is missing of all releases.

    Raises LocalClusterError, with apt's own words, where apt is missing or the mirror does not answer.
    """
    for release, packages in PACKAGES.items():
        folder = _folder(release)
        with exclusive(folder.with_name(f"{folder.name}.lock"), f"fetching programs of Debian {release}"):
            if not folder.exists():
                if not KEYRING.exists():
                    debian.ensure(["debian-archive-keyring"])
                with step(f"fetching {' and '.join(packages)} of Debian {release}"):
                    _make(folder, release)


def debian_mirror(targets: str) -> str:
    """Return the machine's mirror of Debian; Debian's own where apt knows none, as on Ubuntu.

    `targets` has lines of origin, code name, site and component.
    """
    fields = [line.split() for line in targets.splitlines()]
    mirrors = (
        each[2]
        for each in fields
        if len(each) == 4 and each[0] == "Debian" and each[3] == "main" and each[1].isalpha()  # no -security, -updates
    )
    return next(mirrors, PUBLIC_MIRROR)


def _folder(release: str) -> Path:
    recipe = f"{release} {platform.machine()} {PACKAGES[release]} {PROGRAMS} {_WRAPPER}"
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return paths.cache_folder() / "programs" / f"debian-{release}-{digest}"


def _make(folder: Path, release: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as name:
        draft = Path(name)
        _download(draft / "apt", release, debian_mirror(apt_index_targets()))
        whole = draft / "whole"
        root = whole / "root"
        root.mkdir(parents=True)
        for package in sorted((draft / "apt" / "archives").glob("*.deb")):
            run("dpkg-deb", "--extract", package, root)
        _write_wrappers(whole, root)
        whole.replace(folder)


def _download(folder: Path, release: str, mirror: str) -> None:
    """Download the packages and all that they depend on, with an apt that knows this release and nothing else."""
    for needed in ("lists/partial", "archives/partial"):
        (folder / needed).mkdir(parents=True)
    (folder / "status").touch()  # Nothing counts as installed, so every dependency is fetched.
    (folder / "sources.list").write_text(
        f"deb [signed-by={KEYRING} target=Packages lang=none] {mirror} {release} main\n"
    )
    options = {
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Sandbox::User": "root",  # apt's own user may not write into this folder.
        "APT::Update::Error-Mode": "any",
    }
    apt = ("apt-get", "--quiet", "--yes", *(f"--option={name}={value}" for name, value in options.items()))
    log = paths.cache_folder() / "logs" / f"debian-{release}.log"
    run_logged(*apt, "update", log=log)
    download = ("--no-install-recommends", "--download-only", "install", *PACKAGES[release])
    run_logged(*apt, *download, log=log, append=True)


def _write_wrappers(folder: Path, root: Path) -> None:
    loader = next(path for path in sorted(root.glob("**/ld-linux*.so.*")) if not path.is_symlink())
    for name in PROGRAMS:
        if (root / "usr" / "bin" / name).exists():
            wrapper = folder / name
            wrapper.write_text(_WRAPPER.format(loader=loader.relative_to(root), triplet=loader.parent.name, name=name))
            wrapper.chmod(0o755)
