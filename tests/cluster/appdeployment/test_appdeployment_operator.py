"""An application on a real API server: objects accepted, rollout held and released, scaling, pruning."""

import base64
import json
import time
from collections.abc import Callable

from demo.kubectl import Kubectl
from support.apiserver import REPOSITORY, eventually
from support.operator_process import OperatorProcess

from .conftest import Applications

Settle = Callable[[], dict[str, int]]


def test_everything_is_accepted_and_the_pods_too(operator: OperatorProcess, apps: Applications) -> None:
    apps.apply(
        "app",
        replicas=2,
        extraPorts=[{"name": "admin", "port": 9000}],
        database={"urlFrom": {"name": "database", "key": "url"}},
        redis={"urlFrom": {"name": "redis", "key": "url"}},
        apiKey={},
        env=[{"name": "LOG_LEVEL", "value": "INFO"}, {"name": "POD", "valueFrom": {"fieldPath": "metadata.name"}}],
        networkPolicy={"allowedNamespaces": ["ingress"], "egress": [{"ports": [{"port": 5432}]}]},
        podTemplate={"spec": {"containers": [{"name": "app", "workingDir": "/srv"}], "hostname": "app"}},
    )
    # The namespace enforces restricted Pod Security: the ReplicaSet's pods are the proof that they are restricted.
    eventually(lambda: len(apps.pods("app")) == 2, what="two pods")
    for kind in ("Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Deployment"):
        assert apps.exists(kind, "app"), kind
    template = apps.get("Deployment", "app")["spec"]["template"]["spec"]
    assert (template["hostname"], template["containers"][0]["workingDir"]) == ("app", "/srv")
    apps.roll_out("app")
    status = apps.status("app")
    assert status["replicas"] == status["availableReplicas"] == 2
    assert status["url"] == f"http://app.{apps.namespace}.svc:80"
    checks = {check["name"]: check["status"] for check in status["checks"]}
    assert checks["Security"] == checks["Health"] == checks["Deployment"] == checks["Monitoring"] == "Pass"


def test_the_sample_is_held_until_its_migration_and_its_policy_are_true(
    operator: OperatorProcess, apps: Applications, kubectl: Kubectl
) -> None:
    sample = (REPOSITORY / "manifests/samples/appdeployment.yaml").read_text()
    manifest = sample.replace("namespace: birthday\n", f"namespace: {apps.namespace}\n")
    kubectl.run("apply", "--server-side", "-f", "-", stdin=manifest)
    held = apps.wait_for("birthday-app", reason="HeldByMigration")
    assert "birthday-consolidation does not exist" in held["message"]
    assert apps.exists("Service", "birthday-app")

    apps.require("MigrationJob", "birthday-consolidation")
    apps.require("RateLimitPolicy", "birthday-limits")
    apps.write_status("MigrationJob", "birthday-consolidation", Ready="False", Verified="False")
    eventually(
        lambda: {each["reason"] for each in apps.status("birthday-app")["heldBy"]} == {"NotVerified", "NotObservedYet"}
    )
    apps.write_status("MigrationJob", "birthday-consolidation", Ready="True", Verified="True")
    apps.wait_for("birthday-app", reason="HeldByRateLimitPolicy")
    assert not apps.exists("Deployment", "birthday-app")

    apps.write_status("RateLimitPolicy", "birthday-limits", Ready="True", Enforced="True")
    apps.wait_for("birthday-app", type_="Released", reason="Released")
    apps.roll_out("birthday-app")
    status = apps.status("birthday-app")
    assert "heldBy" not in status or status["heldBy"] == []
    assert {check["name"]: check["status"] for check in status["checks"]} == {
        "Database": "Pass",
        "RateLimits": "Pass",
        "Health": "Pass",
        "Security": "Pass",
        "Deployment": "Pass",
        "Monitoring": "Pass",
        "Testing": "Unknown",
    }
    assert status["score"] == 85


def test_old_pods_serve_while_a_new_template_is_held(operator: OperatorProcess, apps: Applications) -> None:
    apps.require("MigrationJob", "first")
    apps.write_status("MigrationJob", "first", Ready="True", Verified="True")
    apps.apply("app", requires={"migrations": [{"name": "first"}]})
    eventually(lambda: apps.exists("Deployment", "app"))
    apps.roll_out("app")

    # What was released stays released, whatever becomes of the migration.
    apps.write_status("MigrationJob", "first", Ready="False", Verified="False")
    eventually(lambda: any(check["reason"] == "MigrationNotVerified" for check in apps.status("app")["checks"]))
    assert apps.condition("app", "Ready")["status"] == "True"

    apps.apply("app", image="registry.test/app:2", requires={"migrations": [{"name": "first"}]}, replicas=2)
    apps.wait_for("app", reason="HeldByMigration")
    assert apps.condition("app", "Available")["status"] == "True"
    assert apps.status("app")["image"] == "registry.test/app:1"
    # Scaling is not held: the second pod is one of the old template.
    eventually(lambda: len(apps.pods("app")) == 2, what="two pods of the old template")
    assert {pod["spec"]["containers"][0]["image"] for pod in apps.pods("app")} == {"registry.test/app:1"}

    apps.write_status("MigrationJob", "first", Ready="True", Verified="True")
    eventually(lambda: apps.status("app")["image"] == "registry.test/app:2")
    apps.roll_out("app")
    assert {pod["spec"]["containers"][0]["image"] for pod in apps.pods("app")} == {"registry.test/app:2"}


