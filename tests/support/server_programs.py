"""The servers that the limiter promises to work on, and certificates for them; `make programs` fetches the servers."""

from pathlib import Path
from typing import Final

from localcluster import debianprograms
from localcluster.pki import Authority
from support.redis_server import ServerProgram, ServerTls

_RELEASES: Final = {
    "Redis 7": ("bookworm", "redis"),
    "Redis 8": ("trixie", "redis"),
    "Valkey 8": ("trixie", "valkey"),
}
SERVERS: Final = tuple(_RELEASES)


def server_program(name: str) -> ServerProgram:
    """Return the programs of one of SERVERS. Raises LocalClusterError, which says what to run, where it is missing."""
    release, family = _RELEASES[name]
    server, cli = (str(debianprograms.program(release, f"{family}-{part}")) for part in ("server", "cli"))
    return ServerProgram(name, server, cli)


def make_tls(folder: Path, *, demands_client_certificate: bool = False) -> ServerTls:
    """Make an authority of one's own, and under it the certificates of a server at 127.0.0.1 and of a client."""
    authority = Authority(folder)
    server = authority.server("redis", user="redis", addresses=("127.0.0.1",))
    client = authority.client("application", user="application")
    return ServerTls(
        authority=authority.certificate,
        certificate=server.certificate,
        key=server.key,
        client_certificate=client.certificate,
        client_key=client.key,
        demands_client_certificate=demands_client_certificate,
    )
