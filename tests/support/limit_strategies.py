"""Random policies and random edits of them, for Hypothesis."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from shipkeeper.resources.schedule import WEEKDAYS
from support.limit_policies import milliseconds_at as at
from support.wall_clock import DAY, HOUR, MINUTE

Document = dict[str, Any]

# Instants around which calendars are hard: both clock changes of three zones, the ends of a week, a month, a year and
# a leap February, an opening.
EDGES = [
    at("2026-03-28T23:00"),
    at("2026-03-29T01:00"),
    at("2026-10-24T22:00"),
    at("2026-10-25T01:00"),
    at("2026-03-08T07:00"),
    at("2026-11-01T06:00"),
    at("2026-04-04T15:00"),
    at("2026-10-03T15:30"),
    at("2026-11-29T23:00"),
    at("2026-11-30T23:00"),
    at("2026-12-31T23:00"),
    at("2026-11-24T06:00"),
    at("2026-11-24T18:00"),
    at("2028-02-28T23:00"),
    at("2028-02-29T12:00"),
]
ZONES = [
    "Europe/Paris",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "America/Sao_Paulo",
    "Pacific/Auckland",
    "UTC",
]
STEPS = st.one_of(
    st.integers(0, 2000),
    st.integers(0, 10 * MINUTE),
    st.integers(0, 3 * HOUR),
    st.integers(0, 2 * DAY),
    st.sampled_from([MINUTE, HOUR, DAY, 90_000]),
)
LIMIT_NAMES = ["alpha", "beta", "gamma", "delta"]
_TIMES = [f"{hour:02}:{minute:02}" for hour in range(24) for minute in (0, 30)]
_KINDS = ["Calendar", "Calendar", "Rolling", "FirstUse", "Execution"]
_MODES = st.sampled_from(["Enforce", "Enforce", "Enforce", "Enforce", "Shadow", "Off"])
_MODES_THAT_COUNT = st.sampled_from(["Enforce", "Enforce", "Enforce", "Shadow"])


@st.composite
def definitions(draw: st.DrawFn, *, kinds: Sequence[str] = _KINDS) -> Document:
    """A limit without its name, amount and mode."""
    kind = draw(st.sampled_from(kinds))
    if kind == "Execution":
        return {"period": "Execution"}
    if kind != "Calendar":
        return {"period": draw(st.sampled_from(["90s", "10m", "1h", "36h", "Day"])), "alignment": kind}
    limit: Document = {"period": draw(st.sampled_from(["Second", "Minute", "Hour", "Day", "Week", "Month"]))}
    if limit["period"] in ("Day", "Week", "Month"):
        limit["resetAt"] = draw(st.sampled_from(["00:00", "02:15", "02:30", "04:30", "12:00", "23:30"]))
    if limit["period"] == "Week":
        limit["weekStart"] = draw(st.sampled_from(["Monday", "Sunday", "Thursday"]))
    return limit


@st.composite
def limits(draw: st.DrawFn, *, name: str, bursts: bool = False, kinds: Sequence[str] = _KINDS) -> Document:
    """A limit of this name."""
    amount = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12]))
    limit: Document = {"name": name, "amount": amount} | draw(definitions(kinds=kinds))
    if bursts and limit.get("alignment") == "Rolling" and draw(st.booleans()):
        limit["burst"] = draw(st.integers(1, amount))
    return limit


@st.composite
def limit_lists(draw: st.DrawFn, *, bursts: bool = False, modes: bool = False) -> list[Document]:
    """One to four limits; in one of three lists nothing but enforced calendars, the usual policy."""
    names = draw(st.lists(st.sampled_from(LIMIT_NAMES), min_size=1, max_size=4, unique=True))
    usual = draw(st.integers(0, 2)) == 2
    made = [draw(limits(name=name, bursts=bursts, kinds=["Calendar"] if usual else _KINDS)) for name in names]
    return [limit | {"mode": draw(_MODES)} for limit in made] if modes and not usual else made


@st.composite
def active_hours(draw: st.DrawFn) -> Document:
    """Weekly hours, over midnight too, with one exception around the autumn's change."""
    rules = []
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.sampled_from(_TIMES))
        end = draw(st.sampled_from([each for each in [*_TIMES, "24:00"] if each != start]))
        days = draw(st.lists(st.sampled_from(WEEKDAYS), min_size=2, max_size=7, unique=True))
        rules.append({"days": days, "times": [{"start": start, "end": end}]})
    exceptions: list[Document] = [
        {"date": "2026-10-25", "times": [{"start": "01:00", "end": "02:30"}]},
        {"date": "2026-12-31", "times": [{"start": "22:00", "end": "03:00"}]},
        {"date": "2028-02-29", "times": []},
    ]
    return {"rules": rules, "exceptions": draw(st.sampled_from([exceptions, []]))}


