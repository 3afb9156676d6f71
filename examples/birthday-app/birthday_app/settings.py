"""What the application is told by its environment, checked once at start, before anything listens.

A wrong value ends the process with a message that names the variable and never its value: most of them are secrets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from redis.asyncio.connection import parse_url
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

MIN_KEY_LENGTH = 16
DATABASE_DRIVERS = ("postgresql+asyncpg", "sqlite+aiosqlite")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsError(ValueError):
    """A variable of the environment is missing or wrong; the text names it and the fix, not its value."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The environment, checked. Secrets are left out of the repr."""

    api_keys: tuple[str, ...] = field(repr=False)
    """The keys that open the API: API_KEY, and API_KEY_PREVIOUS while a rotation overlaps."""
    database_url: str = field(repr=False)
    """SQLAlchemy URL of an async driver."""
    redis_url: str = field(repr=False)
    """Where the limits are kept."""
    rate_limit_policy: str
    """`namespace/name` of the RateLimitPolicy that every send asks first."""
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read and check the variables.

        Raises SettingsError for the first one that is missing or malformed.
        """
        return cls(
            api_keys=_api_keys(environment),
            database_url=_database_url(_required(environment, "DATABASE_URL")),
            redis_url=_redis_url(_required(environment, "REDIS_URL")),
            rate_limit_policy=_policy(_required(environment, "RATE_LIMIT_POLICY")),
            log_level=_log_level(environment.get("LOG_LEVEL", "INFO")),
        )


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise SettingsError(f"{name} is not set")
    return value


def _api_keys(environment: Mapping[str, str]) -> tuple[str, ...]:
    keys = {"API_KEY": _required(environment, "API_KEY")}
    if previous := environment.get("API_KEY_PREVIOUS", "").strip():
        keys["API_KEY_PREVIOUS"] = previous
    for name, key in keys.items():
        if len(key) < MIN_KEY_LENGTH:
            raise SettingsError(f"{name} is too short to be a secret; use at least {MIN_KEY_LENGTH} random characters")
    return tuple(keys.values())


def _database_url(text: str) -> str:
    try:
        driver = make_url(text).drivername
    except (ArgumentError, ValueError):
        raise SettingsError("DATABASE_URL is not a URL such as postgresql+asyncpg://user:password@host/name") from None
    if driver not in DATABASE_DRIVERS:
        raise SettingsError(f"DATABASE_URL must start with one of {', '.join(DATABASE_DRIVERS)}")
    return text


def _redis_url(text: str) -> str:
    try:
        parse_url(text)
    except ValueError:
        # The cause may quote parts of the URL, so it is dropped.
        raise SettingsError("REDIS_URL is not a URL such as redis://:password@host:6379/0") from None
    return text


def _policy(text: str) -> str:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise SettingsError("RATE_LIMIT_POLICY must be namespace/name, for example birthday/birthday-limits")
    return text


def _log_level(text: str) -> str:
    level = text.strip().upper()
    if level not in LOG_LEVELS:
        raise SettingsError(f"LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}")
    return level
