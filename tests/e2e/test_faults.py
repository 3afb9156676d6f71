"""Faults, by causing them: a worker killed in mid-copy, the leader killed, keys and functions lost from Redis."""

import time
from typing import Any

import pytest

from demo.kubectl import Kubectl, condition
from demo.story import NAMESPACE, OPERATOR_NAMESPACE, POLICY, Story
from support.kubernetes import StoryNamespace

pytestmark = pytest.mark.e2e

ROWS = 200_000
PEOPLE = f"""
CREATE TABLE old_people (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE people (id bigserial PRIMARY KEY, name text NOT NULL, old_id bigint NOT NULL);
INSERT INTO old_people SELECT n, 'person ' || n FROM generate_series(1, {ROWS}) n;
"""
CONSOLIDATION: dict[str, Any] = {
    "database": {"urlFrom": {"name": "database", "key": "url"}},
    # Small batches, so that there is a middle in which to kill.
    "batch": {"initialSize": 500, "minSize": 100, "maxSize": 500},
    "steps": [
        {
            "name": "copy",
            "consolidate": {
                "source": "old_people",
                "target": "people",
                "key": ["id"],
                "identity": [{"column": "old_id", "source": "id"}],
                "columns": [{"name": "name", "column": "name"}, {"name": "old_id", "column": "id"}],
            },
        }
    ],
}


def copied(namespace: StoryNamespace) -> int:
    ((count,),) = namespace.sql("SELECT count(*) FROM people;")
    return int(count)


def test_a_killed_worker_and_a_killed_operator_lose_no_row(namespace: StoryNamespace) -> None:
    kubectl = namespace.kubectl
    namespace.put_secret("database", {"url": namespace.create_database()})
    namespace.sql(PEOPLE)
    namespace.apply("MigrationJob", "people", CONSOLIDATION)
    deadline = time.monotonic() + 120
    while not 0 < copied(namespace) < ROWS:
        assert time.monotonic() < deadline, "the copy did not begin"
        time.sleep(0.2)
    kubectl.run("delete", "pod", "--namespace", namespace.name, "--selector=job-name", "--grace-period=0", "--force")
    kubectl.run(
        "delete", "pod", "--namespace", OPERATOR_NAMESPACE, "--all", "--grace-period=0", "--force", "--wait=false"
    )  # fmt: skip
    at_the_kill = copied(namespace)
    found = namespace.wait_for_condition("migrationjob", "people", "Ready", reason="Complete", timeout=300)
    assert at_the_kill < ROWS, "the copy was over before the kill: it proved nothing"
    assert found["status"]["progress"]["rowsTotal"] == ROWS
    differing = """
        SELECT count(*), count(DISTINCT p.old_id), count(*) FILTER (WHERE p.name = o.name)
        FROM people p JOIN old_people o ON o.id = p.old_id;
    """
    assert namespace.sql(differing) == [[str(ROWS)] * 3]


def redis(kubectl: Kubectl, *command: str) -> str:
    login = "REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis.conf) redis-cli"
    return kubectl.exec("redis-0", "sh", "-c", f"{login} {' '.join(command)}", namespace=NAMESPACE)


def policies(kubectl: Kubectl) -> dict[str, dict[str, Any]]:
    """Return the policies on the demo's Redis: the sample's, and the one without hours that the demo adds."""
    found = kubectl.list("ratelimitpolicies", namespace=NAMESPACE)
    return {each["metadata"]["name"]: each for each in found}


@pytest.mark.parametrize(
    ("loss", "every_policy_says_so"),
    [
        # The library is the store's, shared by its policies: the first that looks puts it back for all, and says so.
        (("FUNCTION", "FLUSH"), False),
        # A compiled policy is its own: each has lost something.
        (("FLUSHALL",), True),
    ],
)
def test_what_redis_lost_is_put_back_and_said(
    story: Story, kubectl: Kubectl, loss: tuple[str, ...], every_policy_says_so: bool
) -> None:
    before = policies(kubectl)
    assert POLICY in before
    redis(kubectl, *loss)
    lost, deadline = time.time(), time.monotonic() + 30
    while True:
        found = policies(kubectl)
        said = [
            name
            for name in before
            if found[name]["status"].get("lastRepair") != before[name]["status"].get("lastRepair")
        ]
        if said and (len(said) == len(before) or not every_policy_says_so):
            break
        assert time.monotonic() < deadline, f"the loss was not repaired, or only said by {said}"
        time.sleep(0.5)
    print(f"{' '.join(loss)}: said by {', '.join(said)} {time.time() - lost:.1f} s after the loss")
    for name, policy in found.items():
        assert condition(policy, "Enforced")["status"] == "True", name
        assert policy["status"]["configHash"] == before[name]["status"]["configHash"]
    assert "shipkeeper" in redis(kubectl, "FUNCTION", "LIST")
    assert "config" in redis(kubectl, "KEYS", "'*config*'")
