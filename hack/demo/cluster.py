"""The cluster and the images, through the commands of hack/localcluster: what `make cluster` runs too."""

import os
import subprocess
import sys
from pathlib import Path

from demo.kubectl import Kubectl
from demo.steps import DemoError

ROOT = Path(__file__).parents[2]
OPERATOR_IMAGE = "localhost/shipkeeper/operator:dev"
APP_IMAGE = "localhost/shipkeeper/birthday-app:dev"
POSTGRES_IMAGE = "localhost/shipkeeper/postgres:15"
REDIS_IMAGE = "localhost/shipkeeper/redis:7"


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
    localcluster("up")


def connect() -> Kubectl:
    """Return kubectl for the cluster."""
    program = Path(localcluster("tools", "kubectl", capture=True))
    return Kubectl(program, Path(localcluster("kubeconfig", capture=True)))


def build_and_load_images() -> None:
    """Build every image of the demo, where its sources changed, and put them on the node."""
    localcluster("image", "postgres")
    localcluster("image", "redis")
    localcluster("image", "build", "--dockerfile", "Dockerfile", "--context", ".", "--tag", OPERATOR_IMAGE)
    app = "examples/birthday-app/Dockerfile"
    localcluster("image", "build", "--dockerfile", app, "--context", ".", "--tag", APP_IMAGE)
    localcluster("image", "load", OPERATOR_IMAGE, APP_IMAGE, POSTGRES_IMAGE, REDIS_IMAGE)


def image_id(tag: str) -> str:
    """Return what tells one build of an image from another."""
    return localcluster("image", "id", tag, capture=True)
