"""Every CEL rule of the CRDs on a real API server: what breaks it is refused by its message, what keeps it is not."""

from functools import cache
from typing import Any

import pytest

from shipkeeper.resources import KINDS
from shipkeeper.resources.base import API_VERSION
from shipkeeper.resources.crd import resource_schema
from shipkeeper.resources.kinds import Kind
from shipkeeper.resources.schema import walk
from support.dry_run import Admission, RefusedError
from support.paths import changed
from support.rules import appdeployment, migrationjob, ratelimitpolicy
from support.rules.case import Change, RuleCase
from support.structural import complete_objects

CASES = {
    "AppDeployment": appdeployment.CASES,
    "RateLimitPolicy": ratelimitpolicy.CASES,
    "MigrationJob": migrationjob.CASES,
}


@cache
def rules() -> tuple[tuple[Kind, str, str], ...]:
    """Return every rule of every kind: its place and its message."""
    return tuple(
        (kind, place, rule["message"])
        for kind in KINDS
        for place, node in walk(resource_schema(kind))
        for rule in node.get("x-kubernetes-validations", ())
    )


def message_of(kind: Kind, case: RuleCase) -> str:
    """Return the whole message of the one rule that a case is about."""
    told = [message for owner, place, message in rules() if owner is kind and place == case.rule]
    (message,) = [message for message in told if case.message in message]
    return message


def base_object(kind: Kind, case: RuleCase) -> dict[str, Any]:
    (found,) = [each for each in complete_objects(kind) if each["metadata"]["name"] == case.base]
    return found


ALL_CASES = [
    pytest.param(kind, case, id=f"{kind.kind}-{index}-{case.rule or 'object'}")
    for kind in KINDS
    for index, case in enumerate(CASES[kind.kind])
]


def test_every_rule_has_a_refused_case() -> None:
    shown = {(kind.kind, case.rule, message_of(kind, case)) for kind in KINDS for case in CASES[kind.kind]}
    assert {(kind.kind, place, message) for kind, place, message in rules()} - shown == set()


def test_every_rule_has_an_accepted_case_of_its_own() -> None:
    kept = {
        (kind.kind, case.rule, message_of(kind, case)) for kind in KINDS for case in CASES[kind.kind] if case.accepted
    }
    assert {(kind.kind, place, message) for kind, place, message in rules()} - kept == set()


@pytest.mark.parametrize(("kind", "case"), ALL_CASES)
def test_what_breaks_a_rule_is_refused_with_its_message(admission: Admission, kind: Kind, case: RuleCase) -> None:
    with pytest.raises(RefusedError) as refused:
        submit(admission, kind, case, case.refused)
    told = [(cause.field, cause.message) for cause in refused.value.causes]
    expected = message_of(kind, case)
    assert [field for field, message in told if message.endswith(f": {expected}")] == [case.field], told


@pytest.mark.parametrize(("kind", "case"), ALL_CASES)
def test_what_keeps_a_rule_is_accepted(admission: Admission, kind: Kind, case: RuleCase) -> None:
    submit(admission, kind, case, case.accepted)


def submit(admission: Admission, kind: Kind, case: RuleCase, changes: tuple[Change, ...]) -> None:
    """Ask for a base with changes: as a new object, or in place of the one that the case has stored."""
    base = base_object(kind, case)
    if case.stored is None:
        admission.create(kind, changed(base, *changes))
        return
    name = f"stored-{CASES[kind.kind].index(case)}"
    stored = admission.ensure(kind, changed(base, ("metadata.name", name), *case.stored))
    if "status" in base:
        stored = admission.write_status(kind, name, base["status"])
    version = stored["metadata"]["resourceVersion"]
    renamed = changed(base, ("metadata.name", name), ("metadata.resourceVersion", version), *changes)
    admission.replace(kind, renamed)


