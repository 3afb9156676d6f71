"""Redis users with the least permissions that work: one for the operator, one for each namespace's applications.

An application may count (the library runs with its permissions) and may read the policies it is under; it cannot change
a policy or the library. `python -m shipkeeper.limits.acl application --namespace birthday` prints the rules for
`ACL SETUSER`.
"""

import argparse
from typing import Final

from .keys import DEFAULT_PREFIX

# Subjects that are bounded in number are kept in a sorted set.
_COUNTING: Final = (
    "get",
    "getrange",
    "set",
    "del",
    "time",
    "zscore",
    "zadd",
    "zcount",
    "zrange",
    "zremrangebyscore",
    "pexpireat",
)
_CONNECTING: Final = ("ping", "select", "command", "cluster|slots", "cluster|shards")
_OPERATING: Final = ("function|load", "info", "scan", "unlink")


def application_rules(*, namespace: str, key_prefix: str = DEFAULT_PREFIX) -> tuple[str, ...]:
    """Return the rules of a user for applications in one namespace; a password rule is to be added."""
    keys = f"{key_prefix}:{{{namespace}}}"
    return (
        "reset",
        "on",
        f"~{keys}:state:*",
        f"%R~{keys}:config:*",
        *(f"+{command}" for command in ("fcall", *_COUNTING, *_CONNECTING)),
    )


def operator_rules(*, key_prefix: str = DEFAULT_PREFIX) -> tuple[str, ...]:
    """Return the rules of the operator's user; a password rule is to be added."""
    commands = ("fcall", *_COUNTING, *_CONNECTING, *_OPERATING)
    return ("reset", "on", f"~{key_prefix}:*", *(f"+{command}" for command in commands))


def main() -> None:
    """Print the rules of one of the two users."""
    parser = argparse.ArgumentParser(description="Print the rules of a Redis user for ACL SETUSER <name>.")
    parser.add_argument("user", choices=["operator", "application"])
    parser.add_argument("--namespace", help="the application's namespace")
    parser.add_argument("--key-prefix", default=DEFAULT_PREFIX, help="spec.store.keyPrefix of the policies")
    options = parser.parse_args()
    if options.user == "operator":
        print(*operator_rules(key_prefix=options.key_prefix))
    elif options.namespace is None:
        parser.error("--namespace is needed for an application's user")
    else:
        print(*application_rules(namespace=options.namespace, key_prefix=options.key_prefix))


if __name__ == "__main__":
    main()
