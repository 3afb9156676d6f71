"""The models refuse what the API server refuses, in the same words: who has no cluster is told the same.

The cases are those that tests/cluster/resources puts to a real API server.
"""

from typing import Any

import pytest

from shipkeeper.resources import KINDS
from shipkeeper.resources.crd import resource_schema
from shipkeeper.resources.kinds import Kind
from shipkeeper.resources.schema import walk
from support.paths import changed
from support.rules import appdeployment, migrationjob, ratelimitpolicy
from support.rules.case import RuleCase
from support.structural import complete_objects

CASES = {
    "AppDeployment": appdeployment.CASES,
    "RateLimitPolicy": ratelimitpolicy.CASES,
    "MigrationJob": migrationjob.CASES,
}
# Rules that compare with the object as it was need that object; the models see one at a time. And a
# name that a Service can have matters only where there are Services.
_SERVICE_NAME = "metadata.name must be a DNS label"
ALL_CASES = [
    pytest.param(kind, case, id=f"{kind.kind}-{index}-{case.rule or 'object'}")
    for kind in KINDS
    for index, case in enumerate(CASES[kind.kind])
    if case.stored is None and case.message != _SERVICE_NAME
]


def base_object(kind: Kind, case: RuleCase) -> dict[str, Any]:
    (found,) = [each for each in complete_objects(kind) if each["metadata"]["name"] == case.base]
    return found


def message_of(kind: Kind, case: RuleCase) -> str:
    rules = dict(walk(resource_schema(kind)))[case.rule]["x-kubernetes-validations"]
    (message,) = [rule["message"] for rule in rules if case.message in rule["message"]]
    return str(message)


@pytest.mark.parametrize(("kind", "case"), ALL_CASES)
def test_what_the_api_server_refuses_the_model_refuses_in_the_same_words(kind: Kind, case: RuleCase) -> None:
    with pytest.raises(ValueError, match=r"validation error|metadata") as refused:
        kind.parse(changed(base_object(kind, case), *case.refused))
    if case.rule.rsplit(".", 1)[-1] not in ("timeZone", "naiveZone"):  # The model can name the unknown zone.
        assert message_of(kind, case) in str(refused.value)


@pytest.mark.parametrize(("kind", "case"), ALL_CASES)
def test_what_the_api_server_accepts_the_model_accepts(kind: Kind, case: RuleCase) -> None:
    kind.parse(changed(base_object(kind, case), *case.accepted))
