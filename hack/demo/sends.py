"""Calls of the application through its Service, from inside the cluster, with the key that only its pods know."""

import json
import secrets
from dataclasses import dataclass
from typing import Any

from demo.kubectl import Kubectl
from demo.progress import wait_until_ready
from demo.steps import DemoError

APP = "deployment/birthday-app"
ANYTIME_POLICY = "birthday-limits-anytime"

# Runs in the application's own pod: the request takes the way through DNS and the Service like any other.
_CALL = """
import json, os, sys, urllib.error, urllib.request
method, path, body = json.load(sys.stdin)
request = urllib.request.Request(
    "http://birthday-app" + path,
    method=method,
    data=None if body is None else json.dumps(body).encode(),
    headers={"X-API-Key": os.environ["API_KEY"], "Content-Type": "application/json"},
)
try:
    with urllib.request.urlopen(request, timeout=30) as response:
        status, text = response.status, response.read()
except urllib.error.HTTPError as error:
    status, text = error.code, error.read()
print(json.dumps({"status": status, "body": json.loads(text)}))
"""
_WAIT_FOR_CAMPAIGN_SECONDS = 60


@dataclass(frozen=True)
class Answer:
    """What the application answered."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Tries:
    """How many tries a policy let through, and why not the rest."""

    tried: int
    allowed: int
    refused: dict[str, dict[str, Any]]
    """By the rule that refused: reason, count and when the next try can succeed."""

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        refusals = [
            f"{each['count']:>3} refused by {rule} ({each['reason']}), {_when(each)}"
            for rule, each in self.refused.items()
        ]
        return [f"{self.allowed:>3} let through", *refusals]


@dataclass(frozen=True)
class Sends:
    """The same number of tries under the sample's policy, and under its amounts alone."""

    campaign: Tries
    amounts: Tries

    @property
    def tried(self) -> int:
        """Sends tried under the sample's policy."""
        return self.campaign.tried

    def text(self) -> str:
        """Return it for a person."""
        amounts = (
            f"The same {self.amounts.tried} at any hour and without spacing (policy {ANYTIME_POLICY}, nothing is sent):"
        )
        return "\n".join([*self.campaign.lines(), amounts, *self.amounts.lines()])


def _when(refusal: dict[str, Any]) -> str:
    seconds = refusal.get("retry_after_seconds")
    if seconds is None:
        return "and waiting does not help"
    return f"next try possible in {seconds:.0f} s (at {refusal['retry_at']})"


def call(kubectl: Kubectl, method: str, path: str, body: dict[str, Any] | None = None, *, namespace: str) -> Answer:
    """Send one request to the application through its Service."""
    request = json.dumps([method, path, body])
    printed = kubectl.exec(APP, "python3", "-c", _CALL, namespace=namespace, stdin=request)
    answer = json.loads(printed)
    return Answer(answer["status"], answer["body"])


def attempt(kubectl: Kubectl, count: int, *, namespace: str) -> Sends:
    """Try so many sends under the sample's policy, then ask its amounts alone the same number of times."""
    return Sends(
        campaign=_run_campaign(kubectl, count, namespace=namespace), amounts=_ask(kubectl, count, namespace=namespace)
    )


def _run_campaign(kubectl: Kubectl, count: int, *, namespace: str) -> Tries:
    body = {"limit": count, "wait": False, "max_days_late": 365}
    started = call(kubectl, "POST", "/campaigns/birthday", body, namespace=namespace)
    if started.status != 202:
        raise DemoError(f"POST /campaigns/birthday answered {started.status}: {started.body}")
    for _ in range(_WAIT_FOR_CAMPAIGN_SECONDS):
        status = call(kubectl, "GET", "/campaigns/status", namespace=namespace)
        campaign = next(each for each in status.body["campaigns"] if each["id"] == started.body["id"])
        if campaign["status"] != "running":
            result = campaign["result"]
            return Tries(result["tried"], result["done"], result["refused"])
    raise DemoError(f"the campaign was not over after {_WAIT_FOR_CAMPAIGN_SECONDS} looks")


def _ask(kubectl: Kubectl, count: int, *, namespace: str) -> Tries:
    """Ask a policy that has the sample's amounts but no hours and no spacing, so that the answer is one at any hour."""
    sample = kubectl.get("ratelimitpolicy", "birthday-limits", namespace=namespace)
    if sample is None:
        raise DemoError("the policy birthday-limits is gone")
    spec = {name: value for name, value in sample["spec"].items() if name not in ("activeHours", "spacing")}
    metadata = {"name": ANYTIME_POLICY, "namespace": namespace}
    kubectl.apply({"apiVersion": sample["apiVersion"], "kind": "RateLimitPolicy", "metadata": metadata, "spec": spec})
    wait_until_ready(kubectl, "ratelimitpolicy", ANYTIME_POLICY, namespace=namespace)
    policy = f"{namespace}/{ANYTIME_POLICY}"
    subject = f"demo-{secrets.token_hex(4)}"
    command = ("python3", "-m", "birthday_app.ask_policy", "--policy", policy, "--count", str(count))
    printed = kubectl.exec(APP, *command, "--subject", subject, namespace=namespace)
    found = json.loads(printed.strip().splitlines()[-1])
    return Tries(found["tried"], found["allowed"], found["refused"])
