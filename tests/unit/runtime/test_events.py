"""Which changes of conditions are worth an Event, and of which type."""

from typing import Any

import pytest

from shipkeeper_operator.events import transitions


def _conditions(*conditions: tuple[str, str, str]) -> list[dict[str, Any]]:
    return [
        {"type": type_, "status": status, "reason": reason, "message": f"about {reason}"}
        for type_, status, reason in conditions
    ]


READY = [("Ready", "True", "Complete")]
BUILDING = [("Ready", "False", "Building"), ("Reconciling", "True", "Building")]
PROGRESSING = [("Ready", "False", "Progressing"), ("Reconciling", "True", "Progressing")]
RETRYING = [("Ready", "False", "StoreUnreachable"), ("Reconciling", "True", "ProgressingWithRetry")]
STUCK = [("Ready", "False", "SecretMissing"), ("Stalled", "True", "SecretMissing")]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], BUILDING, [("Normal", "Building")]),
        (BUILDING, READY, [("Normal", "Complete")]),
        (READY, READY, []),
        (READY, STUCK, [("Warning", "SecretMissing")]),
        (STUCK, STUCK, []),
        (STUCK, READY, [("Normal", "Complete")]),
        (READY, BUILDING, [("Normal", "Building")]),
        (READY, RETRYING, [("Warning", "StoreUnreachable")]),
        ([], RETRYING, [("Warning", "StoreUnreachable")]),
        (
            [*READY, ("Enforced", "True", "ReadBack")],
            [*BUILDING, ("Enforced", "False", "Building")],
            [("Warning", "Building")],
        ),
        (READY, PROGRESSING, [("Normal", "Progressing")]),
        (BUILDING, STUCK, [("Warning", "SecretMissing")]),
        (READY, [*READY, ("Enforced", "True", "ReadBack")], [("Normal", "ReadBack")]),
        ([*READY, ("Enforced", "True", "ReadBack")], [*READY, ("Enforced", "False", "Lost")], [("Warning", "Lost")]),
        ([("Verified", "False", "NotYet")], [("Verified", "False", "Counting")], [("Normal", "Counting")]),
        ([], STUCK, [("Warning", "SecretMissing")]),
    ],
)
def test_transitions(before: Any, after: Any, expected: list[tuple[str, str]]) -> None:
    events = transitions(_conditions(*before), _conditions(*after))
    assert [(event.type, event.reason) for event in events] == expected
    assert all(event.message == f"about {event.reason}" for event in events)


def test_changed_message_alone_is_no_event() -> None:
    before = _conditions(*BUILDING)
    after = [{**condition, "message": "3 of 5 rows"} for condition in before]
    assert transitions(before, after) == ()
