"""What a policy and a call can say besides limits: repeated requests, reservations, shadow, subjects, edits, losses."""

from datetime import timedelta
from typing import Any

import pytest

from shipkeeper.limits import ExecutionRequired, Limiter, LimiterUsageError
from support.limit_policies import NAMESPACE, PATIENT, TimedPolicy, TimedPolicyMaker, install, milliseconds_at
from support.redis_server import RedisServer

pytestmark = pytest.mark.integration

NOW = milliseconds_at("2026-11-24T10:00")
DAY = 24 * 3600 * 1000


def per_day(amount: int, **more: Any) -> dict[str, Any]:
    return {"limits": [{"name": "day", "amount": amount, "period": "Day"} | more]}


def left(policy: TimedPolicy, subject: str = "default") -> dict[str, int]:
    return {limit.name: limit.remaining for limit in policy.limiter.peek(subject).limits}


def test_a_repeated_request_is_charged_once(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(5), NOW)
    first = policy.limiter.acquire(request_id="send-1")
    again = policy.limiter.acquire(request_id="send-1")
    other = policy.limiter.acquire(request_id="send-2")
    assert (first.replayed, again.replayed, other.replayed) == (False, True, False)
    assert again.allowed
    assert again.limits == first.limits
    assert left(policy) == {"day": 3}


def test_a_denied_request_may_be_repeated(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(1), NOW)
    policy.limiter.acquire()
    assert not policy.limiter.acquire(request_id="send-1").allowed
    policy.set_clock(NOW + DAY)
    assert policy.limiter.acquire(request_id="send-1").allowed


def test_a_committed_reservation_stays_charged(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(5), NOW)
    reservation = policy.limiter.reserve(cost=3, lease=timedelta(seconds=30))
    assert reservation.allowed
    assert left(policy) == {"day": 2}
    assert policy.limiter.commit(reservation) == "Committed"
    assert policy.limiter.cancel(reservation) == "Unknown"
    policy.set_clock(NOW + 60_000)
    assert left(policy) == {"day": 2}


def test_a_cancelled_reservation_is_given_back(timed: TimedPolicyMaker) -> None:
    policy = timed({"limits": [*per_day(5)["limits"], {"name": "run", "amount": 5, "period": "Execution"}]}, NOW)
    reservation = policy.limiter.reserve(cost=3, lease=timedelta(seconds=30), execution="run-1")
    assert policy.limiter.cancel(reservation) == "Cancelled"
    verdict = policy.limiter.acquire(cost=5, execution="run-1")
    assert verdict.allowed


def test_a_lease_that_ends_gives_the_units_back(timed: TimedPolicyMaker) -> None:
    rolling = {"name": "rolling", "amount": 5, "period": "1h", "alignment": "Rolling"}
    policy = timed({"limits": [*per_day(5)["limits"], rolling]}, NOW)
    reservation = policy.limiter.reserve(cost=5, lease=timedelta(seconds=30))
    policy.set_clock(NOW + 29_999)
    assert not policy.limiter.acquire().allowed
    policy.set_clock(NOW + 30_000)
    assert policy.limiter.acquire(cost=5).allowed
    assert policy.limiter.commit(reservation) == "Unknown"
    assert left(policy) == {"day": 0, "rolling": 0}


def test_units_are_not_given_back_to_a_later_window(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(5), NOW)
    policy.limiter.reserve(cost=5, lease=timedelta(hours=20))
    policy.set_clock(NOW + DAY)
    assert policy.limiter.acquire(cost=2).allowed
    assert left(policy) == {"day": 3}


def test_reservations_of_one_subject_are_bounded(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(1000), NOW)
    held = [policy.limiter.reserve(lease=timedelta(minutes=1)) for _ in range(65)]
    assert [each.allowed for each in held] == [True] * 64 + [False]
    assert held[-1].verdict.reason == "TooManyReservations"
    assert left(policy) == {"day": 936}


def test_a_shadow_limit_reports_and_never_denies(timed: TimedPolicyMaker) -> None:
    shadow = {"name": "strict", "amount": 1, "period": "Day", "mode": "Shadow"}
    policy = timed({"limits": [*per_day(3)["limits"], shadow]}, NOW)
    verdicts = [policy.limiter.acquire() for _ in range(4)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, True, False]
    assert [verdict.shadow for verdict in verdicts] == [(), ("strict",), ("strict",), ("strict",)]
    assert verdicts[-1].rule == "day"


def test_a_policy_in_shadow_mode_never_denies(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(1) | {"mode": "Shadow", "spacing": {"min": "90s", "max": "90s"}}, NOW)
    policy.limiter.acquire()
    verdict = policy.limiter.acquire()
    assert (verdict.allowed, set(verdict.shadow)) == (True, {"day", "spacing"})