def test_a_removed_field_removes_its_object(operator: OperatorProcess, apps: Applications) -> None:
    apps.apply("app", replicas=2, apiKey={}, extraPorts=[{"name": "admin", "port": 9000}])
    eventually(lambda: apps.exists("Deployment", "app") and apps.exists("PodDisruptionBudget", "app"))
    apps.roll_out("app")
    assert apps.exists("Secret", "app-api-key")

    apps.apply("app", replicas=1, networkPolicy={"mode": "Disabled"}, serviceAccountName="default")
    for kind in ("PodDisruptionBudget", "NetworkPolicy", "ServiceAccount"):
        eventually(lambda kind=kind: not apps.exists(kind, "app"), what=f"no {kind}")  # type: ignore[misc]
    eventually(lambda: len(apps.get("Service", "app")["spec"]["ports"]) == 1)
    apps.roll_out("app")
    # The key goes last: pods of the old template could still have started from it.
    eventually(lambda: not apps.exists("Secret", "app-api-key"), what="no key")
    eventually(lambda: "apiKey" not in apps.status("app"))


def test_kubectl_scale_is_obeyed(
    operator: OperatorProcess, apps: Applications, kubectl: Kubectl, settle: Settle
) -> None:
    apps.apply("app")
    eventually(lambda: apps.exists("Deployment", "app"))
    apps.roll_out("app")
    kubectl.run("scale", "appdep", "app", "--replicas=3", "-n", apps.namespace)
    eventually(lambda: apps.get("Deployment", "app")["spec"]["replicas"] == 3)
    apps.roll_out("app")
    settle()
    assert apps.get("AppDeployment", "app")["spec"]["replicas"] == 3
    scale = json.loads(
        kubectl.run(
            "get", "--raw", f"/apis/shipkeeper.dev/v1alpha1/namespaces/{apps.namespace}/appdeployments/app/scale"
        )
    )
    assert scale["status"] == {"replicas": 3, "selector": "shipkeeper.dev/appdeployment=app"}


def test_an_idle_operator_writes_nothing(operator: OperatorProcess, apps: Applications, settle: Settle) -> None:
    start = settle()
    apps.apply("app", replicas=2, apiKey={"rotation": {"every": "90d"}}, env=[{"name": "EMPTY", "value": ""}])
    eventually(lambda: apps.exists("Deployment", "app"))
    apps.roll_out("app")
    before = settle()
    made = {
        what: count - start.get(what, 0) for what, count in before.items() if "/" not in what and "Event" not in what
    }
    kinds = ("Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount")
    expected = {f"apply {kind}": 1 for kind in kinds} | {"create Secret": 1}
    assert {what: count for what, count in made.items() if count} == expected
    time.sleep(5)
    assert operator.writes() == before


def test_drift_is_repaired(operator: OperatorProcess, apps: Applications, kubectl: Kubectl) -> None:
    apps.apply("app")
    eventually(lambda: apps.exists("Deployment", "app"))
    kubectl.run("delete", "service", "app", "-n", apps.namespace)
    eventually(lambda: apps.exists("Service", "app"))
    kubectl.run("scale", "deployment", "app", "--replicas=5", "-n", apps.namespace)
    eventually(lambda: apps.get("Deployment", "app")["spec"]["replicas"] == 1)


