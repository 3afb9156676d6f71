"""Installs the Debian packages that the local provider needs, without letting them start services."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from localcluster import paths
from localcluster.errors import LocalClusterError
from localcluster.locks import exclusive
from localcluster.progress import step
from localcluster.shell import run_logged

NODE_PACKAGES = (
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "ethtool",
    "iproute2",
    "iptables",
    "mount",
    "openssl",
    "runc",
    "socat",
    "util-linux",
)
IMAGE_PACKAGES = ("buildah", "debian-archive-keyring", "mmdebstrap")

POLICY = Path("/usr/sbin/policy-rc.d")
SAVED_POLICY = Path("/usr/sbin/policy-rc.d.before-localcluster")
POLICY_TEXT = "#!/bin/sh\n# localcluster: packages being installed must not start services.\nexit 101\n"


def missing(packages: Iterable[str]) -> list[str]:
    """The packages that are not installed."""
    wanted = list(packages)
    if shutil.which("dpkg-query") is None:
        return wanted
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *wanted]
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")
    installed = {line.split()[0] for line in listed if line.endswith(" installed")}
    return [package for package in wanted if package not in installed]


def ensure(packages: Iterable[str]) -> None:
    """Install what is missing of the packages.

    Raises LocalClusterError, which names the packages, where this is not Debian, the user is not root or apt-get fails.
    """
    lacking = missing(packages)
    if not lacking:
        return
    names = " ".join(lacking)
    if shutil.which("apt-get") is None:
        raise LocalClusterError(f"The local cluster needs Debian with these packages: {names}. Or use CLUSTER=kind.")
    if os.geteuid() != 0:
        raise LocalClusterError(f"These packages are missing: {names}. Install them: sudo apt-get install {names}")
    log = paths.cache_folder() / "logs" / "apt-get.log"
    environment = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    wait = "-oDPkg::Lock::Timeout=300"
    with step(f"installing Debian packages: {names}"), exclusive(log.with_suffix(".lock"), "installing packages"):
        run_logged("apt-get", wait, "--quiet", "update", log=log, env=environment)
        with no_service_starts():
            install = ("apt-get", wait, "--quiet", "--yes", "--no-install-recommends", "install", *lacking)
            run_logged(*install, log=log, env=environment, append=True)
        if "containerd" in lacking and Path("/run/systemd/system").exists():
            # The cluster runs a containerd of its own; the package's service would come up with the next boot.
            run_logged("systemctl", "disable", "containerd.service", log=log, append=True)


@contextmanager
def no_service_starts() -> Iterator[None]:
    """Forbid that packages start their services while they are installed; the machine's own policy is put back."""
    if SAVED_POLICY.exists():  # A run that was killed left it.
        SAVED_POLICY.replace(POLICY)
    if POLICY.exists() and POLICY.read_text() != POLICY_TEXT:
        POLICY.replace(SAVED_POLICY)
    POLICY.write_text(POLICY_TEXT)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if SAVED_POLICY.exists():
            SAVED_POLICY.replace(POLICY)
        else:
            POLICY.unlink()
