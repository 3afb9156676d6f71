"""The machine's side of a cluster's network: one link to the node, and the way from there to the rest of the world.

Everything else (the pods' links, kube-proxy's rules) lives in the node's own network namespace and ends with it.
"""

import contextlib
import hashlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import LocalClusterError
from localcluster.shell import run
from localcluster.subnets import Network, choose, used_networks

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NODE_LINK = "eth0"
Rule = tuple[str, str, str, tuple[str, ...]]  # table, how to add, chain, match and target


@dataclass(frozen=True, kw_only=True)
class HostNetwork:
    """The link of one cluster. `folder` keeps what has to be put back afterwards."""

    cluster: str
    network: Network
    folder: Path

    @property
    def link(self) -> str:
        """The name of the machine's end; names of links have at most 15 letters."""
        return link_name(self.cluster)

    @property
    def _forwarding_record(self) -> Path:
        return self.folder / "forwarding-enabled-in-boot"

    def _rules(self) -> list[Rule]:
        mark = ("-m", "comment", "--comment", f"shipkeeper cluster {self.cluster}")
        answers = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")
        masquerade = ("-s", f"{self.network.node}/32", "!", "-o", self.link, *mark, "-j", "MASQUERADE")
        return [
            ("nat", "-A", "POSTROUTING", masquerade),
            # Explicit, because a container engine may have set the chain's policy to DROP.
            ("filter", "-I", "FORWARD", ("-i", self.link, *mark, "-j", "ACCEPT")),
            ("filter", "-I", "FORWARD", ("-o", self.link, *answers, *mark, "-j", "ACCEPT")),
        ]

    def attach(self, pid: int) -> None:
        """Link the machine with the network namespace of a process, which finds its end as `eth0`."""
        self.detach_link()
        peer = ("peer", "name", NODE_LINK, "netns", str(pid))
        run("ip", "link", "add", self.link, "type", "veth", *peer)
        run("ip", "address", "add", f"{self.network.host}/30", "dev", self.link)
        run("ip", "link", "set", self.link, "up")
        for table, add, chain, rule in self._rules():
            if not self._has(table, chain, rule):
                run("iptables", "-w", "-t", table, add, chain, *rule)
        if FORWARDING.read_text().strip() == "0":
            self._forwarding_record.write_text(BOOT_ID.read_text())
            FORWARDING.write_text("1")

    def detach_link(self) -> None:
        """Remove the link where it exists; a link also ends with the namespace of its other end."""
        if Path("/sys/class/net", self.link).exists():
            with contextlib.suppress(LocalClusterError):
                run("ip", "link", "delete", self.link)

    def detach(self, *, last: bool) -> None:
        """Remove the link and the rules. `last`: no other cluster needs the machine to forward packets."""
        self.detach_link()
        for table, _, chain, rule in self._rules():
            while self._has(table, chain, rule):
                run("iptables", "-w", "-t", table, "-D", chain, *rule)
        # What was set in an earlier life of the machine is not ours to undo.
        record = self._forwarding_record
        if last and record.exists() and record.read_text() == BOOT_ID.read_text():
            FORWARDING.write_text("0")

    def _has(self, table: str, chain: str, rule: tuple[str, ...]) -> bool:
        try:
            run("iptables", "-w", "-t", table, "-C", chain, *rule)
        except LocalClusterError:
            return False
        return True


def link_name(cluster: str) -> str:
    """The name of a cluster's link: at most 15 letters, distinct for distinct clusters."""
    name = f"sk-{cluster}"
    return name if len(name) <= 15 else f"sk-{hashlib.sha256(cluster.encode()).hexdigest()[:12]}"


def free_network(reserved: list[ipaddress.IPv4Network]) -> Network:
    """A network that neither the machine nor one of the reserved blocks uses."""
    used = used_networks(run("ip", "-json", "-4", "address"), run("ip", "-json", "-4", "route", "show", "table", "all"))
    return choose([*used, *reserved])


def upstream_resolvers(*candidates: Path) -> list[str]:
    """Name servers that the node can reach: those of the first resolv.conf that names one beyond the loopback."""
    for path in candidates or (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        with contextlib.suppress(OSError):
            fields = [line.split() for line in path.read_text().splitlines() if line.startswith("nameserver")]
            servers = [each[1] for each in fields if len(each) > 1 and not each[1].startswith(("127.", "::1", "fe80"))]
            if servers:
                return servers[:3]
    return []
