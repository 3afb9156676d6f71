"""The root file system of the base image: a small Debian with Python, from the machine's own Debian mirror."""

import hashlib
import platform
import tempfile
from pathlib import Path

from localcluster import debian, paths
from localcluster.errors import LocalClusterError
from localcluster.images import buildsettings
from localcluster.locks import exclusive
from localcluster.progress import step
from localcluster.shell import run, run_logged

PACKAGES = ("ca-certificates", "python3", "python3-venv", "tzdata")
# Nobody reads manuals in a container: half the files and a third of the size.
EXCLUDED = ("/usr/share/doc/*", "/usr/share/i18n/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def base_root_archive() -> Path:
    """A tar of the base's root file system; made once for each change of what it holds.

    Raises LocalClusterError where the machine's apt knows no Debian mirror, or the making fails.
    """
    recipe = f"{SUITE} {platform.machine()} {PACKAGES} {EXCLUDED}"
    name = f"base-{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.tar"
    path = paths.cache_folder() / "images" / "roots" / name
    with exclusive(path.with_suffix(".lock"), "making the base image"):
        if not path.exists():
            debian.ensure(debian.IMAGE_PACKAGES)
            with step("making the base image from Debian packages"):
                _make(path)
    return path


def _make(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as draft:
        folder = Path(draft)
        sources, apt, tar = folder / "sources.list", folder / "apt.conf", folder / "root.tar"
        sources.write_text("\n".join(debian_sources(apt_index_targets())) + "\n")
        apt.write_text(buildsettings.apt_configuration() + 'APT::Install-Recommends "false";\n')
        excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
        run_logged(
            *("mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}", f"--aptopt={apt}"),
            # How this machine reaches its mirror must not stay in the image.
            "--customize-hook=rm -f $1/etc/apt/apt.conf.d/99mmdebstrap",
            *(*excluded, SUITE, str(tar), str(sources)),
            log=paths.cache_folder() / "logs" / "base-image.log",
            env={"TMPDIR": str(folder)},
        )
        tar.replace(path)


def apt_index_targets() -> str:
    """What the machine's apt fetches, one line each: origin, code name, site and component."""
    columns = "$(ORIGIN) $(CODENAME) $(SITE) $(COMPONENT)"
    targets = run("apt-get", "indextargets", "--format", columns, "Created-By: Packages")
    if not targets.strip():
        run_logged("apt-get", "--quiet", "update", log=paths.cache_folder() / "logs" / "apt-get.log")
        targets = run("apt-get", "indextargets", "--format", columns, "Created-By: Packages")
    return targets


def debian_sources(index_targets: str) -> list[str]:
    """The lines of a sources.list with the machine's mirrors of the suite, its updates and its security fixes.

    `index_targets` has lines of origin, code name, site and component.
    """
    wanted = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
    fields = [line.split() for line in index_targets.splitlines()]
    mirrors = {(each[1], each[2]) for each in fields if len(each) == 4 and each[0] == "Debian" and each[3] == "main"}
    found = [
        f"deb [signed-by={KEYRING}] {site} {suite} main"
        for suite in wanted
        for name, site in sorted(mirrors)
        if name == suite
    ]
    if not any(f" {SUITE} " in line for line in found):
        raise LocalClusterError(
            f"apt knows no mirror of Debian {SUITE}, from which the images are made. Add one to the apt sources, "
            "or use CLUSTER=kind with a Docker engine."
        )
    return found