BAD_INPUT = [
    (
        "RateLimitPolicy",
        ("spec.timeZone", "Mars/Olympus"),
        "spec.timeZone",
        "unknown time zone Mars/Olympus evaluating rule: ",
    ),
    ("RateLimitPolicy", ("spec.limits[0].amount", 0), "spec.limits[0].amount", "greater than or equal to 1"),
    ("RateLimitPolicy", ("spec.limits[0].amount", -5), "spec.limits[0].amount", "greater than or equal to 1"),
    ("RateLimitPolicy", ("spec.spacing.min", "300s"), "spec.spacing", "spacing.min must not be above spacing.max"),
    ("RateLimitPolicy", ("spec.limits[0].period", "Fortnight"), "spec.limits[0].period", "should match"),
    (
        "RateLimitPolicy",
        ("spec.activeHours.rules[0].times[0].end", "07:00"),
        "spec.activeHours.rules[0].times[0]",
        "must differ",
    ),
    (
        "RateLimitPolicy",
        ("spec.activeHours.rules[0].times[0].start", "25:00"),
        "spec.activeHours.rules[0].times[0].start",
        "should match",
    ),
    ("MigrationJob", ("spec.steps[1].consolidate.key", []), "spec.steps[1].consolidate.key", "at least 1 items"),
    (
        "MigrationJob",
        ("spec.steps[1].consolidate.source", ""),
        "spec.steps[1].consolidate.source",
        "at least 1 chars long",
    ),
    ("MigrationJob", ("spec.steps[1].name", "indexes"), "spec.steps[1]", 'Duplicate value: {"name":"indexes"}'),
    ("AppDeployment", ("spec.image", ""), "spec.image", "at least 1 chars long"),
    ("AppDeployment", ("spec.port", 0), "spec.port", "greater than or equal to 1"),
    ("AppDeployment", ("spec.port", 65536), "spec.port", "less than or equal to 65535"),
    ("AppDeployment", ("spec.service.port", 99999), "spec.service.port", "less than or equal to 65535"),
]


@pytest.mark.parametrize(("kind_name", "change", "field", "words"), BAD_INPUT)
def test_bad_input_is_refused_by_the_name_of_the_field(
    admission: Admission, kind_name: str, change: Change, field: str, words: str
) -> None:
    (kind,) = [kind for kind in KINDS if kind.kind == kind_name]
    with pytest.raises(RefusedError) as refused:
        admission.create(kind, changed(complete_objects(kind)[0], change))
    assert [cause.field for cause in refused.value.causes if words in cause.message] == [field], refused.value.causes


@pytest.mark.parametrize("missing", ["key", "source", "target"])
def test_a_consolidation_without_a_key_or_a_table_is_refused(admission: Admission, missing: str) -> None:
    (kind,) = [kind for kind in KINDS if kind.kind == "MigrationJob"]
    manifest = complete_objects(kind)[0]
    del manifest["spec"]["steps"][1]["consolidate"][missing]
    with pytest.raises(RefusedError) as refused:
        admission.create(kind, manifest)
    assert (f"spec.steps[1].consolidate.{missing}", "Required value") in [
        (cause.field, cause.message) for cause in refused.value.causes
    ]


def test_replicas_with_a_sqlite_volume_are_refused_with_the_fix(admission: Admission) -> None:
    (kind,) = [kind for kind in KINDS if kind.kind == "AppDeployment"]
    spec = {"image": "app:1", "replicas": 2, "database": {"sqlite": {"claimName": "data"}}}
    manifest = {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": {"name": "two"}, "spec": spec}
    with pytest.raises(RefusedError) as refused:
        admission.create(kind, manifest)
    assert refused.value.message == (
        'AppDeployment.shipkeeper.dev "two" is invalid: spec.replicas: Invalid value: spec.replicas must be 0 or 1 '
        "with spec.database.sqlite: a SQLite file has one writer; give spec.database.urlFrom (PostgreSQL) to run more"
    )
