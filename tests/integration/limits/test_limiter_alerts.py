"""The alerts that docs/limits.md shows: valid by Prometheus' own tool, about metrics that exist, firing as they say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from shipkeeper.limits.metrics import LimiterMetrics
from support.promtool import promtool

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).parents[3] / "docs" / "limits.md").read_text()
GROUPS = next(block for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S) if block.startswith("groups:"))
QUERIES = re.findall(r"^```promql\n(.*?)^```", PAGE, re.M | re.S)[0].splitlines()
ABOUT = 'namespace="birthday",policy="limits",pod="%s"'
LEFT = f'shipkeeper_limiter_remaining{{{ABOUT},limit="day"}}'
AMOUNT = f'shipkeeper_limiter_amount{{{ABOUT},limit="day"}}'
ERRORS = f'shipkeeper_limiter_store_errors_total{{{ABOUT},reason="Timeout"}}'
STATE = f'shipkeeper_limiter_breaker_state{{{ABOUT},state="%s"}}'
DAY = {"namespace": "birthday", "policy": "limits", "limit": "day"}
POLICY = {"namespace": "birthday", "policy": "limits"}


def test_rules_and_queries_are_valid(tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(GROUPS)
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    promtool(tmp_path, "check", "rules", "--lint-fatal", "alerts.yaml", "queries.yaml")


def test_the_page_names_the_metrics_that_there_are() -> None:
    registry = CollectorRegistry()
    LimiterMetrics(registry)
    declared = {f"{each.name}_total" if each.type == "counter" else each.name for each in registry.collect()}
    named = set(re.findall(r"^\| `(shipkeeper_limiter_\w+)\{", PAGE, re.M))
    assert named == declared
    used = set(re.findall(r"shipkeeper_limiter_\w+", GROUPS + "\n".join(QUERIES)))
    assert used
    assert {name.removesuffix("_bucket") for name in used} <= declared


@pytest.mark.parametrize(
    ("series", "alert", "labels"),
    [
        ({LEFT % "a": "1x20", AMOUNT % "a": "15x20"}, "QuotaNearlyUsed", DAY),
        ({LEFT % "a": "2x20", AMOUNT % "a": "15x20"}, "QuotaNearlyUsed", None),
        (
            {LEFT % "a": "9x20", AMOUNT % "a": "15x20", LEFT % "b": "0x20", AMOUNT % "b": "15x20"},
            "QuotaNearlyUsed",
            DAY,
        ),
        ({ERRORS % "a": "0+1x20"}, "LimiterWithoutStore", POLICY | {"reason": "Timeout"}),
        ({ERRORS % "a": "7x20"}, "LimiterWithoutStore", None),
        ({STATE % ("a", "Open"): "0x20", STATE % ("b", "Open"): "1x20"}, "CircuitOpen", POLICY),
        ({STATE % ("a", "Open"): "0x20", STATE % ("a", "HalfOpen"): "1x20"}, "CircuitOpen", None),
    ],
)
def test_an_alert_fires_when_it_should(
    tmp_path: Path, series: dict[str, str], alert: str, labels: dict[str, str] | None
) -> None:
    (tmp_path / "alerts.yaml").write_text(GROUPS)
    expected: list[dict[str, Any]] = [] if labels is None else [{"exp_labels": labels}]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    check = {"eval_time": "18m", "alertname": alert, "exp_alerts": expected}
    test = {
        "rule_files": ["alerts.yaml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": inputs, "alert_rule_test": [check]}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    promtool(tmp_path, "test", "rules", "test.yaml")
