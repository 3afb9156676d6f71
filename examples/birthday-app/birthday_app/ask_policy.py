"""Asks a rate limit policy for some sends and prints its answers, without sending: `python -m birthday_app.ask_policy`.

For an operator who wants to see what a policy does. The calls are charged to a subject of their own, so that they take
nothing from the campaigns' quotas.
"""

import argparse
import asyncio
import json
import os
import sys
import uuid
from dataclasses import asdict
from typing import Any

from birthday_app.campaigns import Result
from shipkeeper.limits import AsyncLimiter


async def ask(redis_url: str, *, policy: str, subject: str, count: int) -> dict[str, Any]:
    """Ask `count` times in a row and return the answers, counted by the rule that bound."""
    namespace, _, name = policy.partition("/")
    result = Result()
    async with AsyncLimiter.from_url(redis_url, namespace=namespace, policy=name) as limiter:
        for _ in range(count):
            verdict = await limiter.acquire(subject, execution=subject)
            result.tried += 1
            if verdict.allowed:
                result.done += 1
                await limiter.report(verdict, "Success")
            else:
                result.refuse(verdict)
    refused = {rule: asdict(refusals) for rule, refusals in result.refused.items()}
    return {"policy": policy, "tried": result.tried, "allowed": result.done, "refused": refused}


def main() -> None:
    """Read the arguments and REDIS_URL, ask, and print one line of JSON."""
    parser = argparse.ArgumentParser(description="Ask a rate limit policy for some sends, without sending.")
    parser.add_argument("--policy", required=True, help="namespace/name of the RateLimitPolicy")
    parser.add_argument("--count", type=int, default=20, help="how many sends to ask for (20)")
    parser.add_argument("--subject", help="whose quotas to charge (default: a new subject)")
    arguments = parser.parse_args()
    redis_url = os.environ.get("REDIS_URL")
    if not redis_url:
        sys.exit("REDIS_URL is not set")
    subject = arguments.subject or f"question-{uuid.uuid4()}"
    print(json.dumps(asyncio.run(ask(redis_url, policy=arguments.policy, subject=subject, count=arguments.count))))


if __name__ == "__main__":
    main()
