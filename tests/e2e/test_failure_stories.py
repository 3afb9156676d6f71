"""One failure story per resource: a stable reason, an Event, no secret in any text, and recovery once mended."""

from typing import Any

import pytest

from demo.cluster import APP_IMAGE, ROOT
from support.kubernetes import StoryNamespace

pytestmark = pytest.mark.e2e

PEOPLE = """
CREATE TABLE old_people (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE people (id bigserial PRIMARY KEY, name text NOT NULL, old_id bigint NOT NULL);
INSERT INTO old_people SELECT n, 'person ' || n FROM generate_series(1, 3000) n;
"""
COPY_PEOPLE = {
    "name": "copy",
    "consolidate": {
        "source": "old_people",
        "target": "people",
        "key": ["id"],
        "identity": [{"column": "old_id", "source": "id"}],
        "columns": [{"name": "name", "column": "name"}, {"name": "old_id", "column": "id"}],
    },
}


def consolidation(**spec: Any) -> dict[str, Any]:
    return {"database": {"urlFrom": {"name": "database", "key": "url"}}, "steps": [COPY_PEOPLE], **spec}


def policy(secret: str) -> dict[str, Any]:
    limits = [{"name": "day", "amount": 15, "period": "Day"}]
    return {"store": {"urlFrom": {"name": secret, "key": "url"}}, "limits": limits}


def assert_silent(namespace: StoryNamespace, *secrets: str) -> None:
    texts = namespace.all_texts()
    assert [each for each in secrets if each in texts] == []


def assert_event(namespace: StoryNamespace, name: str, reason: str) -> None:
    events = namespace.events(name)
    assert ("Warning", reason) in {(type_, why) for type_, why, _ in events}, events


def test_a_migration_waits_for_its_secret(namespace: StoryNamespace) -> None:
    url = namespace.create_database()
    namespace.sql(PEOPLE)
    namespace.apply("MigrationJob", "people", consolidation())
    namespace.wait_for_condition("migrationjob", "people", "Stalled", reason="SecretNotFound")
    assert_event(namespace, "people", "SecretNotFound")

    namespace.put_secret("database", {"adress": url})
    namespace.wait_for_condition("migrationjob", "people", "Stalled", reason="SecretKeyMissing")

    namespace.put_secret("database", {"url": url})
    found = namespace.wait_for_condition("migrationjob", "people", "Ready", reason="Complete", timeout=180)
    assert found["status"]["progress"]["rowsCopied"] == 3000
    assert namespace.sql("SELECT count(*), count(DISTINCT old_id) FROM people;") == [["3000", "3000"]]
    assert_silent(namespace, namespace.password())


def test_a_migration_whose_copy_was_altered_is_never_verified(namespace: StoryNamespace) -> None:
    url = namespace.create_database()
    namespace.put_secret("database", {"url": url})
    namespace.sql(PEOPLE)
    namespace.sql(
        """
        CREATE FUNCTION alter_one() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN IF NEW.old_id = 1234 THEN NEW.name := NEW.name || '!'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER alter_one BEFORE INSERT ON people FOR EACH ROW EXECUTE FUNCTION alter_one();
        """
    )
    namespace.apply("MigrationJob", "people", consolidation())
    found = namespace.wait_for_condition("migrationjob", "people", "Stalled", reason="VerificationFailed", timeout=180)
    assert_event(namespace, "people", "VerificationFailed")
    (step,) = found["status"]["steps"]
    assert step["verification"]["result"] == "Different"
    assert [(each["key"], each["kind"]) for each in step["verification"]["differences"]] == [("1234", "Changed")]

    # A person mends the row and, as the message says, asks for another verification by a change of the spec.
    namespace.sql("DROP TRIGGER alter_one ON people; UPDATE people SET name = 'person 1234' WHERE old_id = 1234;")
    namespace.apply("MigrationJob", "people", consolidation(verification={"rangeSize": 1000}))
    found = namespace.wait_for_condition("migrationjob", "people", "Verified", reason="ContentEqual", timeout=180)
    assert found["status"]["phase"] == "Complete"
    assert_silent(namespace, namespace.password())


def test_a_policy_waits_for_its_redis(namespace: StoryNamespace) -> None:
    password = "not-to-be-seen-anywhere"
    url = f"redis://:{password}@redis.{namespace.name}.svc:6379/0"
    namespace.put_secret("redis", {"url": url})
    namespace.apply("RateLimitPolicy", "limits", policy("redis"))
    namespace.wait_for_condition(
        "ratelimitpolicy", "limits", "Enforced", status="False", reason="StoreUnreachable", timeout=90
    )
    assert_event(namespace, "limits", "StoreUnreachable")

    namespace.put_secret("redis-config", {"redis.conf": f"requirepass {password}\nappendonly yes\ndir /data\n"})
    manifest = ROOT / "hack/demo/manifests/redis.yaml"
    namespace.kubectl.run("apply", "--server-side", "--namespace", namespace.name, "-f", str(manifest))
    found = namespace.wait(
        "ratelimitpolicy",
        "limits",
        until=lambda found: any(
            each["type"] == "Enforced" and each["status"] == "True" for each in found["status"]["conditions"]
        ),
        what="Enforced",
        timeout=120,
    )
    assert found["status"]["configHash"]
    assert_silent(namespace, password)


def test_an_application_that_never_becomes_ready_says_so(namespace: StoryNamespace) -> None:
    spec: dict[str, Any] = {
        "image": APP_IMAGE,
        "command": ["python3", "-m", "http.server", "8000"],
        "probes": {
            "startup": {"path": "/"},
            "liveness": {"path": "/"},
            "readiness": {"path": "/never", "period": "1s"},
        },
    }
    namespace.apply("AppDeployment", "pages", spec)
    namespace.wait_for_condition("appdeployment", "pages", "Ready", status="False", reason="ProbeFailing", timeout=120)
    assert_event(namespace, "pages", "ProbeFailing")

    spec["probes"]["readiness"]["path"] = "/"
    namespace.apply("AppDeployment", "pages", spec)
    found = namespace.wait(
        "appdeployment",
        "pages",
        until=lambda found: any(
            each["type"] == "Ready" and each["status"] == "True" for each in found["status"]["conditions"]
        ),
        what="Ready",
        timeout=120,
    )
    assert found["status"]["availableReplicas"] == 1
