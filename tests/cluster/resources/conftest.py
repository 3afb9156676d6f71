"""One namespace for all questions about admission: nearly nothing is stored in it."""

from collections.abc import Iterator

import pytest

from support.apiserver import ApiServer
from support.dry_run import Admission


@pytest.fixture(scope="session")
def admission(api_server: ApiServer) -> Iterator[Admission]:
    """The API server's answers to objects of our kinds."""
    name = api_server.create_namespace("admission")
    yield Admission(api_server.kubeconfig, name)
    api_server.delete_namespace(name)
