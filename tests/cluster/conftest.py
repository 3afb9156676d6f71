"""One control plane per test session; a namespace per test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.kubectl import Kubectl
from localcluster.controlplane import ControlPlane
from support.apiserver import ApiServer

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies below this folder: it needs an API server."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A real API server with the CRDs of crds/, shared by the whole session."""
    control_plane = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    control_plane.start()
    try:
        server = ApiServer(control_plane)
        server.install_crds()
        yield server
    finally:
        control_plane.remove()


@pytest.fixture
def kubectl(api_server: ApiServer) -> Kubectl:
    """Run kubectl as the cluster's administrator."""
    return api_server.kubectl


@pytest.fixture
def namespace(api_server: ApiServer) -> Iterator[str]:
    """Give the test a namespace of its own."""
    name = api_server.create_namespace()
    yield name
    api_server.delete_namespace(name)
