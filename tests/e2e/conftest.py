"""One whole cluster for all e2e tests, the demo's, with the demo's story told in it. It is kept for the next run."""

import secrets
from collections.abc import Iterator

import pytest

from demo.kubectl import Kubectl
from demo.steps import Steps
from demo.story import Story, run
from support.kubernetes import StoryNamespace


@pytest.fixture(scope="session")
def story() -> Story:
    return run(Steps())


@pytest.fixture(scope="session")
def kubectl(story: Story) -> Kubectl:
    return story.kubectl


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[StoryNamespace]:
    """Give a test a namespace and a database of its own, and remove both after it."""
    created = StoryNamespace(kubectl, f"e2e-{secrets.token_hex(4)}")
    created.create()
    yield created
    created.remove()
