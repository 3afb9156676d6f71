"""Reading a user's SQL only as far as the engine must: where it ends, whether it loses data, whether it can be undone.

No parser of a whole dialect: words outside of strings, quoted names and comments tell all of it.
"""

import re
from dataclasses import dataclass
from typing import Final

from .errors import MigrationError

_TOKEN: Final = re.compile(
    r"""
      (?P<line_comment>--[^\n]*)
    | (?P<block_comment>/\*)
    | (?P<dollar>\$(?P<tag>[A-Za-z_]\w*)?\$)
    | (?P<escaped>\b[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")*"|`[^`]*`)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)
_TRANSACTION_CONTROL: Final = frozenset(
    {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE", "PREPARE"}
)
_SESSION: Final = frozenset({"SET", "RESET", "DISCARD"})
_ALONE: Final = {
    ("VACUUM",): "VACUUM cannot run in a transaction; autovacuum does its work, or run it by hand",
    ("ALTER", "SYSTEM"): "ALTER SYSTEM cannot run in a transaction; set it by hand",
    ("CREATE", "DATABASE"): "CREATE DATABASE cannot run in a transaction; create it beforehand",
    ("DROP", "DATABASE"): "DROP DATABASE cannot run in a transaction; drop it by hand",
    ("CREATE", "TABLESPACE"): "CREATE TABLESPACE cannot run in a transaction; create it beforehand",
    ("DROP", "TABLESPACE"): "DROP TABLESPACE cannot run in a transaction; drop it by hand",
    ("COPY",): "COPY reads and writes files; load the rows beforehand",
}
# A trigger of SQLite, or a function of PostgreSQL, may hold statements between BEGIN and END.
_BODY: Final = {"BEGIN": 1, "CASE": 1, "END": -1}
_INDEX_WORDS: Final = frozenset({"INDEX", "REINDEX"})
_KEEPS_DATA: Final = frozenset({"NOT", "DEFAULT"})
_QUERIES: Final = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
_ALWAYS_A_ROW: Final = (("SELECT", "EXISTS"), ("SELECT", "NOT", "EXISTS"), ("SELECT", "COUNT"))


@dataclass(frozen=True, kw_only=True)
class SqlText:
    """One statement, as far as it was read."""

    text: str
    """The statement without a final semicolon."""
    words: tuple[str, ...]
    """Its words in capitals, without those in strings, quoted names and comments."""
    bodies: tuple[str, ...]
    """Its dollar-quoted texts."""

    @property
    def loses_data(self) -> bool:
        """Whether it drops, truncates or deletes; of a DO block, whether anything in it does."""
        if _loses_data(self.words):
            return True
        return self.words[:1] == ("DO",) and any(
            _loses_data(tuple(re.findall(r"\w+", body.upper()))) for body in self.bodies
        )


def read_statement(text: str, *, field: str) -> SqlText:
    """Read the text of one statement.

    Raises MigrationError (StatementRefused) naming the field where it holds none, or more than one.
    """
    words: list[str] = []
    bodies: list[str] = []
    position, end, depth = 0, None, 0
    while (token := _TOKEN.search(text, position)) is not None:
        position = token.end()
        match token.lastgroup:
            case "block_comment":
                position = _end_of_comment(text, position)
            case "dollar":
                close = text.find(token.group("dollar"), position)
                bodies.append(text[position : close if close >= 0 else len(text)])
                position = close + len(token.group("dollar")) if close >= 0 else len(text)
            case "word" if end is not None:
                raise _refused(field, "it holds more than one statement: give each a step of its own")
            case "word":
                words.append(token.group().upper())
                depth += _BODY.get(words[-1], 0) if words[0] == "CREATE" else 0
            case "end" if end is None and depth == 0:
                end = token.start()
    if not words:
        raise _refused(field, "it holds no statement")
    return SqlText(text=text[:end].strip(), words=tuple(words), bodies=tuple(bodies))


def _end_of_comment(text: str, position: int) -> int:
    """Return where a block comment ends; PostgreSQL lets them nest."""
    depth = 1
    while depth:
        found = re.compile(r"/\*|\*/").search(text, position)
        if found is None:
            return len(text)
        depth += 1 if found.group() == "/*" else -1
        position = found.end()
    return position


def require_transactional(statement: SqlText, *, field: str) -> None:
    """Raise MigrationError (StatementRefused) with what to do instead, where it cannot run in a transaction."""
    words = statement.words
    # SQLite's triggers and SQL functions hold BEGIN and END within; only the first word makes a statement of control.
    if words[0] in _TRANSACTION_CONTROL:
        raise _refused(field, f"{words[0]} would end or split the step's own transaction: leave it out")
    if words[0] in _SESSION:
        raise _refused(field, f"{words[0]} changes nothing but the worker's own session: leave the step out")
    for start, advice in _ALONE.items():
        if words[: len(start)] == start:
            raise _refused(field, advice)
    if "CONCURRENTLY" in words and _INDEX_WORDS & set(words[:3]):
        raise _refused(field, "an index CONCURRENTLY cannot be built or dropped in a transaction: use createIndexes")
    if "CONCURRENTLY" in words and words[0] == "ALTER":
        raise _refused(field, "DETACH PARTITION CONCURRENTLY cannot run in a transaction: leave CONCURRENTLY out")


def read_guard(text: str, *, field: str) -> SqlText:
    """Read a guard: a query that gives a row only when something is done.

    Raises MigrationError (StatementRefused) for what is no query, and for one that gives a row whatever it finds.
    """
    guard = read_statement(text, field=field)
    if guard.words[0] not in _QUERIES:
        raise _refused(field, "it must be a query (SELECT ...), which gives a row when the statement is already done")
    always = any(guard.words[: len(start)] == start for start in _ALWAYS_A_ROW)
    if always and not {"HAVING", "GROUP"} & set(guard.words):
        raise _refused(
            field,
            "it gives a row whatever it finds, so the statement would never run: write SELECT 1 WHERE EXISTS (...), "
            "or SELECT 1 FROM ... WHERE ...",
        )
    return guard


def _loses_data(words: tuple[str, ...]) -> bool:
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if word == "DROP" and following not in _KEEPS_DATA:
            return True
        if word == "DELETE" and (following == "FROM" or words[position - 1 : position] == ("THEN",)):
            return True
        if word == "TRUNCATE" and (position == 0 or following == "TABLE"):
            return True
    return False


def _refused(field: str, why: str) -> MigrationError:
    return MigrationError("StatementRefused", f"{field}: {why}", retry="Never")
