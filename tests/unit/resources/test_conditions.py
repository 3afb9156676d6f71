"""Conditions as kstatus reads them."""

from datetime import UTC, datetime, timedelta

import pytest

from shipkeeper.resources import conditions
from shipkeeper.resources.base import Condition
from shipkeeper.resources.conditions import Claim, dated, find, is_true

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=5)


def said(claims: tuple[Claim, ...]) -> dict[str, str]:
    return {claim.type: claim.status for claim in claims}


def test_ready_stands_alone() -> None:
    assert said(conditions.ready("Enforced", "Well.")) == {"Ready": "True"}


def test_reconciling_and_stalled_are_there_only_while_they_are_true() -> None:
    assert said(conditions.reconciling("Waiting", "Wait.")) == {"Ready": "False", "Reconciling": "True"}
    assert said(conditions.stalled("InvalidSpec", "Mend it.")) == {"Ready": "False", "Stalled": "True"}


@pytest.mark.parametrize("claims", [conditions.reconciling("Why", "What."), conditions.stalled("Why", "What.")])
def test_both_conditions_say_the_same(claims: tuple[Claim, ...]) -> None:
    assert {(claim.reason, claim.message) for claim in claims} == {("Why", "What.")}


def test_a_failure_that_is_retried_keeps_its_reason_on_ready() -> None:
    claims = conditions.retrying("StoreUnavailable", "Connection refused.")
    assert {claim.type: claim.reason for claim in claims} == {
        "Ready": "StoreUnavailable",
        "Reconciling": conditions.WITH_RETRY,
    }
    assert said(claims) == {"Ready": "False", "Reconciling": "True"}


def test_a_first_condition_is_dated_now() -> None:
    (condition,) = dated(conditions.ready("Enforced", "Well."), previous=(), generation=2, now=NOON)
    assert (condition.last_transition_time, condition.observed_generation) == (NOON, 2)


def test_the_same_status_keeps_its_date_whatever_else_changes() -> None:
    before = dated(conditions.reconciling("Waiting", "Wait."), previous=(), generation=1, now=NOON)
    after = dated(conditions.reconciling("Copying", "Copies."), previous=before, generation=2, now=LATER)
    assert [condition.last_transition_time for condition in after] == [NOON, NOON]
    assert [(condition.reason, condition.observed_generation) for condition in after] == [("Copying", 2)] * 2


def test_another_status_is_dated_anew() -> None:
    before = dated(conditions.reconciling("Waiting", "Wait."), previous=(), generation=1, now=NOON)
    (after,) = dated(conditions.ready("Enforced", "Well."), previous=before, generation=1, now=LATER)
    assert (after.status, after.last_transition_time) == ("True", LATER)


def test_a_condition_that_was_gone_is_dated_anew() -> None:
    first = dated(conditions.reconciling("Waiting", "Wait."), previous=(), generation=1, now=NOON)
    between = dated(conditions.ready("Enforced", "Well."), previous=first, generation=1, now=LATER)
    again = dated(
        conditions.reconciling("Waiting", "Wait."), previous=between, generation=1, now=LATER + timedelta(minutes=5)
    )
    reconciling = find(again, "Reconciling")
    assert reconciling is not None
    assert reconciling.last_transition_time == LATER + timedelta(minutes=5)


def test_dating_the_same_claims_again_changes_nothing() -> None:
    claims = (*conditions.stalled("InvalidSpec", "Mend it."), Claim("Enforced", "Unknown", "InvalidSpec", "Not tried."))
    before = dated(claims, previous=(), generation=1, now=NOON)
    assert dated(claims, previous=before, generation=1, now=LATER) == before


def test_finding_a_condition() -> None:
    held: tuple[Condition, ...] = dated(conditions.reconciling("Waiting", "Wait."), previous=(), generation=1, now=NOON)
    assert is_true(held, "Reconciling")
    assert not is_true(held, "Ready")
    assert not is_true(held, "Enforced")
    assert find(held, "Enforced") is None
