"""The demo's story, asserted: what `make demo` shows must be what the cluster and the database say."""

import time
from datetime import datetime

import pytest

from demo import report
from demo.kubectl import Kubectl, condition
from demo.sends import Tries, call
from demo.story import APP, MIGRATION, NAMESPACE, POLICY, Story

pytestmark = pytest.mark.e2e

SETTLE_SECONDS = 35
STEADY_SECONDS = 30


def test_every_figure_agrees_with_an_independent_one(story: Story) -> None:
    rows = report.claims(story.migration, story.counts, story.expected)
    assert [row for row in rows if not row.holds] == []
    assert story.counts.legacy == story.expected.rows
    assert story.expected.rejected > 0, "the legacy rows hold no odd one: the story proves little"
    assert story.expected.already > 0


def test_the_migration_is_complete_and_proven_by_content(story: Story) -> None:
    assert condition(story.migration, "Verified")["status"] == "True"
    results = [step["verification"]["result"] for step in story.migration["status"]["steps"] if "verification" in step]
    assert results == ["Equal"]
    assert story.valid_indexes == 5


def test_the_policy_was_read_back(story: Story) -> None:
    assert condition(story.policy, "Enforced")["status"] == "True"
    (primary,) = story.policy["status"]["primaries"]
    assert primary["configHash"] == story.policy["status"]["configHash"]
    assert primary["libraryVersion"] == story.policy["status"]["libraryVersion"]


def test_the_application_serves_behind_its_service(story: Story) -> None:
    assert story.ready.status == 200
    assert story.ready.body["status"] == "ready"
    assert story.ready.body["database"] == story.ready.body["redis"] == "ok"
    status = story.app["status"]
    assert status["availableReplicas"] == story.app["spec"]["replicas"]
    assert status["url"].startswith(f"http://{APP}.{NAMESPACE}.svc")


def test_no_pod_of_the_application_was_older_than_its_requirements(story: Story, kubectl: Kubectl) -> None:
    finished = datetime.fromisoformat(story.migration["status"]["finishedAt"])
    pods = kubectl.list("pods", namespace=NAMESPACE, selector=f"shipkeeper.dev/appdeployment={APP}")
    assert pods
    for pod in pods:
        assert datetime.fromisoformat(pod["metadata"]["creationTimestamp"]) >= finished


def assert_accounted_for(tries: Tries, count: int) -> None:
    assert tries.tried == count
    assert tries.allowed + sum(each["count"] for each in tries.refused.values()) == count
    for rule, refusal in tries.refused.items():
        assert refusal["retry_after_seconds"] is None or refusal["retry_after_seconds"] > 0, rule


def test_the_policy_decides_every_send(story: Story) -> None:
    assert_accounted_for(story.sends.campaign, 20)
    # At 90 to 180 s between two messages, of twenty sends one after another at most the first can pass.
    assert story.sends.campaign.allowed <= 1


def test_the_amounts_alone_let_fifteen_through(story: Story) -> None:
    assert_accounted_for(story.sends.amounts, 20)
    assert story.sends.amounts.allowed == 15
    assert set(story.sends.amounts.refused) <= {"day", "execution"}


def test_the_api_wants_its_key(story: Story, kubectl: Kubectl) -> None:
    assert call(kubectl, "GET", "/campaigns/status", namespace=NAMESPACE).status == 200
    script = "import urllib.request; urllib.request.urlopen('http://birthday-app/campaigns/status')"
    printed = kubectl.exec(f"deployment/{APP}", "sh", "-c", f'python3 -c "{script}" 2>&1 || true', namespace=NAMESPACE)
    assert "401" in printed


def test_kubectl_shows_the_three_together(story: Story, kubectl: Kubectl) -> None:
    printed = kubectl.run("get", "shipkeeper", "--namespace", NAMESPACE)
    for name in (APP, POLICY, MIGRATION):
        assert name in printed


def test_an_idle_operator_writes_nothing(story: Story, kubectl: Kubectl) -> None:
    # Use of the limits is read at a slow pace: what the calls before this test used may still be on its way to status.
    time.sleep(SETTLE_SECONDS)
    before = written(kubectl)
    time.sleep(STEADY_SECONDS)
    assert written(kubectl) == before


def written(kubectl: Kubectl) -> dict[str, str]:
    """Return the resourceVersion of every object that the operator has a hand in: any write changes one."""
    kinds = (
        "appdeployments,ratelimitpolicies,migrationjobs,deployments,services,jobs,configmaps,serviceaccounts,"
        "roles,rolebindings,poddisruptionbudgets,networkpolicies,secrets,events"
    )
    columns = "custom-columns=K:.kind,N:.metadata.name,V:.metadata.resourceVersion"
    printed = kubectl.run("get", kinds, "--namespace", NAMESPACE, "--output", columns, "--no-headers")
    lines = (line.split() for line in printed.splitlines())
    return {f"{kind}/{name}": version for kind, name, version in lines}
