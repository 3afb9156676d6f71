"""Settings: what is accepted, and that a refusal names the variable and never its value."""

import pytest

from birthday_app.settings import Settings, SettingsError

SECRET = "a-very-secret-value-of-the-tests"
GOOD = {
    "API_KEY": SECRET,
    "DATABASE_URL": f"postgresql+asyncpg://app:{SECRET}@db.example/app",
    "REDIS_URL": f"redis://:{SECRET}@redis.example:6379/0",
    "RATE_LIMIT_POLICY": "birthday/birthday-limits",
}


def test_good_settings_are_read() -> None:
    settings = Settings.from_environment(GOOD | {"API_KEY_PREVIOUS": "the-key-of-last-month", "LOG_LEVEL": "debug"})
    assert settings.api_keys == (SECRET, "the-key-of-last-month")
    assert settings.rate_limit_policy == "birthday/birthday-limits"
    assert settings.log_level == "DEBUG"


def test_an_empty_previous_key_is_none() -> None:
    assert Settings.from_environment(GOOD | {"API_KEY_PREVIOUS": ""}).api_keys == (SECRET,)


def test_the_representation_shows_no_secret() -> None:
    assert SECRET not in repr(Settings.from_environment(GOOD))


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_missing_variable_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is not set$"):
        Settings.from_environment({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEY", "short"),
        ("API_KEY_PREVIOUS", "short"),
        ("DATABASE_URL", f"not a url {SECRET}"),
        ("DATABASE_URL", f"postgresql+asyncpg://app:{SECRET}@db.example:port/app"),
        ("DATABASE_URL", f"postgresql://app:{SECRET}@db.example/app"),
        ("REDIS_URL", f"http://:{SECRET}@redis.example"),
        ("REDIS_URL", f"redis://:{SECRET}@redis.example:{SECRET}/0"),
        ("RATE_LIMIT_POLICY", "birthday-limits"),
        ("RATE_LIMIT_POLICY", "a/b/c"),
        ("LOG_LEVEL", "chatty"),
    ],
)
def test_a_wrong_value_is_refused_without_being_shown(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment(GOOD | {name: value})
    assert str(refused.value).startswith(name)
    assert SECRET not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
