"""Predict the step time of N nodes by the model of docs/scaling.md, from one node's step and a bandwidth.

    python -m bench.nodes --backward-s 0.1 --forward-s 0.05 --gbit-s 10     # of one node, with its share of the batch
    python -m bench.nodes --forward-s 0.05 --backward-s 0.1 --gbit-s 10 --accumulation 4 --compression bf16

The all-reduce is a ring: each node sends and receives 2 (N - 1) / N times the gradient. It overlaps the backward pass
from the first full bucket on. In VGG-16 that is nearly the whole pass, since fc7 and fc6 come first.
"""

import argparse
from typing import Any

from torch import nn

from fcn.model import FCN

FLOAT32, BFLOAT16 = 4, 2  # bytes


def gradient_bytes(model: nn.Module, compression: str, powersgd_rank: int = 2) -> int:
    """Return the bytes of a worker's gradient on the wire."""
    if compression == "powersgd":  # two matrices for each weight; biases whole
        return FLOAT32 * sum(
            min(powersgd_rank * (p.shape[0] + p[0].numel()), p.numel()) if p.ndim > 1 else p.numel()
            for p in model.parameters()
        )
    per = BFLOAT16 if compression == "bf16" else FLOAT32
    return per * sum(p.numel() for p in model.parameters())


def exchange_s(sent: int, nodes: int, gbit_s: float) -> float:
    """Return the seconds for a gradient of `sent` bytes, where each node's link carries gbit_s each way."""
    return 2 * (nodes - 1) / nodes * sent / (gbit_s / 8 * 1e9)


def step_s(forward_s: float, backward_s: float, exchange: float, accumulation: int = 1) -> float:
    """Return the seconds of a step: `accumulation` passes, the gradient exchanged in the last one."""
    return accumulation * forward_s + (accumulation - 1) * backward_s + max(backward_s, exchange)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--forward-s", type=float, default=0.05)
    parser.add_argument("--backward-s", type=float, default=0.1)
    parser.add_argument("--gbit-s", type=float, nargs="+", default=[1, 10, 25, 100, 400])
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--compression", choices=("none", "bf16", "powersgd"), default="none")
    given: Any = parser.parse_args()
    sent = gradient_bytes(FCN(21, 8, backbone=given.backbone), given.compression)
    alone = given.accumulation * (given.forward_s + given.backward_s)
    print(f"{given.backbone}: {sent / 1e6:.1f} MB a step; share of N nodes' speed that N nodes reach")
    print("| Gbit/s | " + " | ".join(f"{nodes} nodes" for nodes in given.nodes) + " |")
    print("| --- |" + " --- |" * len(given.nodes))
    for gbit_s in given.gbit_s:
        steps = [
            step_s(given.forward_s, given.backward_s, exchange_s(sent, nodes, gbit_s), given.accumulation)
            for nodes in given.nodes
        ]
        print(f"| {gbit_s:g} | " + " | ".join(f"{alone / step:.2f}" for step in steps) + " |")


if __name__ == "__main__":
    main()
