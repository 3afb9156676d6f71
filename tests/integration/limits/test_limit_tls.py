"""TLS to every server the limiter promises to work on: what a URL may say, and what each mistake is called."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

from shipkeeper.limits import AsyncLimiter, Limiter, StoreError
from shipkeeper.limits.connection import AsyncStore, StoreAddress
from shipkeeper.limits.store import install_library, install_policy
from shipkeeper.resources.ratelimitpolicy import OnStoreUnavailable
from support.limit_policies import NAMESPACE, install, spec_of
from support.redis_server import RedisServer, ServerTls
from support.server_programs import SERVERS, make_tls, server_program

pytestmark = pytest.mark.integration

BY_DAY: Final[dict[str, Any]] = {"limits": [{"name": "day", "amount": 1000, "period": "Day"}]}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@contextmanager
def running(name: str, tls: ServerTls) -> Iterator[RedisServer]:
    with RedisServer(program=server_program(name), tls=tls) as server:
        install(server, "limits", BY_DAY)
        yield server


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tls: ServerTls) -> Iterator[RedisServer]:
    """Each server in turn: it speaks TLS alone and has a policy."""
    with running(request.param, tls) as server:
        yield server


@pytest.fixture(scope="module")
def any_server(tls: ServerTls) -> Iterator[RedisServer]:
    """One of them, for what the client alone decides."""
    with running(SERVERS[-1], tls) as server:
        yield server


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of an authority that signed nothing here."""
    return make_tls(tmp_path_factory.mktemp("other")).authority


def failures(url: str, *, timeout: str = "10s") -> tuple[str, str]:
    """Return why the limiter for threads, and the one for asyncio, got no verdict; empty when they got one."""
    settings = OnStoreUnavailable(timeout=timeout)

    async def ask() -> str:
        async with AsyncLimiter.from_url(
            url, namespace=NAMESPACE, policy="limits", on_store_unavailable=settings
        ) as limiter:
            return (await limiter.acquire()).store_failure

    with Limiter.from_url(url, namespace=NAMESPACE, policy="limits", on_store_unavailable=settings) as limiter:
        return limiter.acquire().store_failure, asyncio.run(ask())


def without_options(server: RedisServer) -> str:
    return server.url.partition("?")[0]


def test_a_private_authority_is_named_by_a_file(server: RedisServer) -> None:
    assert "ssl_ca_certs=" in server.url
    assert failures(server.url) == ("", "")


def test_a_private_authority_is_given_in_the_url_itself(any_server: RedisServer, tls: ServerTls) -> None:
    """For who has no file system to put it on: the operator reads the URL from a Secret."""
    url = f"{without_options(any_server)}?ssl_ca_data={quote(tls.authority.read_text())}"
    asyncio.run(install_policy(url, spec_of(BY_DAY), namespace=NAMESPACE, name="limits"))
    assert failures(url) == ("", "")


def test_what_an_authority_did_not_sign_is_not_trusted(server: RedisServer, other_authority: Path) -> None:
    assert failures(f"{without_options(server)}?ssl_ca_certs={other_authority}") == ("TlsFailed", "TlsFailed")
    assert failures(without_options(server)) == ("TlsFailed", "TlsFailed")


def test_a_certificate_is_for_one_host_unless_the_url_says_otherwise(any_server: RedisServer) -> None:
    url = any_server.url.replace("127.0.0.1", "localhost")
    assert failures(url) == ("TlsFailed", "TlsFailed")
    assert failures(f"{url}&ssl_check_hostname=true") == ("TlsFailed", "TlsFailed")
    assert failures(f"{url}&ssl_check_hostname=false") == ("", "")


def test_nothing_is_verified_where_the_url_says_so(any_server: RedisServer) -> None:
    assert failures(f"{without_options(any_server)}?ssl_cert_reqs=none") == ("", "")


@pytest.mark.parametrize("option", ["ssl_ca_certs=/nowhere/ca.crt", "ssl_certfile=/nowhere/tls.crt"])
def test_a_file_that_is_missing_is_a_matter_of_tls(any_server: RedisServer, option: str) -> None:
    assert failures(f"{without_options(any_server)}?{option}") == ("TlsFailed", "TlsFailed")


def test_a_client_without_tls_finds_nobody(server: RedisServer) -> None:
    assert failures(without_options(server).replace("rediss:", "redis:")) == ("Unreachable", "Unreachable")


@pytest.mark.parametrize("name", SERVERS)
def test_a_client_with_tls_waits_in_vain_for_a_server_without(name: str) -> None:
    with RedisServer(program=server_program(name)) as server:
        assert failures(server.url.replace("redis:", "rediss:"), timeout="300ms") == ("Timeout", "Timeout")


@pytest.mark.parametrize("name", SERVERS)
async def test_a_client_shows_its_own_certificate(name: str, tmp_path: Path) -> None:
    tls = make_tls(tmp_path, demands_client_certificate=True)
    with RedisServer(program=server_program(name), tls=tls) as server:
        await asyncio.to_thread(install, server, "limits", BY_DAY)
        assert await asyncio.to_thread(failures, server.url) == ("", "")
        anonymous = f"{without_options(server)}?ssl_ca_certs={tls.authority}"
        # The server says no after the handshake; it may have closed the connection before a client reads why.
        refused = await asyncio.to_thread(failures, anonymous)
        assert set(refused) <= {"TlsFailed", "Unreachable"}
        store = AsyncStore(StoreAddress(url=anonymous), timeout=10)
        with pytest.raises(StoreError):
            await install_library(store)
        await store.close()


@pytest.mark.parametrize(
    "option",
    ["ssl_cert_reqs=maybe", "ssl_check_hostname=perhaps", "ssl_ca_cert=typing-error", "ssl_min_version=TLSv1_2"],
)
def test_what_a_url_may_not_say_about_tls_is_refused_at_once(option: str) -> None:
    for limiter in (Limiter, AsyncLimiter):
        with pytest.raises(StoreError, match="URL"):
            limiter.from_url(f"rediss://127.0.0.1/0?{option}", namespace=NAMESPACE, policy="limits")
