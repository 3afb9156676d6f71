"""The main job, step by step. `make demo` shows it to a person; the e2e tests assert what it gives back."""

from dataclasses import dataclass
from typing import Any

from demo import cluster, legacy, report, sends, servers
from demo.kubectl import Kubectl
from demo.progress import follow_migration, wait_until_ready
from demo.steps import Steps

NAMESPACE = "birthday"
OPERATOR_NAMESPACE = "shipkeeper-system"
MIGRATION = "birthday-consolidation"
POLICY = "birthday-limits"
APP = "birthday-app"
SENDS = 20


@dataclass(frozen=True)
class Story:
    """What the cluster and the database said in the end."""

    kubectl: Kubectl
    expected: legacy.Expected
    migration: dict[str, Any]
    policy: dict[str, Any]
    app: dict[str, Any]
    counts: report.Counts
    valid_indexes: int
    ready: sends.Answer
    sends: sends.Sends


def run(steps: Steps) -> Story:
    """Bring everything up and true, from nothing or from what is there, and read what came of it."""
    kubectl = prepare(steps)
    with steps.step("Generate the legacy rows"):
        expected = legacy.generate(kubectl, namespace=NAMESPACE)
    with steps.step("Apply the three resources (manifests/samples)"):
        kubectl.apply_folder(cluster.ROOT / "manifests/samples")
    with steps.step("Enforce the rate limits"):
        policy = wait_until_ready(kubectl, "ratelimitpolicy", POLICY, namespace=NAMESPACE)
    with steps.step("Migrate: five indexes, then birthday_messages into interactions"):
        migration = follow_migration(kubectl, MIGRATION, namespace=NAMESPACE)
    with steps.step("Roll the application out"):
        app = wait_until_ready(kubectl, "appdeployment", APP, namespace=NAMESPACE)
    with steps.step("Read back what came of it"):
        return Story(
            kubectl=kubectl,
            expected=expected,
            migration=migration,
            policy=policy,
            app=app,
            counts=report.count(kubectl, namespace=NAMESPACE),
            valid_indexes=report.valid_indexes(kubectl, namespace=NAMESPACE),
            ready=sends.call(kubectl, "GET", "/ready", namespace=NAMESPACE),
            sends=sends.attempt(kubectl, SENDS, namespace=NAMESPACE),
        )


def prepare(steps: Steps) -> Kubectl:
    """Bring up the cluster, the operator, PostgreSQL and Redis."""
    with steps.step("Start the cluster"):
        cluster.start()
        kubectl = cluster.connect()
    with steps.step("Build the images and load them"):
        archives = cluster.build_and_load_images()
    with steps.step("Install the operator (manifests/overlays/local)"):
        install_operator(kubectl, build=archives[cluster.OPERATOR_IMAGE].stem)
    with steps.step("Start PostgreSQL and Redis"):
        kubectl.run("apply", "--server-side", "-f", str(cluster.ROOT / "manifests/samples/namespace.yaml"))
        servers.ensure_secrets(kubectl, namespace=NAMESPACE)
        servers.start(kubectl, namespace=NAMESPACE)
    return kubectl


def install_operator(kubectl: Kubectl, *, build: str) -> None:
    """Install the operator from this checkout, with the image of this build, and wait until both replicas are ready."""
    kubectl.apply_folder(cluster.ROOT / "manifests/overlays/local")
    kubectl.run("wait", "--for=condition=Established", "crd", "--selector=app.kubernetes.io/part-of=shipkeeper")
    # The tag stays the same while the image changes; an annotation in the pod template makes the pods follow it.
    template = {"metadata": {"annotations": {"shipkeeper.dev/build": build}}}
    patch = {"spec": {"template": template}}
    kubectl.patch("deployment", "shipkeeper-operator", patch, namespace=OPERATOR_NAMESPACE)
    options = ("--namespace", OPERATOR_NAMESPACE, "--timeout=180s")
    kubectl.run("rollout", "status", "deployment/shipkeeper-operator", *options, timeout=200)
