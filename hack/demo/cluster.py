"""The cluster and the images, through the commands of hack/localcluster: what `make cluster` runs too."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from demo.kubectl import Kubectl
from demo.steps import DemoError

ROOT = Path(__file__).parents[2]
OPERATOR_IMAGE = "localhost/shipkeeper/operator:dev"
APP_IMAGE = "localhost/shipkeeper/birthday-app:dev"
OWN_IMAGES = {OPERATOR_IMAGE: "Dockerfile", APP_IMAGE: "examples/birthday-app/Dockerfile"}
SERVICE_IMAGES = ("localhost/shipkeeper/postgres:15", "localhost/shipkeeper/redis:7")


def localcluster(*arguments: str, capture: bool = False) -> str:
    """Run one of its commands; its progress goes to the terminal.

    Raises DemoError where it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "hack/localcluster")}
    command = [sys.executable, "-m", "localcluster", *arguments]
    output = subprocess.PIPE if capture else None
    finished = subprocess.run(command, env=environment, cwd=ROOT, stdout=output, text=True, check=False)
    if finished.returncode != 0:
        raise DemoError(f"localcluster {' '.join(arguments)} failed; its reason stands above")
    return (finished.stdout or "").strip()


def start() -> None:
    """Create the cluster, or repair or keep the one that is there."""
    localcluster("up", capture=True)


def connect() -> Kubectl:
    """Return kubectl for the cluster."""
    program = Path(localcluster("tools", "kubectl", capture=True))
    return Kubectl(program, Path(localcluster("kubeconfig", capture=True)))


def build_and_load_images() -> Mapping[str, Path]:
    """Build every image of the demo, where its sources changed, and put them on the node.

    Returns the archive of each image; its name says which build it is.
    """
    archives = {tag: Path(localcluster("image", "service", tag, capture=True)) for tag in SERVICE_IMAGES}
    for tag, dockerfile in OWN_IMAGES.items():
        options = ("--dockerfile", dockerfile, "--context", ".", "--tag", tag)
        archives[tag] = Path(localcluster("image", "build", *options, capture=True))
    for archive in archives.values():
        localcluster("image", "load", str(archive))
    return archives
