"""Chooses addresses for a cluster that collide with nothing the machine uses."""

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass

from localcluster.errors import LocalClusterError

# 10.213.0.0/16 and upwards: away from the beginnings of the private ranges, which offices and container engines take.
BLOCKS = tuple(ipaddress.IPv4Network(f"10.{second}.0.0/16") for second in range(213, 250))


@dataclass(frozen=True)
class Network:
    """The addresses of one cluster, all out of one /16 block."""

    block: ipaddress.IPv4Network

    def _address(self, offset: int) -> str:
        return str(self.block[offset])

    @property
    def pods(self) -> str:
        """The pods' subnet."""
        return f"{self._address(0)}/24"

    @property
    def services(self) -> str:
        """The Services' subnet."""
        return f"{self._address(128 << 8)}/20"

    @property
    def api_service(self) -> str:
        """The address of the Service `kubernetes`: the first one of the Services' subnet."""
        return self._address((128 << 8) + 1)

    @property
    def dns_service(self) -> str:
        """The address of the Service `kube-dns`."""
        return self._address((128 << 8) + 10)

    @property
    def host(self) -> str:
        """The machine's end of its link with the node."""
        return self._address((255 << 8) + 1)

    @property
    def node(self) -> str:
        """The node's end of the link; the API server listens here."""
        return self._address((255 << 8) + 2)


def used_networks(addresses_json: str, routes_json: str) -> list[ipaddress.IPv4Network]:
    """The networks that `ip -json -4 address` and `ip -json -4 route` speak of, but for the default route."""
    found = [
        ipaddress.IPv4Network(f"{entry['local']}/{entry['prefixlen']}", strict=False)
        for link in json.loads(addresses_json or "[]")
        for entry in link.get("addr_info", [])
        if "local" in entry
    ]
    found += [
        ipaddress.IPv4Network(route["dst"], strict=False)
        for route in json.loads(routes_json or "[]")
        if route.get("dst", "default") != "default"
    ]
    return found


def choose(used: Iterable[ipaddress.IPv4Network]) -> Network:
    """The first block that overlaps nothing in use.

    Raises LocalClusterError where none is free.
    """
    occupied = list(used)
    for block in BLOCKS:
        if not any(block.overlaps(network) for network in occupied):
            return Network(block)
    raise LocalClusterError("No free subnet for a cluster between 10.213.0.0/16 and 10.249.0.0/16.")
