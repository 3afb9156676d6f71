"""What SQLite lacks and the engine needs, as functions that its sessions carry: timestamps, conversions, digests.

PostgreSQL has all of this as set-based SQL. SQLite runs in this process, so that a call of Python for each row is
what any of its functions costs.
"""

import hashlib
import json
from bisect import bisect_right
from functools import lru_cache
from typing import Any, Final

from shipkeeper.resources.migrationmapping import TimestampFromText

from .timestamps import UnreadableTimestampError, read_timestamp

TRUE_WORDS: Final = ("1", "t", "true", "yes", "on")
FALSE_WORDS: Final = ("0", "f", "false", "no", "off")

# Two sums of 31 bits each stay within SQLite's integers for more rows than a range can have.
_DIGEST_BITS: Final = 62


def register_functions(connection: Any) -> None:
    """Give a SQLite connection the functions that generated SQL calls."""
    connection.create_function("shipkeeper_timestamp", 2, _timestamp, deterministic=True)
    connection.create_function("shipkeeper_boolean", 1, _boolean, deterministic=True)
    connection.create_function("shipkeeper_integer", 1, _integer, deterministic=True)
    connection.create_function("shipkeeper_number", 1, _number, deterministic=True)
    connection.create_function("shipkeeper_range", 2, _range, deterministic=True)
    connection.create_function("shipkeeper_digest", -1, _digest, deterministic=True)


def _timestamp(value: Any, rules: str) -> str | None:
    if value is None:
        return None
    try:
        instant = read_timestamp(str(value), _rules(rules))
    except UnreadableTimestampError:
        return None
    # The form in which SQLAlchemy stores a DateTime, so that an application reads it as its own.
    return instant.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


@lru_cache(maxsize=64)
def _rules(text: str) -> TimestampFromText:
    return TimestampFromText.model_validate(json.loads(text))


def _boolean(value: Any) -> int | None:
    word = str(value).strip().lower()
    if word in TRUE_WORDS:
        return 1
    return 0 if word in FALSE_WORDS else None


def _integer(value: Any) -> int | None:
    try:
        number = int(str(value).strip())
    except ValueError:
        return None
    return number if -(2**63) <= number < 2**63 else None


def _number(value: Any) -> float | int | None:
    if isinstance(value, (int, float)):
        return value
    try:
        return int(value)
    except (TypeError, ValueError):
        pass
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _range(key: Any, bounds: str) -> int | None:
    return None if key is None else bisect_right(_bounds(bounds), str(key))


@lru_cache(maxsize=8)
def _bounds(text: str) -> list[str]:
    return text.split("\x1f") if text else []


def _digest(*values: Any) -> int:
    canonical = "".join("-" if value is None else _measured(_kind(value), _text(value)) for value in values)
    raw = hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "big") >> (64 - _DIGEST_BITS)


def _measured(kind: str, text: str) -> str:
    # The length in front keeps ("ab", "c") apart from ("a", "bc").
    return f"{kind}{len(text)}:{text}"


def _kind(value: Any) -> str:
    return "n" if isinstance(value, (int, float)) else "s"


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
