"""The volume claim of a SQLite file: made once, grown, never touched where it is somebody else's."""

from shipkeeper_operator.reconcile.appdeployment import reconcile, references
from shipkeeper_operator.reconcile.appdeployment_facts import EnsureVolumeClaim, ObservedApp, ObservedClaim
from support.applications import NOW, application

RESOURCE = application(database={"sqlite": {"size": "2Gi"}})


def effects(claim: ObservedClaim | None) -> tuple[object, ...]:
    return reconcile(RESOURCE, ObservedApp(claim=claim), now=NOW).effects


def test_a_missing_claim_is_made() -> None:
    (effect,) = effects(None)
    assert isinstance(effect, EnsureVolumeClaim)
    assert effect.manifest["metadata"]["name"] == "app-data"
    assert ("PersistentVolumeClaim", "app-data") in set(references(RESOURCE))


def test_a_claim_that_is_there_is_left_alone_unless_it_is_too_small() -> None:
    assert effects(ObservedClaim(phase="Bound", is_ours=True)) == ()
    assert len(effects(ObservedClaim(phase="Bound", is_ours=True, too_small=True))) == 1
    assert effects(ObservedClaim(phase="Bound", is_ours=False, too_small=True)) == ()


def test_without_a_file_there_is_no_claim() -> None:
    assert reconcile(application(), ObservedApp(), now=NOW).effects == ()