def test_off_counts_nothing(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(1) | {"mode": "Off"}, NOW)
    assert all(policy.limiter.acquire().allowed for _ in range(3))
    assert not policy.connection.exists(policy.state_key())
    other = timed(
        {"limits": [{"name": "off", "amount": 1, "period": "Day", "mode": "Off"}, *per_day(9)["limits"]]}, NOW
    )
    assert [limit.name for limit in other.limiter.acquire().limits] == ["day"]


def test_each_subject_has_its_own_counters(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(1), NOW)
    assert policy.limiter.acquire("alice").allowed
    assert policy.limiter.acquire("bob: ünïcode {x}").allowed
    assert not policy.limiter.acquire("alice").allowed


def test_subjects_are_bounded_and_the_bound_is_lifted_when_one_expires(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(5) | {"maxSubjects": 2}, NOW)
    assert [policy.limiter.acquire(name).allowed for name in ("a", "b", "a")] == [True, True, True]
    refused = policy.limiter.acquire("c")
    assert (refused.allowed, refused.rule, refused.reason) == (False, "maxSubjects", "TooManySubjects")
    assert refused.retry_after == timedelta(hours=14)
    policy.set_clock(NOW + DAY)
    policy.connection.delete(policy.state_key("a"), policy.state_key("b"))  # As their expiry does by then.
    assert policy.limiter.acquire("c").allowed


def test_an_edited_amount_keeps_what_was_used(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(5), NOW)
    policy.limiter.acquire(cost=4)
    policy.store(per_day(10), NOW)
    assert left(policy) == {"day": 6}
    policy.store(per_day(3), NOW)
    assert left(policy) == {"day": 0}
    assert not policy.limiter.acquire().allowed


def test_a_changed_period_keeps_the_count_where_the_old_window_began_within_the_new(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(5), NOW)
    policy.limiter.acquire(cost=4)
    policy.store({"limits": [{"name": "day", "amount": 5, "period": "Week"}]}, NOW)
    assert left(policy) == {"day": 1}
    policy.store({"limits": [{"name": "day", "amount": 5, "period": "Hour"}]}, NOW)
    assert left(policy) == {"day": 5}


def test_limits_may_come_and_go_and_the_others_keep_their_counts(timed: TimedPolicyMaker) -> None:
    policy = timed(
        per_day(5) | {"spacing": {"min": "1s", "max": "1s"}, "circuitBreaker": {"consecutiveFailures": 2}}, NOW
    )
    verdict = policy.limiter.acquire(cost=2)
    policy.limiter.report(verdict, "Failure")
    hour = {"name": "hour", "amount": 3, "period": "Hour"}
    both = {"limits": [hour, *per_day(5)["limits"]], "circuitBreaker": {"consecutiveFailures": 2}}
    policy.store(both, NOW)
    assert left(policy) == {"hour": 3, "day": 3}
    verdict = policy.limiter.acquire()
    policy.limiter.report(verdict, "Failure")
    assert policy.limiter.acquire().reason == "CircuitOpen", "the first failure is remembered over the edit"
    policy.store({"limits": [hour]}, NOW)
    assert left(policy) == {"hour": 2}
    policy.store({"limits": per_day(5)["limits"]}, NOW)
    assert left(policy) == {"day": 2}, "nothing was written without the limit, so its count was still there"
    policy.store({"limits": [hour]}, NOW)
    policy.limiter.acquire()
    policy.store(per_day(5), NOW)
    assert left(policy) == {"day": 5}, "a limit that was removed while calls went on is forgotten"


def test_an_executions_count_survives_an_edit(timed: TimedPolicyMaker) -> None:
    run = {"name": "run", "amount": 3, "period": "Execution"}
    policy = timed({"limits": [run]}, NOW)
    assert policy.limiter.acquire(cost=2, execution="one").allowed
    policy.store({"limits": [{"name": "other", "amount": 9, "period": "Execution"}, run]}, NOW)
    assert not policy.limiter.acquire(cost=2, execution="one").allowed
    assert policy.limiter.acquire(cost=3, execution="two").allowed


def test_an_execution_must_be_named(timed: TimedPolicyMaker) -> None:
    policy = timed({"limits": [{"name": "run", "amount": 3, "period": "Execution"}]}, NOW)
    with pytest.raises(ExecutionRequired, match="execution="):
        policy.limiter.acquire()
    assert policy.limiter.peek().allowed


