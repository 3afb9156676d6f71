import ipaddress
import json
from pathlib import Path

import pytest

from localcluster.cgroups import hierarchies
from localcluster.errors import LocalClusterError
from localcluster.hostnetwork import link_name, upstream_resolvers
from localcluster.subnets import BLOCKS, Network, choose, used_networks

BLOCK = ipaddress.IPv4Network("10.213.0.0/16")


def test_the_parts_of_a_network_lie_apart_in_its_block() -> None:
    network = Network(BLOCK)
    parts = [
        ipaddress.IPv4Network(network.pods),
        ipaddress.IPv4Network(network.services),
        ipaddress.IPv4Network(f"{network.host}/30", strict=False),
    ]
    assert all(part.subnet_of(BLOCK) for part in parts)
    assert not any(one.overlaps(other) for one in parts for other in parts if one is not other)
    assert ipaddress.IPv4Address(network.node) in parts[2]
    assert ipaddress.IPv4Address(network.api_service) == parts[1][1]
    assert ipaddress.IPv4Address(network.dns_service) in parts[1]


@pytest.mark.parametrize("used", ["10.213.4.0/24", "10.213.255.1/32", "10.212.0.0/15"])
def test_a_block_that_anything_overlaps_is_passed_over(used: str) -> None:
    expected = "10.214.0.0/16"
    assert str(choose([ipaddress.IPv4Network(used)]).block) == expected


def test_a_machine_without_a_free_block_is_told_so() -> None:
    with pytest.raises(LocalClusterError, match=r"No free subnet .* 10\.213\.0\.0/16"):
        choose((*BLOCKS, ipaddress.IPv4Network("10.0.0.0/8")))


def test_used_networks_come_from_addresses_and_routes() -> None:
    addresses = json.dumps([{"addr_info": [{"local": "192.0.2.2", "prefixlen": 24}]}, {"addr_info": [{}]}, {}])
    routes = json.dumps([{"dst": "default"}, {"dst": "10.213.0.0/17"}, {"dst": "198.51.100.7"}])
    found = [str(network) for network in used_networks(addresses, routes)]
    assert found == ["192.0.2.0/24", "10.213.0.0/17", "198.51.100.7/32"]
    assert used_networks("", "") == []


def test_link_names_fit_and_differ() -> None:
    assert link_name("shipkeeper") == "sk-shipkeeper"
    long = [link_name("a-cluster-with-a-long-name-1"), link_name("a-cluster-with-a-long-name-2")]
    assert len(set(long)) == 2
    assert all(len(name) <= 15 for name in long)


def test_resolvers_on_the_loopback_are_of_no_use_to_a_node(tmp_path: Path) -> None:
    stub, real, missing = tmp_path / "stub", tmp_path / "real", tmp_path / "missing"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\n")
    real.write_text("# by hand\nnameserver 192.0.2.53\nnameserver 198.51.100.53\n")
    assert upstream_resolvers(missing, stub, real) == ["192.0.2.53", "198.51.100.53"]
    assert upstream_resolvers(stub) == []


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", ["/sys/fs/cgroup"]),
        (
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"],
        ),
        ("proc /proc proc rw 0 0\n", []),
    ],
)
def test_control_group_hierarchies_of_both_versions_are_found(mounts: str, expected: list[str]) -> None:
    assert [str(path) for path in hierarchies(mounts)] == expected