@st.composite
def breakers(draw: st.DrawFn) -> Document:
    """A breaker by failures in a row, by a rate over a window, or by both."""
    breaker: Document = {
        "openTime": {"initial": draw(st.sampled_from(["700ms", "5s", "1m"])), "multiplier": 2, "max": "2m"},
        "halfOpen": {
            "permits": draw(st.integers(1, 2)),
            "permitTimeout": draw(st.sampled_from(["1s", "30s"])),
            "successThreshold": draw(st.integers(1, 2)),
        },
        "override": draw(st.sampled_from(["Auto"] * 9 + ["MetricsOnly", "ForcedOpen", "Disabled"])),
    }
    kind = draw(st.sampled_from(["row", "rate", "both"]))
    if kind != "rate":
        breaker["consecutiveFailures"] = draw(st.integers(1, 3))
    if kind != "row":
        windows: list[Document] = [{"size": 3}, {"size": 4}, {"duration": "10s"}, {"duration": "1m"}]
        breaker["window"] = draw(st.sampled_from(windows)) | {"minimumCalls": draw(st.integers(1, 3))}
        breaker["failureRatePercent"] = draw(st.sampled_from([50, 100]))
    return breaker


def spacings() -> st.SearchStrategy[Document]:
    """A pause of 30 s, or one that is drawn from a span."""
    return st.sampled_from([{"min": "30s", "max": "30s"}, {"min": "15s", "max": "4m"}])


@st.composite
def policies(draw: st.DrawFn, *, bursts: bool = False, modes: bool = False, breaker: bool = False) -> Document:
    """A policy with limits and, sometimes, each of the other rules."""
    document: Document = {
        "timeZone": draw(st.sampled_from(ZONES)),
        "limits": draw(limit_lists(bursts=bursts, modes=modes)),
    }
    if draw(st.integers(0, 2)) == 2:
        document["spacing"] = draw(spacings())
    if draw(st.integers(0, 2)) == 2:
        document["activeHours"] = draw(active_hours())
    if breaker and draw(st.booleans()):
        document["circuitBreaker"] = draw(breakers())
    return document


@st.composite
def fast_policies(draw: st.DrawFn) -> Document:
    """A policy whose windows and pauses pass within a second or two of real time; its limits count in every run."""
    many = st.integers(100, 900)
    windows: list[Document] = [
        {"period": "Second"},
        {"period": "Day", "amount": draw(many)},
        {"period": "Execution", "amount": draw(many)},
        {"period": "1s", "alignment": "Rolling"},
        {"period": "1600ms", "alignment": "Rolling", "burst": 4},
        {"period": "1300ms", "alignment": "FirstUse"},
    ]
    made = []
    for name in draw(st.lists(st.sampled_from(LIMIT_NAMES), min_size=1, max_size=4, unique=True)):
        limit: Document = {"name": name, "amount": draw(st.integers(5, 40)), "mode": draw(_MODES_THAT_COUNT)}
        made.append(limit | draw(st.sampled_from(windows)))
    document: Document = {"timeZone": draw(st.sampled_from(ZONES)), "limits": made}
    if draw(st.integers(0, 3)) == 3:
        document["spacing"] = draw(st.sampled_from([{"min": "5ms", "max": "5ms"}, {"min": "1ms", "max": "60ms"}]))
    return document


@st.composite
def edits(draw: st.DrawFn, document: Document) -> Document:
    """Another version of a policy: one thing is changed."""
    kind = draw(st.sampled_from(["limit", "limit", *sorted(_EDITS)]))
    changed = draw(_EDITS[kind](document))
    return {name: value for name, value in (document | changed).items() if value is not None}


@st.composite
def _one_limit(draw: st.DrawFn, document: Document) -> Document:
    """Another amount, mode, window or name of one limit."""
    index = draw(st.integers(0, len(document["limits"]) - 1))
    limit = document["limits"][index]
    what = draw(st.sampled_from(["amount", "mode", "definition", "name"]))
    if what == "amount":
        amount = draw(st.integers(limit.get("burst", 1), 12))
        limit = limit | {"amount": amount}
    elif what == "mode":
        limit = limit | {"mode": draw(_MODES)}
    elif what == "definition":
        keep = {name: limit[name] for name in ("name", "amount", "mode") if name in limit}
        limit = keep | draw(definitions())
    else:
        free = [name for name in LIMIT_NAMES if name not in [each["name"] for each in document["limits"]]]
        limit = limit | {"name": draw(st.sampled_from([*free, limit["name"]]))}
    return {"limits": [*document["limits"][:index], limit, *document["limits"][index + 1 :]]}


@st.composite
def _limits_come_and_go(draw: st.DrawFn, document: Document) -> Document:
    """The same limits in another order, one less, or one more."""
    kept: list[Document] = draw(st.permutations(document["limits"]))
    if len(kept) > 1 and draw(st.booleans()):
        return {"limits": kept[1:]}
    free = [name for name in LIMIT_NAMES if name not in [each["name"] for each in kept]]
    return {"limits": kept + ([draw(limits(name=free[0]))] if free else [])}


def _or_none(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


_EDITS: dict[str, Any] = {
    "limit": _one_limit,
    "limits": _limits_come_and_go,
    "zone": lambda _: st.fixed_dictionaries({"timeZone": st.sampled_from(ZONES)}),
    "spacing": lambda _: st.fixed_dictionaries({"spacing": _or_none(spacings())}),
    "hours": lambda _: st.fixed_dictionaries({"activeHours": _or_none(active_hours())}),
    "breaker": lambda _: st.fixed_dictionaries({"circuitBreaker": _or_none(breakers())}),
    "mode": lambda _: st.fixed_dictionaries({"mode": st.sampled_from(["Enforce", "Enforce", "Shadow", "Off"])}),
}
