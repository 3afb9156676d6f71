"""What a failed pass means, decided in one place: try again soon, wait for a person, or report a bug.

Everything else lets exceptions rise. No text made here holds an object's content: an API server's answer is reduced to
its own message about the request.
"""

import asyncio
import enum
import json
from dataclasses import dataclass

import aiohttp
from kubernetes.aio.client import ApiException


class Remedy(enum.Enum):
    """What has to happen before the work can succeed."""

    WAIT = "transient"
    """Time: the API server, the network or another writer. Try again with backoff."""
    PERSON = "rejected"
    """Somebody must change something. Say so in status, look again only slowly."""
    DEVELOPER = "bug"
    """The operator is wrong. Log it with its traceback, try again slowly."""


@dataclass(frozen=True)
class Verdict:
    """A judged failure."""

    remedy: Remedy
    reason: str
    """One CamelCase word, stable: the label of the error metric and, for a person, the condition's reason."""
    message: str
    """What a person should know."""
    retry_after_seconds: float | None = None
    """How long the API server asked us to wait."""


class NameTakenError(Exception):
    """A child's name belongs to an object that is not ours, and is left alone."""

    def __init__(self, kind: str, namespace: str, name: str) -> None:
        """Name the object that is in the way."""
        super().__init__(
            f"{kind} {namespace}/{name} exists and does not belong to this resource. "
            f"It is left as it is; rename or delete it, or rename this resource."
        )


class NotLeadingError(Exception):
    """A write was refused because this process no longer holds the Lease."""


class StaleReadError(Exception):
    """An object changed between being read and being written; nothing was written."""


class StatusRejectedError(Exception):
    """The API server refuses a status we made: the models and the installed CRD disagree."""


class PassTimeoutError(Exception):
    """One pass took longer than it may."""


def api_message(error: ApiException) -> str:
    """Return the API server's own message about a refused request, without headers or request content."""
    try:
        message = json.loads(error.body or "")["message"]
    except (TypeError, ValueError, KeyError):
        message = error.reason or f"status {error.status}"
    return str(message)[:1024]


def judge(error: Exception) -> Verdict:
    """Decide what a failed pass means."""
    match error:
        case NameTakenError():
            return Verdict(Remedy.PERSON, "NameTaken", str(error))
        case StatusRejectedError():
            return Verdict(Remedy.DEVELOPER, "StatusRejected", str(error))
        case NotLeadingError() | PassTimeoutError() | StaleReadError():
            return Verdict(Remedy.WAIT, type(error).__name__.removesuffix("Error"), str(error))
        case ApiException():
            return _judge_answer(error)
        case aiohttp.ClientError() | asyncio.TimeoutError() | OSError():
            return Verdict(Remedy.WAIT, "ConnectionFailed", f"{type(error).__name__} while talking to a server")
        case _:
            return Verdict(Remedy.DEVELOPER, "InternalError", type(error).__name__)


# A server-side apply of a malformed value (a quantity `much`) is answered with 500 and these words.
_UNREADABLE = ("unable to convert unstructured object", "failed to create typed patch object")


def _judge_answer(error: ApiException) -> Verdict:
    message = api_message(error)
    is_unreadable = error.status == 500 and any(words in message for words in _UNREADABLE)
    match 400 if is_unreadable else error.status:
        case 400 | 422:
            return Verdict(
                Remedy.PERSON, "ChildRejected", f"The API server refuses an object made from this spec: {message}"
            )
        case 403 if "being terminated" in message:
            return Verdict(Remedy.WAIT, "NamespaceTerminating", message)
        case 403:
            return Verdict(Remedy.PERSON, "Forbidden", f"The API server does not permit it: {message}")
        case 404 | 409 | 410:
            return Verdict(Remedy.WAIT, "Conflict" if error.status == 409 else "NotFound", message)
        case 401:
            return Verdict(Remedy.WAIT, "Unauthorized", message)
        case 429:
            return Verdict(Remedy.WAIT, "TooManyRequests", message, _retry_after(error))
        case int() as status if status >= 500:
            return Verdict(Remedy.WAIT, "ServerError", message, _retry_after(error))
        case _:
            return Verdict(Remedy.DEVELOPER, "UnexpectedAnswer", message)


def _retry_after(error: ApiException) -> float | None:
    headers = error.headers or {}
    try:
        return float(headers["Retry-After"])
    except (KeyError, ValueError):
        return None
