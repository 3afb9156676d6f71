"""The base types of all resources, and reading a whole object."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from shipkeeper.resources import KINDS
from shipkeeper.resources.base import API_VERSION, Condition, Duration, Instant, SecretKeyReference, parse_duration
from shipkeeper.resources.kinds import NAME_TOO_LONG
from shipkeeper.resources.ratelimitpolicy import KIND

duration = TypeAdapter(Duration)
instant = TypeAdapter(Instant)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("0s", timedelta()),
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("250ms", timedelta(milliseconds=250)),
        ("1.5h", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("99999999d99999999d99999999d", timedelta(days=3 * 99999999)),
    ],
)
def test_a_duration_has_a_length(text: str, length: timedelta) -> None:
    assert parse_duration(text) == length
    assert duration.validate_python(text) == text


@pytest.mark.parametrize("text", ["", "s", "90", "-1s", "1 h", "1w", "1h\n", "١s", "123456789s", "1s" * 17, "1.s"])
def test_another_form_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="write for example 90s, 5m, 1h30m or 7d"):
        parse_duration(text)
    with pytest.raises(ValidationError):
        duration.validate_python(text)


@given(st.text(alphabet="0123456789.mshd", max_size=32))
def test_a_duration_is_a_length_or_an_error_and_nothing_else(text: str) -> None:
    try:
        assert parse_duration(text) >= timedelta()
    except ValueError:
        with pytest.raises(ValidationError):
            duration.validate_python(text)


@pytest.mark.parametrize(
    "text",
    ["2026-03-01T09:30:00Z", "2026-03-01T10:30:00+01:00", "2026-03-01T09:30:00.250Z", "2026-03-01T09:30:00.250000Z"],
)
def test_an_instant_is_utc_with_whole_seconds_on_the_wire(text: str) -> None:
    assert instant.dump_python(instant.validate_python(text), mode="json") == "2026-03-01T09:30:00Z"


def test_an_instant_keeps_its_value_in_python() -> None:
    local = datetime(2026, 3, 1, 10, 30, tzinfo=timezone(timedelta(hours=1)))
    assert instant.validate_python(local) == datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize("value", ["2026-03-01T09:30:00", datetime(2026, 3, 1, 9, 30), "yesterday"])
def test_an_instant_without_a_zone_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        instant.validate_python(value)


def test_a_model_is_written_in_camel_case_without_what_is_absent() -> None:
    condition = Condition(
        type="Ready",
        status="True",
        last_transition_time=datetime(2026, 3, 1, 9, 30, tzinfo=UTC),
        reason="Enforced",
        message="Well.",
    )
    assert condition.to_wire() == {
        "type": "Ready",
        "status": "True",
        "lastTransitionTime": "2026-03-01T09:30:00Z",
        "reason": "Enforced",
        "message": "Well.",
    }


def test_a_model_cannot_be_changed_and_takes_no_unknown_field() -> None:
    reference = SecretKeyReference(name="redis", key="url")
    with pytest.raises(ValidationError, match="frozen"):
        reference.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        SecretKeyReference.model_validate({"name": "redis", "key": "url", "optional": True})


def manifest(**changes: Any) -> dict[str, Any]:
    spec = {
        "store": {"urlFrom": {"name": "redis", "key": "url"}},
        "limits": [{"name": "day", "amount": 1, "period": "Day"}],
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "RateLimitPolicy",
        "metadata": {"name": "limits"},
        "spec": spec,
        **changes,
    }


def test_an_object_is_read_with_what_the_api_server_adds() -> None:
    metadata = {"name": "limits", "namespace": "birthday", "generation": 3, "managedFields": [], "uid": "u"}
    resource = KIND.parse(manifest(metadata=metadata))
    assert (resource.metadata.namespace, resource.metadata.generation, resource.status) == ("birthday", 3, None)


@pytest.mark.parametrize("changes", [{"kind": "MigrationJob"}, {"apiVersion": "shipkeeper.dev/v1"}])
def test_another_kind_is_refused_by_name(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"expected apiVersion shipkeeper\.dev/v1alpha1 and kind RateLimitPolicy"):
        KIND.parse(manifest(**changes))


def test_a_name_from_which_no_child_can_be_named_is_refused() -> None:
    assert KIND.parse(manifest(metadata={"name": "a" * 52})).metadata.name == "a" * 52
    with pytest.raises(ValueError, match=r"metadata\.name must be at most 52") as refused:
        KIND.parse(manifest(metadata={"name": "a" * 53}))
    assert str(refused.value) == NAME_TOO_LONG


def test_an_error_names_the_field() -> None:
    broken = manifest()
    broken["spec"] = {**broken["spec"], "timeZone": "Mars/Olympus"}
    with pytest.raises(ValidationError, match="'Mars/Olympus' is not an IANA time zone"):
        KIND.parse(broken)


def test_there_are_three_kinds_with_names_of_their_own() -> None:
    assert {kind.kind for kind in KINDS} == {"AppDeployment", "RateLimitPolicy", "MigrationJob"}
    names = [name for kind in KINDS for name in (kind.plural, kind.singular, *kind.short_names)]
    assert len(set(names)) == len(names)