@pytest.mark.parametrize("behaviour", ["StartFull", "DenyUntilNextWindow"])
def test_windows_that_were_running_when_state_was_lost(timed: TimedPolicyMaker, behaviour: str) -> None:
    document = per_day(5) | {"onStateLoss": behaviour}
    policy = timed(document, NOW)
    policy.store(document, NOW, state_lost_at=NOW)
    policy.set_clock(NOW + 60_000)
    verdict = policy.limiter.acquire()
    if behaviour == "StartFull":
        assert verdict.allowed
    else:
        assert (verdict.rule, verdict.reason, verdict.retry_after) == (
            "day",
            "StateLost",
            timedelta(hours=13, minutes=59),
        )
        policy.set_clock(NOW + DAY)
        assert policy.limiter.acquire().allowed


def test_expired_tables_deny(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(5), NOW)
    policy.set_clock(NOW + 401 * DAY)
    verdict = policy.limiter.acquire()
    assert (verdict.allowed, verdict.rule, verdict.reason) == (False, "config", "ConfigExpired")


def test_two_policies_admit_a_call_together_or_not_at_all(timed: TimedPolicyMaker, timed_server: RedisServer) -> None:
    everyone, each = timed(per_day(3), NOW), timed(per_day(2), NOW)
    both = (everyone.name, each.name)
    url = timed_server.url
    with Limiter.from_url(url, namespace=NAMESPACE, policy=both, on_store_unavailable=PATIENT) as limiter:
        verdicts = [limiter.acquire(("all", who)) for who in ("a", "a", "a", "b", "b")]
        assert [verdict.allowed for verdict in verdicts] == [True, True, False, True, False]
        assert [limit.policy for limit in verdicts[0].limits] == list(both)
        with pytest.raises(LimiterUsageError, match="subjects"):
            limiter.acquire(("one", "two", "three"))
    assert left(everyone, "all") == {"day": 0}
    assert left(each, "b") == {"day": 1}


def test_a_damaged_policy_is_refused(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(3), NOW)
    stored = str(policy.connection.get(policy.keys.config))
    policy.connection.set(policy.keys.config, "0" * 40 + stored[40:])
    verdict = policy.limiter.acquire()
    assert (verdict.allowed, verdict.store_failure) == (False, "ConfigDamaged")


@pytest.mark.parametrize(
    "foreign", [b"", b"hello", b"\x01S1234\x00\x00\x00\x00\x00\x00", b"\x01Z1234\x00", bytes(200), None]
)
def test_what_is_no_state_under_a_key_of_ours_makes_way(timed: TimedPolicyMaker, foreign: bytes | None) -> None:
    policy = timed(per_day(3), NOW)
    if foreign is None:
        policy.connection.rpush(policy.state_key(), "a list")
    else:
        policy.connection.set(policy.state_key(), foreign)
    verdicts = [policy.limiter.acquire() for _ in range(4)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, True, False]


def test_a_policy_in_shadow_mode_counts_no_further_than_its_field(timed: TimedPolicyMaker) -> None:
    policy = timed(per_day(3) | {"mode": "Shadow"}, NOW)
    most = 2**32 - 1
    assert policy.limiter.acquire(cost=most).shadow == ("day",)
    assert policy.limiter.acquire(cost=most).shadow == ("day",)
    policy.store(per_day(3), NOW)
    assert not policy.limiter.acquire().allowed
    assert left(policy) == {"day": 0}


def test_every_key_expires_when_it_no_longer_matters(redis_server: RedisServer, policy_name: str) -> None:
    rolling = {"name": "rolling", "amount": 9, "period": "1h", "alignment": "Rolling"}
    first = {"name": "first", "amount": 9, "period": "2h", "alignment": "FirstUse"}
    document = {"limits": [rolling, first], "circuitBreaker": {"consecutiveFailures": 3}, "maxSubjects": 3}
    install(redis_server, policy_name, document)
    url = redis_server.url
    with (
        Limiter.from_url(url, namespace=NAMESPACE, policy=policy_name, on_store_unavailable=PATIENT) as limiter,
        redis_server.client() as connection,
    ):
        key = f"shipkeeper:{{{NAMESPACE}}}:state:{policy_name}:default"

        def hours_left() -> float:
            left = connection.pttl(key)
            assert isinstance(left, int)
            return left / 3_600_000

        verdict = limiter.acquire()
        assert 1.9 < hours_left() <= 2
        held = limiter.reserve(lease=timedelta(hours=5))
        assert 4.9 < hours_left() <= 5
        limiter.commit(held)
        assert 1.9 < hours_left() <= 2
        limiter.report(verdict, "Failure")
        # A failure is remembered over a week end, so that a slow caller's failures add up.
        assert 167 < hours_left() <= 168
        connection.persist(key)
        limiter.acquire()
        assert 167 < hours_left() <= 168, "a lost expiry is set again by the next call"
        assert connection.zcard(f"shipkeeper:{{{NAMESPACE}}}:state:{policy_name}") == 1
