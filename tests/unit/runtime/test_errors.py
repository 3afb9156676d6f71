"""What each failure of a pass means."""

import json

import aiohttp
import pytest
from kubernetes.aio.client import ApiException

from shipkeeper_operator.errors import (
    NameTakenError,
    NotLeadingError,
    PassTimeoutError,
    Remedy,
    StaleReadError,
    StatusRejectedError,
    api_message,
    judge,
)


def _answer(status: int, message: str = "said", headers: dict[str, str] | None = None) -> ApiException:
    error = ApiException(status=status, reason="Reason")
    error.body = json.dumps({"kind": "Status", "message": message})
    error.headers = headers
    return error


@pytest.mark.parametrize(
    ("error", "remedy", "reason"),
    [
        (_answer(400), Remedy.PERSON, "ChildRejected"),
        (_answer(422), Remedy.PERSON, "ChildRejected"),
        (_answer(500, "unable to convert unstructured object to v1"), Remedy.PERSON, "ChildRejected"),
        (_answer(403, "exceeded quota"), Remedy.PERSON, "Forbidden"),
        (_answer(403, "namespace is being terminated"), Remedy.WAIT, "NamespaceTerminating"),
        (_answer(401), Remedy.WAIT, "Unauthorized"),
        (_answer(404), Remedy.WAIT, "NotFound"),
        (_answer(409), Remedy.WAIT, "Conflict"),
        (_answer(410), Remedy.WAIT, "NotFound"),
        (_answer(429), Remedy.WAIT, "TooManyRequests"),
        (_answer(500), Remedy.WAIT, "ServerError"),
        (_answer(504), Remedy.WAIT, "ServerError"),
        (_answer(418), Remedy.DEVELOPER, "UnexpectedAnswer"),
        (NameTakenError("ConfigMap", "n", "a"), Remedy.PERSON, "NameTaken"),
        (NotLeadingError("not the leader"), Remedy.WAIT, "NotLeading"),
        (StaleReadError("changed"), Remedy.WAIT, "StaleRead"),
        (PassTimeoutError("slow"), Remedy.WAIT, "PassTimeout"),
        (StatusRejectedError("no"), Remedy.DEVELOPER, "StatusRejected"),
        (aiohttp.ServerDisconnectedError(), Remedy.WAIT, "ConnectionFailed"),
        (TimeoutError(), Remedy.WAIT, "ConnectionFailed"),
        (ConnectionResetError(), Remedy.WAIT, "ConnectionFailed"),
        (KeyError("x"), Remedy.DEVELOPER, "InternalError"),
    ],
)
def test_judge(error: Exception, remedy: Remedy, reason: str) -> None:
    verdict = judge(error)
    assert (verdict.remedy, verdict.reason) == (remedy, reason)


def test_text_of_an_unknown_failure_is_not_repeated() -> None:
    assert "hunter2" not in judge(ValueError("redis://:hunter2@host")).message
    assert "hunter2" not in judge(ConnectionError("redis://:hunter2@host")).message


def test_server_says_how_long_to_wait() -> None:
    assert judge(_answer(429, headers={"Retry-After": "3"})).retry_after_seconds == 3
    assert judge(_answer(503, headers={"Retry-After": "soon"})).retry_after_seconds is None
    assert judge(_answer(503)).retry_after_seconds is None


def test_message_is_the_servers_own_and_bounded() -> None:
    assert api_message(_answer(400, "x" * 5000)) == "x" * 1024
    not_json = ApiException(status=502, reason="Bad Gateway")
    not_json.body = "<html>"
    assert api_message(not_json) == "Bad Gateway"
    assert api_message(ApiException(status=503)) == "status 503"
