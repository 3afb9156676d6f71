"""The life of a generated API key: one step at a time, each only when it is safe."""

from datetime import timedelta
from typing import Any

from shipkeeper_operator.children.appdeployment import build_deployment
from shipkeeper_operator.children.appdeployment_pod import AcceptedKeys, build_pod_template, template_hash
from shipkeeper_operator.reconcile.appdeployment import reconcile
from shipkeeper_operator.reconcile.appdeployment_apikey import decide_key
from shipkeeper_operator.reconcile.appdeployment_facts import (
    DeleteApiKey,
    DistributeNewKey,
    GenerateApiKey,
    ObservedApiKey,
    ObservedApp,
    PublishNewKey,
    RetirePreviousKey,
)
from support.applications import NOW, api_key, application, as_served

EVERY_30_DAYS = {"rotation": {"every": "30d", "overlap": "1h"}}


def live(keys: AcceptedKeys | None, *, have: int = 1) -> dict[str, Any]:
    resource = application(apiKey={}) if keys is not None else application()
    template = build_pod_template(resource, keys=keys, scrape_annotations=True)
    return as_served(build_deployment(resource, template=template, released="hash"), have=have)


def decide(spec: Any, found: ObservedApiKey | None, *, deployment: Any = None, later: timedelta = timedelta(0)) -> Any:
    resource = application(apiKey=spec) if spec is not None else application()
    return decide_key(resource, ObservedApp(api_key=found, deployment=deployment), now=NOW + later)


def test_none_declared_none_made() -> None:
    decision = decide(None, None)
    assert (decision.effects, decision.status, decision.is_missing) == ((), None, False)


def test_a_named_key_is_yours() -> None:
    decision = decide({"keyFrom": {"name": "mine", "key": "k"}}, None)
    assert decision.effects == ()
    assert (decision.status.phase, decision.status.secret_name, decision.status.key) == ("External", "mine", "k")


def test_a_missing_key_is_generated_before_any_pod_starts() -> None:
    resource = application(apiKey={"rotation": {"revision": "7"}})
    outcome = reconcile(resource, ObservedApp(), now=NOW)
    (generate,) = outcome.effects
    assert isinstance(generate, GenerateApiKey)
    assert (generate.metadata["name"], generate.revision, generate.replaces) == ("app-api-key", "7", None)
    assert generate.metadata["ownerReferences"][0]["uid"] == "uid-1"
    assert not [child for child in outcome.children if child["kind"] == "Deployment"]
    assert [each.reason for each in outcome.status.conditions if each.type == "Ready"] == ["GeneratingApiKey"]
    # Where pods run already, they are left alone meanwhile.
    again = reconcile(resource, ObservedApp(deployment=live(AcceptedKeys("k0"))), now=NOW)
    assert again.retained == (("Deployment", "app"),)


def test_a_damaged_key_is_replaced() -> None:
    (generate,) = decide({}, api_key(is_whole=False)).effects
    assert generate.replaces == "uid-3"


def test_somebody_elses_secret_is_left_alone() -> None:
    resource = application(apiKey={})
    outcome = reconcile(resource, ObservedApp(api_key=api_key(is_ours=False)), now=NOW)
    assert outcome.effects == ()
    stalled = next(each for each in outcome.status.conditions if each.type == "Stalled")
    assert stalled.reason == "NameTaken"


def test_a_current_key_is_left_alone_until_it_is_old() -> None:
    decision = decide(EVERY_30_DAYS, api_key(), deployment=live(AcceptedKeys("k1")), later=timedelta(days=29))
    assert decision.effects == ()
    assert decision.again_after == timedelta(days=1)
    assert decision.status.phase == "Current"
    assert decide({}, api_key()).again_after is None
    (step,) = decide(EVERY_30_DAYS, api_key(), later=timedelta(days=30)).effects
    assert isinstance(step, DistributeNewKey)
    assert step.caller_id == "k1"


def test_another_revision_begins_a_rotation() -> None:
    (step,) = decide({"rotation": {"revision": "2"}}, api_key(revision="1")).effects
    assert isinstance(step, DistributeNewKey)
    assert step.revision == "2"
    assert decide({"rotation": {"revision": "2"}}, api_key(revision="2")).effects == ()


def test_callers_get_the_new_key_once_every_pod_accepts_it() -> None:
    between = api_key(caller="k1", current="k2", previous="k1")
    both = AcceptedKeys("k2", "k1")
    for deployment in (live(AcceptedKeys("k1")), live(both, have=0)):
        waiting = decide(EVERY_30_DAYS, between, deployment=deployment)
        assert (waiting.effects, waiting.status.phase) == ((), "Distributing")
        assert waiting.accepted == both
    (step,) = decide(EVERY_30_DAYS, between, deployment=live(both)).effects
    assert isinstance(step, PublishNewKey)
    assert step.previous_valid_until == NOW + timedelta(hours=1)
    # Where no pod was started yet, nobody is in the way.
    (step,) = decide(EVERY_30_DAYS, between, deployment=None).effects
    assert isinstance(step, PublishNewKey)


def test_the_previous_key_ends_with_the_overlap() -> None:
    overlapping = api_key(caller="k2", current="k2", previous="k1", previous_valid_until=NOW + timedelta(hours=1))
    waiting = decide(EVERY_30_DAYS, overlapping)
    assert (waiting.effects, waiting.again_after) == ((), timedelta(hours=1))
    assert waiting.status.previous_valid_until == NOW + timedelta(hours=1)
    (step,) = decide(EVERY_30_DAYS, overlapping, later=timedelta(hours=1)).effects
    assert isinstance(step, RetirePreviousKey)
    assert step.accepted_id == "k2"


def test_a_key_that_is_no_longer_declared_goes_when_no_pod_can_start_from_it() -> None:
    kept = decide(None, api_key(), deployment=live(AcceptedKeys("k1")))
    assert (kept.effects, kept.status.key_id) == ((), "k1")
    assert decide(None, api_key(), deployment=live(None, have=0)).effects == ()
    for deployment in (live(None), None):
        (step,) = decide(None, api_key(), deployment=deployment).effects
        assert step == DeleteApiKey(namespace="shop", name="app-api-key", uid="uid-3")
    assert decide(None, api_key(is_ours=False)).effects == ()


def test_a_rotation_is_not_held_by_requirements() -> None:
    spec: dict[str, Any] = {"apiKey": {}, "requires": {"migrations": [{"name": "m"}]}}
    resource = application(**spec)
    judged = build_pod_template(resource, keys=None, scrape_annotations=True)
    old = build_pod_template(resource, keys=AcceptedKeys("k1"), scrape_annotations=True)
    deployment = as_served(build_deployment(resource, template=old, released=template_hash(judged)), have=1)
    found = api_key(caller="k1", current="k2", previous="k1")
    outcome = reconcile(resource, ObservedApp(api_key=found, deployment=deployment), now=NOW)
    (built,) = [child for child in outcome.children if child["kind"] == "Deployment"]
    assert built["spec"]["template"]["metadata"]["annotations"]["shipkeeper.dev/api-key-ids"] == "k2,k1"
    assert outcome.status.held_by == ()
