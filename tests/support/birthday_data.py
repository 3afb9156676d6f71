"""The birthday application's tables and legacy rows, ordinary and odd, and an oracle that knows what becomes of them.

The oracle reads the rows one by one in plain Python, with pytz, and shares no code with the engine.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import pytz

Row = dict[str, Any]

POSTGRESQL_SCHEMA: Final = """
CREATE TABLE contacts (
  id serial PRIMARY KEY, name varchar NOT NULL, profile_url varchar NOT NULL UNIQUE, headline varchar, location varchar,
  open_to_work boolean NOT NULL, fit_score double precision NOT NULL, skills json, work_history json, birth_date date,
  last_birthday_message_at timestamp, status varchar NOT NULL, created_at timestamp NOT NULL,
  updated_at timestamp NOT NULL);
CREATE TABLE interactions (
  id serial PRIMARY KEY, contact_id integer NOT NULL REFERENCES contacts(id), type varchar NOT NULL,
  status varchar NOT NULL, payload json, created_at timestamp DEFAULT now() NOT NULL);
CREATE TABLE linkedin_selectors (
  id serial PRIMARY KEY, key varchar UNIQUE NOT NULL, selector_value varchar NOT NULL, score integer NOT NULL,
  last_success_at timestamp);
CREATE TABLE birthday_messages (
  id serial PRIMARY KEY, contact_id integer REFERENCES contacts(id), contact_name text NOT NULL,
  message_text text NOT NULL, sent_at text, is_late boolean DEFAULT false, days_late integer DEFAULT 0,
  response_received boolean DEFAULT false, response_text text, response_date text, script_mode text);
"""

SQLITE_SCHEMA: Final = """
CREATE TABLE contacts (
  id INTEGER PRIMARY KEY, name VARCHAR NOT NULL, profile_url VARCHAR NOT NULL UNIQUE, headline VARCHAR,
  location VARCHAR,
  open_to_work BOOLEAN NOT NULL, fit_score FLOAT NOT NULL, skills JSON, work_history JSON, birth_date DATE,
  last_birthday_message_at DATETIME, status VARCHAR NOT NULL, created_at DATETIME NOT NULL,
  updated_at DATETIME NOT NULL);
CREATE TABLE interactions (
  id INTEGER PRIMARY KEY, contact_id INTEGER NOT NULL REFERENCES contacts(id), type VARCHAR NOT NULL,
  status VARCHAR NOT NULL, payload JSON, created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL);
CREATE TABLE linkedin_selectors (
  id INTEGER PRIMARY KEY, key VARCHAR UNIQUE NOT NULL, selector_value VARCHAR NOT NULL, score INTEGER NOT NULL,
  last_success_at DATETIME);
CREATE TABLE birthday_messages (
  id INTEGER PRIMARY KEY AUTOINCREMENT, contact_id INTEGER REFERENCES contacts(id), contact_name TEXT NOT NULL,
  message_text TEXT NOT NULL, sent_at TEXT, is_late BOOLEAN DEFAULT 0, days_late INTEGER DEFAULT 0,
  response_received BOOLEAN DEFAULT 0, response_text TEXT, response_date TEXT, script_mode TEXT);
