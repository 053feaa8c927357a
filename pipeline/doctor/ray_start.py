"""Start Ray as a run does, or connect to the cluster, and let a worker answer: python -m pipeline.doctor.ray_start.

A process of its own, because a start of Ray that hangs can only be ended from outside.
"""

import platform

from pipeline.cluster import nodes, ray_workers
from pipeline.surroundings import run_command


def main() -> None:
    with ray_workers.tasks(1) as call:
        (host,) = call(answer, [None])
    where = f"cluster {nodes.cluster_address()}" if nodes.cluster_address() else "this machine"
    print(f"a worker answered from {host} ({where}); token in {nodes.token_file()}", flush=True)


def answer(_: None) -> str:
    return platform.node()


if __name__ == "__main__":
    run_command(main)
