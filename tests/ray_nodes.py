"""Two nodes of Ray on this machine, for tests, in a process of their own.

Prints the address; a line on standard input ends the second node as kill -9 would; the end of
standard input ends all.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

NODE = {
    "num_cpus": 3,
    "object_store_memory": 100 * 2**20,
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
}


def main() -> None:
    cluster = Cluster()
    cluster.add_node(**NODE)
    second = cluster.add_node(**NODE)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        print("removed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
