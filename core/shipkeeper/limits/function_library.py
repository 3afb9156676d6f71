"""The Redis Function library: its text, put together from the Lua files beside this module, and its version."""

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Final

NAME: Final = "shipkeeper"
# The first number changes with the wire form; the rest says exactly which text is loaded.
_MAJOR: Final = "2"
_TEST_CLOCK_KEY: Final = "shipkeeper:test:now"
_TEST_CLOCK = f"""
local function now_microseconds()
  local injected = call('GET', '{_TEST_CLOCK_KEY}')
  if injected then return tonumber(injected) end
  local t = call('TIME')
  return t[1] * 1000000 + t[2]
end
"""
_TEST_EXPIRY: Final = """
local function store(key, packed)
  call('SET', key, packed, 'PX', '3600000')
end

local function prolong(key)
  call('PEXPIRE', key, '3600000')
end
"""


@cache
def library_text() -> str:
    """Return the library as FUNCTION LOAD takes it."""
    return _versioned(_joined_source())


@cache
def library_version() -> str:
    """Return the version that the library in Redis reports about itself, for example 1.3f0a9c21b7de."""
    return _version_of(_joined_source())


def library_text_with_test_clock() -> str:
    """Return the library with a clock that a key sets (microseconds), for tests alone; its version differs.

    Keys then keep for an hour of real time: the instants a test chooses may be long past.
    """
    source = _joined_source()
    for mark, replacement in (("clock", _TEST_CLOCK), ("expiry", _TEST_EXPIRY)):
        source, replaced = re.subn(rf"--@{mark} production\n.*?--@end\n", replacement, source, flags=re.DOTALL)
        if replaced != 1:
            raise AssertionError(f"the library's {mark} is not marked as expected")
    return _versioned(source)


def _joined_source() -> str:
    folder = files(__package__) / "library"
    parts = sorted((part for part in folder.iterdir() if part.name.endswith(".lua")), key=lambda part: part.name)
    return f"#!lua name={NAME}\n" + "\n".join(part.read_text(encoding="utf-8") for part in parts)


def _version_of(source: str) -> str:
    return f"{_MAJOR}.{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def _versioned(source: str) -> str:
    return source.replace("@VERSION@", _version_of(source))
