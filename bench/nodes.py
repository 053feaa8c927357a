"""Predict the step time of N nodes by the model of docs/scaling.md, from one node's step and a bandwidth.

    python -m bench.nodes --backward-s 0.1 --forward-s 0.05 --gbit-s 10     # of one node, with its share of the batch
    python -m bench.nodes --forward-s 0.05 --backward-s 0.1 --gbit-s 10 --accumulation 4 --compression bf16
    python -m bench.nodes --samples 1.28e6 1e8         # instead: what N nodes ask of an object store

The all-reduce is a ring: each node sends and receives 2 (N - 1) / N times the gradient. It overlaps the backward pass
from the first full bucket on. In VGG-16 that is nearly the whole pass, since fc7 and fc6 come first.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from torch import nn

from fcn.model import FCN
from pipeline.loading.sampler import WINDOW_BLOCKS
from pipeline.shards.blocks import MAX_BYTES

FLOAT32, BFLOAT16 = 4, 2  # bytes


def gradient_bytes(model: nn.Module, compression: str) -> int:
    """Return the bytes of a worker's gradient on the wire."""
    per = BFLOAT16 if compression == "bf16" else FLOAT32
    return per * sum(p.numel() for p in model.parameters())


def exchange_s(sent: int, nodes: int, gbit_s: float) -> float:
    """Return the seconds for a gradient of `sent` bytes, where each node's link carries gbit_s each way."""
    return 2 * (nodes - 1) / nodes * sent / (gbit_s / 8 * 1e9)


def step_s(forward_s: float, backward_s: float, exchange: float, accumulation: int = 1) -> float:
    """Return the seconds of a step: `accumulation` passes, the gradient exchanged in the last one."""
    return accumulation * forward_s + (accumulation - 1) * backward_s + max(backward_s, exchange)


def store_rows(given: Any) -> Iterator[list[str]]:
    """Yield a row for each number of samples, order and number of nodes.

    A lane has WINDOW_BLOCKS + 1 blocks in use, and a block for each connection is in flight. The first step waits for
    the manifest and for a block of each image.
    """
    link = given.gbit_s[0] / 8 * 1e9
    for samples in given.samples:
        split = samples * given.sample_kb * 1e3
        manifest_s = given.manifest_s * samples / 1e6
        for order in ("samples", "blocks"):
            for nodes in given.nodes:
                read = split if order == "samples" else split / nodes  # in the first epoch
                # In a random order of samples nearly all blocks are needed at once, so the link is the limit
                rate = link if order == "samples" else min(link, given.images_s * given.sample_kb * 1e3)
                lanes = given.batch_per_node
                held = (
                    split
                    if order == "samples"
                    else (lanes * (WINDOW_BLOCKS + 1) + given.connections) * MAX_BYTES
                )
                first_s = manifest_s + given.latency_ms / 1e3 + lanes * MAX_BYTES / link
                yield [
                    f"{samples:.3g}", order, f"{nodes}", f"{nodes * rate / MAX_BYTES:.0f}", f"{read / 1e9:.4g}",
                    f"{held / 1e9:.3g}", f"{manifest_s:.1f} + {first_s - manifest_s:.1f}",
                ]  # fmt: skip


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
    parser.add_argument("--compression", choices=("none", "bf16"), default="none")
    parser.add_argument("--samples", type=float, nargs="+", help="print the table of an object store")
    parser.add_argument(
        "--sample-kb", type=float, default=110, help="a photo of ImageNet or VOC with its label"
    )
    parser.add_argument("--images-s", type=float, default=2000, help="of a node")
    parser.add_argument("--batch-per-node", type=int, default=64)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--latency-ms", type=float, default=30)
    parser.add_argument("--manifest-s", type=float, default=1.2, help="to open that of a million samples")
    given: Any = parser.parse_args()
    if given.samples:
        names = [
            "samples",
            "order",
            "nodes",
            "requests/s",
            "GB a node, epoch 1",
            "GB of cache",
            "s to first step",
        ]
        for row in (names, ["---"] * len(names), *store_rows(given)):
            print("| " + " | ".join(row) + " |")
        return
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
