"""The examples in the pages for people are real: each resource in them is one that the models accept."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from shipkeeper.resources import KINDS
from shipkeeper.resources.base import API_VERSION

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def resources(page: Path) -> list[dict[str, Any]]:
    documents = [each for block in BLOCK.findall(page.read_text()) for each in yaml.safe_load_all(block)]
    return [each for each in documents if isinstance(each, dict) and each.get("apiVersion") == API_VERSION]


def test_the_readme_shows_all_three() -> None:
    assert {each["kind"] for each in resources(ROOT / "README.md")} == {kind.kind for kind in KINDS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_is_accepted(page: Path) -> None:
    kinds = {kind.kind: kind for kind in KINDS}
    for example in resources(page):
        kinds[example["kind"]].parse(example)


LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert missing == []
