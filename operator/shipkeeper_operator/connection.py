"""How the process reaches the API server: address, certificate authority and credentials, from a pod or a kubeconfig.

Two HTTP sessions come of it. One is the client's own; the other is kopf's, because kopf closes and replaces its session
whenever a credential was refused. Both take the bearer token afresh for every request, so a rotated token never stops
the operator.
"""

import os
from importlib.metadata import version

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.dynamic import DynamicClient

# Of the client; kopf's watches have their own. Each costs 128 KiB for TLS, and the API server answers few at a time.
MAX_CONNECTIONS = 10
USER_AGENT = f"shipkeeper-operator/{version('shipkeeper')}"


class Connection:
    """One API server and the right to talk to it."""

    def __init__(self, configuration: Configuration) -> None:
        """Take a loaded configuration; no request is made."""
        self.configuration = configuration
        configuration.connection_pool_maxsize = MAX_CONNECTIONS
        # No proxy and no netrc from the environment: the latter is read from disk, by a thread, at every request.
        configuration.client_session_kwargs = {"trust_env": False}
        self._api_client = ApiClient(configuration)
        self._api_client.user_agent = USER_AGENT

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self.configuration.host)

    def dynamic_client(self) -> DynamicClient:
        """Return a client that sends what it is told, without discovery."""
        return DynamicClient(self._api_client)

    def watch_session(self, *middlewares: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
        """Return a new session for kopf, which owns it from then on. The given middlewares see every request."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._api_client.rest_client.ssl_context),
            headers={"User-Agent": USER_AGENT},
            middlewares=(*middlewares, self._authorized),
        )

    async def close(self) -> None:
        """Close the client's session."""
        await self._api_client.close()

    async def _authorized(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        token = await self.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            request.headers["Authorization"] = token
        return await handler(request)


async def connect() -> Connection:
    """Load the connection of the pod's service account, or else of KUBECONFIG (default ~/.kube/config).

    Raises kubernetes.aio.config.ConfigException where neither is there.
    """
    configuration = Configuration()
    if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(client_configuration=configuration)
    return Connection(configuration)