"""

LEGACY_COLUMNS: Final = (
    "id",
    "contact_id",
    "contact_name",
    "message_text",
    "sent_at",
    "is_late",
    "days_late",
    "response_received",
    "response_text",
    "response_date",
    "script_mode",
)

_PARIS: Final = pytz.timezone("Europe/Paris")
_TEXTS: Final = ("Joyeux anniversaire 🎉", "Bon anniversaire, Zoé !", "", 'L\'été 🥳 "déjà"\nlà', "\\ back\tslash")
_BAD_TIMES: Final = (
    "hier",
    "2024-02-30T10:00:00",
    "2024-13-01",
    "2023-02-29",
    "25:00",
    "2024-01-01T24:00:00",
    "1er mars 2024",
)
_ODD_TIMES: Final = (
    "2024-02-29 10:00",
    " 2024-03-31T02:30:00 ",
    "2024-10-27T02:30:00",
    "2024-10-27T02:30:00+02:00",
    "01/03/2024",
    "29.02.2024 09:30:15",
    "1709281800",
    "2024-03-01",
    "2024-03-01T09:30:00.5Z",
    "2024-03-01 09:30-0330",
)


@dataclass(frozen=True)
class Legacy:
    """Contacts and legacy rows."""

    contacts: Sequence[Row]
    messages: Sequence[Row]


def generate(*, rows: int, seed: int, contacts: int = 200, odd: float = 0.1) -> Legacy:
    """Return contacts (the last two share a name) and legacy rows, some of them odd."""
    chance = random.Random(seed)
    people = [_contact(number) for number in range(1, contacts + 1)]
    people[-1]["name"] = people[-2]["name"]
    messages = [_message(number, people, chance, odd) for number in range(1, rows + 1)]
    return Legacy(people, messages)


def _contact(number: int) -> Row:
    at = datetime(2023, 1, 1) + timedelta(hours=number)
    return {
        "id": number,
        "name": f"Zoé Ünal {number}",
        "profile_url": f"https://example.org/in/{number}",
        "open_to_work": bool(number % 2),
        "fit_score": number / 7,
        "status": "new",
        "created_at": at,
        "updated_at": at,
    }


def _message(number: int, people: Sequence[Row], chance: random.Random, odd: float) -> Row:
    person = chance.choice(people[:-2])
    sent = datetime(2022, 1, 1) + timedelta(minutes=chance.randrange(1_400_000), microseconds=chance.randrange(10**6))
    aware = _PARIS.localize(sent)
    row: Row = {
        "id": number * 3,  # Keys have gaps in practice.
        "contact_id": person["id"],
        "contact_name": person["name"],
        "message_text": chance.choice(_TEXTS),
        "sent_at": sent.isoformat() if chance.random() < 0.5 else aware.isoformat(),
        "is_late": chance.random() < 0.2,
        "days_late": chance.randrange(4),
        "response_received": chance.random() < 0.3,
        "response_text": chance.choice((None, "Merci ! 😊", "")),
        "response_date": chance.choice((None, "2024-01-01")),
        "script_mode": chance.choice(("standard", "unlimited", "custom", "routine", None)),
    }
    if chance.random() < odd:
        row |= _oddity(people, chance)
    return row


def _oddity(people: Sequence[Row], chance: random.Random) -> Row:
    named = chance.choice(people[:-2])["name"]
    return chance.choice(
        (
            {"sent_at": chance.choice(_BAD_TIMES)},
            {"sent_at": chance.choice(_ODD_TIMES)},
            {"sent_at": chance.choice(("", "  ", None))},
            {"contact_id": None, "contact_name": named},
            {"contact_id": None, "contact_name": "Nobody At All"},
            {"contact_id": None, "contact_name": people[-1]["name"]},
            {"contact_id": None, "contact_name": ""},
        )
    )


@dataclass(frozen=True)
class Expectation:
    """What should become of the rows: interactions by legacy key (with a null time where the step's start is taken)."""

    copied: dict[int, Row]
    rejected: set[int]


def expect(legacy: Legacy) -> Expectation:
    """Say what should become of each row."""
    names: dict[str, list[int]] = {}
    for person in legacy.contacts:
        names.setdefault(person["name"], []).append(person["id"])
    ids = {person["id"] for person in legacy.contacts}
    copied, rejected = {}, set()
    for message in legacy.messages:
        try:
            copied[message["id"]] = _interaction(message, ids, names)
        except ValueError:
            rejected.add(message["id"])
    return Expectation(copied, rejected)


def _interaction(message: Row, ids: set[int], names: dict[str, list[int]]) -> Row:
    contact = message["contact_id"]
    if contact is None:
        found = names.get(message["contact_name"], [])
        if len(found) != 1:
            raise ValueError("not exactly one contact")
        contact = found[0]
    if contact not in ids:
        raise ValueError("no such contact")
    given = (message["sent_at"] or "").strip()
    payload = {name: message[name] for name in LEGACY_COLUMNS if name not in ("id", "contact_id", "sent_at")}
    payload |= {
        "migrated_from": "birthday_messages",
        "original_id": message["id"],
        "original_sent_at": message["sent_at"],
    }
    return {
        "contact_id": contact,
        "type": "birthday_sent",
        "status": "success" if given else "pending",
        "created_at": _instant(given) if given else None,
        "payload": payload,
    }


def _instant(text: str) -> datetime:
    if re.fullmatch(r"\d{1,11}", text):
        return datetime(1970, 1, 1) + timedelta(seconds=int(text))
    day_first = re.fullmatch(r"(\d\d)[/.-](\d\d)[/.-](\d{4})(.*)", text)
    if day_first:
        text = f"{day_first[3]}-{day_first[2]}-{day_first[1]}{day_first[4]}"
    if not re.match(r"\d{4}-\d\d-\d\d", text):
        raise ValueError(text)
    instant = datetime.fromisoformat(re.sub(r"\.(\d+)", lambda found: "." + found[1].ljust(6, "0"), text))
    if instant.tzinfo is None:
        instant = _PARIS.localize(instant, is_dst=False)
    return instant.astimezone(pytz.utc).replace(tzinfo=None)


def canonical(row: Row) -> str:
    """Return a row as text that can be compared, counted and shown."""
    return json.dumps(row, sort_keys=True, default=str, ensure_ascii=False)
