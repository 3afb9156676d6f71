"""Process 1 of a node: prepares the node's namespaces and then supervises its programs.

A node lives in namespaces of its own (mounts, network, processes, host name, IPC), made by `unshare`. What its programs
mount, link or write to the kernel's tables belongs to these namespaces, and all of it ends with this process, however
it ends.
"""

import sys
import time
from pathlib import Path

from localcluster import paths
from localcluster.errors import LocalClusterError
from localcluster.hostnetwork import NODE_LINK
from localcluster.nodeconfig import NODE_NAME
from localcluster.shell import run
from localcluster.supervisor import supervise

# Where programs write beside what they are told to: the kubelet's device plugins, CNI's results, links to pods' logs.
PRIVATE_FOLDERS = (Path("/run"), Path("/var/lib"), Path("/var/log"))
LINK_SECONDS = 30.0


def isolate_folders(kept: list[Path]) -> None:
    """Put empty folders, private to this mount namespace, over the machine's; the kept folders stay visible."""
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    keepers = [Path("/run/kept") / str(number) for number in range(len(kept))]
    for keeper, folder in zip(keepers, kept, strict=True):
        keeper.mkdir(parents=True)
        run("mount", "--rbind", folder, keeper)
    for private in PRIVATE_FOLDERS[1:]:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", private)
    for keeper, folder in zip(keepers, kept, strict=True):
        if any(folder.is_relative_to(each) for each in PRIVATE_FOLDERS):
            folder.mkdir(parents=True, exist_ok=True)
            run("mount", "--rbind", keeper, folder)
    # Mounts that a pod makes for others ("Bidirectional") need a shared tree; it is shared within this namespace only.
    run("mount", "--make-rshared", "/")


def configure_network(address: str, gateway: str) -> None:
    """Wait for the link that the machine makes into this namespace, and configure it.

    Raises LocalClusterError when the link does not come.
    """
    deadline = time.monotonic() + LINK_SECONDS
    while f"{NODE_LINK}:" not in Path("/proc/self/net/dev").read_text():
        if time.monotonic() > deadline:
            raise LocalClusterError("The machine made no link to the node.")
        time.sleep(0.02)
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{address}/30", "dev", NODE_LINK)
    run("ip", "link", "set", NODE_LINK, "up")
    run("ip", "route", "add", "default", "via", gateway)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def main(folder: Path, cache: Path, address: str, gateway: str) -> int:
    """Prepare the namespaces and supervise. Returns an exit code."""
    isolate_folders([folder, cache, paths.source_folder()])
    run("hostname", NODE_NAME)
    configure_network(address, gateway)
    return supervise(folder)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
