"""The alerts, judged by Prometheus' own promtool: they are valid, fire when they should and only then."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shipkeeper_operator.children.appdeployment_monitoring import alert_rules
from support.applications import application
from support.promtool import promtool

pytestmark = pytest.mark.integration

UP = 'up{namespace="shop",service="app",pod="app-1"}'
REQUESTS = 'http_requests_total{namespace="shop",service="app",pod="app-1",status="%s"}'


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """Write the rules of an application to a file as Prometheus reads it."""
    groups = {"groups": [{"name": "app", "rules": list(alert_rules(application()))}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    return tmp_path


def test_the_rules_are_valid(rules: Path) -> None:
    promtool(rules, "check", "rules", "--lint-fatal", "rules.yaml")


@pytest.mark.parametrize(
    ("series", "alert", "fires"),
    [
        ({UP: "1x20"}, "ApplicationDown", False),
        ({UP: "0x20"}, "ApplicationDown", True),
        ({'up{namespace="other",service="app"}': "1x20"}, "ApplicationDown", True),
        ({UP: "0x20", 'up{namespace="shop",service="app",pod="app-2"}': "1x20"}, "ApplicationDown", False),
        ({REQUESTS % 200: "0+100x20", REQUESTS % 503: "0+10x20"}, "ApplicationErrorRate", True),
        ({REQUESTS % 200: "0+100x20", REQUESTS % 503: "0+4x20"}, "ApplicationErrorRate", False),
        ({REQUESTS % 200: "0+100x20", REQUESTS % 404: "0+50x20"}, "ApplicationErrorRate", False),
    ],
)
def test_an_alert_fires_when_it_should(rules: Path, series: dict[str, str], alert: str, fires: bool) -> None:
    rule = next(each for each in alert_rules(application()) if each["alert"] == alert)
    expected: list[dict[str, Any]] = [{"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [{"eval_time": "18m", "alertname": alert, "exp_alerts": expected if fires else []}],
            }
        ],
    }
    (rules / "test.yaml").write_text(yaml.safe_dump(test))
    promtool(rules, "test", "rules", "test.yaml")


def test_an_alert_says_whose_it_is() -> None:
    for rule in alert_rules(application()):
        assert rule["labels"].items() >= {"namespace": "shop", "service": "app"}.items()