def test_the_key_is_rotated_without_a_gap(operator: OperatorProcess, apps: Applications) -> None:
    apps.apply("app", apiKey={"rotation": {"overlap": "3s", "revision": "1"}})
    eventually(lambda: apps.exists("Deployment", "app"))
    apps.roll_out("app")
    first = secret_data(apps)
    assert len(first["api-key"]) >= 43
    assert first["accepted"] == first["api-key"]

    apps.apply("app", apiKey={"rotation": {"overlap": "3s", "revision": "2"}})
    eventually(lambda: apps.status("app")["apiKey"]["phase"] == "Distributing")
    between = secret_data(apps)
    # Callers still read the old key; pods start with both.
    assert between["api-key"] == between["accepted-previous"] == first["api-key"]
    assert between["accepted"] != first["api-key"]
    variables = {
        each["name"] for each in apps.get("Deployment", "app")["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert variables == {"API_KEY", "API_KEY_PREVIOUS"}

    apps.roll_out("app")
    eventually(lambda: apps.status("app")["apiKey"]["phase"] in ("Overlapping", "Current"))
    assert secret_data(apps)["api-key"] == between["accepted"]
    eventually(lambda: apps.status("app")["apiKey"]["phase"] == "Current", what="the end of the overlap")
    apps.roll_out("app")
    assert secret_data(apps) == {"api-key": between["accepted"], "accepted": between["accepted"]}
    texts = operator.log_text() + json.dumps(apps.get("AppDeployment", "app"))
    assert all(key not in texts for key in (*first.values(), *between.values()))


def secret_data(apps: Applications) -> dict[str, str]:
    data = apps.get("Secret", "app-api-key")["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


def test_a_damaged_or_deleted_key_is_made_anew(operator: OperatorProcess, apps: Applications, kubectl: Kubectl) -> None:
    apps.apply("app", apiKey={})
    eventually(lambda: apps.exists("Deployment", "app"))
    apps.roll_out("app")
    first = secret_data(apps)["api-key"]
    kubectl.run("delete", "secret", "app-api-key", "-n", apps.namespace)
    # Secrets are not watched; any event of the application makes the operator look.
    apps.apply("app", apiKey={}, replicas=2)
    eventually(lambda: apps.exists("Secret", "app-api-key") and secret_data(apps)["api-key"] != first)
    apps.roll_out("app")

    kubectl.patch("secret", "app-api-key", {"data": {"accepted": "c2hvcnQ="}}, namespace=apps.namespace)
    apps.apply("app", apiKey={})
    eventually(lambda: len(secret_data(apps)["accepted"]) >= 43)


def test_somebody_elses_secret_is_left_alone(operator: OperatorProcess, apps: Applications, kubectl: Kubectl) -> None:
    kubectl.run("create", "secret", "generic", "app-api-key", "--from-literal=api-key=mine", "-n", apps.namespace)
    apps.apply("app", apiKey={})
    stalled = apps.wait_for("app", type_="Stalled", reason="NameTaken")
    assert "app-api-key" in stalled["message"]
    assert secret_data(apps) == {"api-key": "mine"}
    kubectl.run("delete", "secret", "app-api-key", "-n", apps.namespace)
    apps.apply("app", apiKey={}, replicas=2)
    eventually(lambda: apps.exists("Deployment", "app"))


def test_a_sqlite_volume_outlives_the_application(
    operator: OperatorProcess, apps: Applications, kubectl: Kubectl, settle: Settle
) -> None:
    apps.apply("app", database={"sqlite": {"size": "1Gi"}})
    claim = eventually(lambda: apps.exists("PersistentVolumeClaim", "app-data") and apps.get("pvc", "app-data"))
    assert "ownerReferences" not in claim["metadata"]
    assert apps.get("Deployment", "app")["spec"]["strategy"] == {"type": "Recreate"}
    eventually(lambda: len(apps.pods("app")) == 1)
    before = settle()
    time.sleep(3)
    assert operator.writes() == before

    kubectl.run("delete", "appdep", "app", "-n", apps.namespace)
    eventually(lambda: not apps.exists("Deployment", "app"), what="no Deployment")
    apps.apply("app", database={"sqlite": {"size": "1Gi"}})
    eventually(lambda: apps.exists("Deployment", "app"))
    assert apps.get("pvc", "app-data")["metadata"]["uid"] == claim["metadata"]["uid"]


def test_somebody_elses_volume_claim_is_left_alone(
    operator: OperatorProcess, apps: Applications, kubectl: Kubectl
) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": "app-data", "namespace": apps.namespace}
    kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
    apps.apply("app", database={"sqlite": {"size": "1Gi"}})
    assert "app-data" in apps.wait_for("app", type_="Stalled", reason="NameTaken")["message"]
    assert "labels" not in apps.get("pvc", "app-data")["metadata"]
    apps.apply("app", database={"sqlite": {"claimName": "app-data"}})
    apps.wait_for("app", reason="RollingOut")


def test_what_the_kubelet_says_becomes_a_reason(operator: OperatorProcess, apps: Applications) -> None:
    apps.apply("app")
    eventually(lambda: len(apps.pods("app")) == 1)
    (pod,) = apps.pods("app")
    missing = {"reason": "CreateContainerConfigError", "message": 'secret "database" not found'}
    apps.say(pod, state={"waiting": missing}, started=False)
    stalled = apps.wait_for("app", reason="SecretNotFound")
    assert "database" in stalled["message"]
    apps.say(pod, state={"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, started=False)
    apps.wait_for("app", reason="ImagePullFailed")
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    apps.say(pod, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended, restartCount=4, started=False)
    assert "--previous" in apps.wait_for("app", reason="CrashLoop")["message"]
    apps.say(pod, state={"running": {"startedAt": "2026-01-01T00:00:00Z"}}, started=True)
    assert "/ready" in apps.wait_for("app", reason="ProbeFailing")["message"]
    apps.say(pod, state={"running": {"startedAt": "2026-01-01T00:00:00Z"}}, started=True, ready=True)
    apps.wait_for("app", reason="Available")


def test_a_bad_overlay_is_named(operator: OperatorProcess, apps: Applications) -> None:
    apps.apply("app")
    eventually(lambda: apps.exists("Deployment", "app"))
    apps.apply("app", podTemplate={"spec": {"containers": [{"image": "x"}]}})
    stalled = apps.wait_for("app", type_="Stalled", reason="InvalidPodTemplate")
    assert "spec.podTemplate.spec.containers[0] needs the field name" in stalled["message"]
    assert apps.exists("Deployment", "app")
