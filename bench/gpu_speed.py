"""Speed of nets on the GPU: steps beside the peer, the dearest kernels, torch.compile.

FCN-8s of VGG-16 at 500x375 with random weights. Contestants take turns in one run. Ours computes in bfloat16 with
channels last and the fused optimizer; pytorch-fcn in float32, as its trainer does, and in TF32. A training step is
three forward passes' multiply-adds: forward, and back to inputs and to weights.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from bench.confusion import bincount
from bench.gpu_result import Row
from bench.gpu_setup import (
    NUM_CLASSES,
    Bench,
    Work,
    drawn_labels,
    medians,
    peak_gib,
    tf32,
)
from bench.step import build, conv_multiply_adds
from fcn.loss import pixel_cross_entropy
from fcn.metrics import ConfusionMatrix
from fcn.model import FCN

BATCHES, SMALL_BATCHES = (16, 4, 1), (2, 1)
SPEEDUP, MATRIX_SHARE, CONFUSION_SPEEDUP = 8, 0.5, 10
NUM_KERNELS = 10


class Contestant(NamedTuple):
    """A net at a batch size.

    is_ours: in bfloat16, with the fused optimizer.
    is_tf32: whether float32 layers run in TF32.
    """

    net: nn.Module
    batch: int
    is_ours: bool = True
    is_tf32: bool = False


def batches(bench: Bench) -> tuple[int, ...]:
    return SMALL_BATCHES if bench.is_small else BATCHES


def our_net(bench: Bench) -> FCN:
    options = {"width": 1 / 32, "fc6_kernel": 3} if bench.is_small else {}
    with bench.device:
        return FCN(NUM_CLASSES, 8, padding="tight", **options)


def peer_net(bench: Bench) -> nn.Module:
    with bench.device:
        return build("peer", bench.peer)


def batch_of(bench: Bench) -> tuple[Tensor, Tensor]:
    """Return (image, label), uint8 and int64, of the largest batch, on the device."""
    torch.manual_seed(0)
    num_images, size = max(batches(bench)), bench.image_size
    image = torch.randint(0, 256, (num_images, 3, *size), dtype=torch.uint8, device=bench.device)
    _, label = drawn_labels(num_images, *size)
    return image, label.to(bench.device).long()


def training(contestant: Contestant, image: Tensor, label: Tensor) -> Work:
    """Return one training step, ours as pipeline.training takes it."""
    net, batch, is_ours, is_tf32 = contestant
    optimizer = torch.optim.SGD(
        net.parameters(), lr=1e-14, momentum=0.99, weight_decay=5e-4, fused=is_ours or None
    )
    image, label = (image if is_ours else image.float())[:batch], label[:batch]

    def step() -> None:
        net.train()
        optimizer.zero_grad(set_to_none=True)
        with tf32(is_tf32):
            with torch.autocast(image.device.type, torch.bfloat16, enabled=is_ours):
                score = net(image)
            pixel_cross_entropy(score.float(), label).backward()
        optimizer.step()

    return step


def inference(contestant: Contestant, image: Tensor) -> Work:
    net, batch, is_ours, is_tf32 = contestant
    image = (image if is_ours else image.float())[:batch]

    def forward() -> None:
        net.eval()
        with (
            torch.inference_mode(),
            tf32(is_tf32),
            torch.autocast(image.device.type, torch.bfloat16, enabled=is_ours),
        ):
            net(image)

    return forward


def matrix_product(bench: Bench) -> tuple[int, Work]:
    """Return (multiply-adds, a bfloat16 product of square matrices)."""
    side = 64 if bench.is_small else 8192
    matrix = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    return side**3, lambda: matrix @ matrix


def step(bench: Bench) -> Iterator[Row]:
    """Training steps and forward passes beside the peer's, and beside the bfloat16 matrix rate."""
    image, label = batch_of(bench)
    net, largest = our_net(bench), len(image)
    contestants = {f"ours, batch {b}": Contestant(net, b) for b in batches(bench)}
    peer = peer_net(bench) if bench.peer else None
    if peer:
        for batch in (1, largest):
            for is_tf32, name in ((False, "float32"), (True, "TF32")):
                contestants[f"pytorch-fcn, {name}, batch {batch}"] = Contestant(peer, batch, False, is_tf32)
    else:
        yield Row("pytorch-fcn", None, note="skipped: give --peer")
    yield from rates(bench, contestants, image, label, conv_multiply_adds(net, image[:1]))
    yield from counting(bench)
    if not bench.is_cuda:
        yield Row("training: peak memory", None, note="skipped: needs a GPU")
        return
    contestants.clear()  # their weights and momentum would count
    del net, peer
    makers = {"ours": lambda: Contestant(our_net(bench), largest)}
    if bench.peer:
        makers["pytorch-fcn, float32"] = lambda: Contestant(peer_net(bench), largest, is_ours=False)
    for name, make in makers.items():
        gib = peak_gib(lambda make=make: training(make(), image, label), bench.device)
        yield Row(f"training, {name}, batch {largest}: peak memory", gib, "GiB")


def rates(
    bench: Bench,
    contestants: Mapping[str, Contestant],
    image: Tensor,
    label: Tensor,
    multiply_adds: int,
    most_s: float | None = None,
) -> Iterator[Row]:
    """Yield images/s of training and inference; for ours also the shares of the matrix rate, and the target ratios."""
    most_s = most_s or 0.3 * bench.left_s
    for kind, passes in (("training", 3), ("inference", 1)):
        works = {
            name: training(c, image, label) if kind == "training" else inference(c, image)
            for name, c in contestants.items()
        }
        matrix_adds, matrix = matrix_product(bench)
        seconds = medians(works | {"matrix": matrix}, bench, 15, most_s)
        matrix_rate = matrix_adds / seconds["matrix"]
        yield Row(f"{kind}, bfloat16 matrix product", 2e-12 * matrix_rate, "TFLOP/s")
        speeds = {name: c.batch / seconds[name] for name, c in contestants.items()}
        peer_s = [speed for name, speed in speeds.items() if "float32" in name]
        for name, speed in speeds.items():
            contestant = contestants[name]
            is_largest = contestant.is_ours and contestant.batch == len(image)
            yield Row(f"{kind}, {name}", speed, "images/s")
            if is_largest and peer_s:
                limit = SPEEDUP if kind == "training" else None
                what = f"{kind}, {name}: over pytorch-fcn's best float32"
                yield Row(what, speed / max(peer_s), "times", limit, at_most=False)
            if contestant.is_ours:
                share = passes * multiply_adds * speed / matrix_rate
                limit = MATRIX_SHARE if is_largest and kind == "training" else None
                yield Row(f"{kind}, {name}: of the matrix rate", share, "", limit, at_most=False)


def counting(bench: Bench) -> Iterator[Row]:
    """The confusion matrix beside numpy's, which first brings the pixels to the host."""
    torch.manual_seed(0)
    prediction, label = (
        part.to(bench.device) for part in drawn_labels(2 if bench.is_small else 16, *bench.image_size)
    )
    confusion = ConfusionMatrix(NUM_CLASSES, bench.device)
    works = {
        "ours": lambda: confusion.update(prediction, label),
        "numpy": lambda: bincount(prediction, label),
    }
    seconds = medians(works, bench)
    ratio = seconds["numpy"] / seconds["ours"]
    note = f"{1e3 * seconds['ours']:.2f} ms for {label.numel()} pixels, numpy {1e3 * seconds['numpy']:.2f} ms"
    yield Row("confusion matrix over numpy's", ratio, "times", CONFUSION_SPEEDUP, at_most=False, note=note)


def compiled(bench: Bench) -> Iterator[Row]:
    """Ours through torch.compile, from the largest batch down, beside the same without."""
    image, label = batch_of(bench)
    # On a CPU, compiling would take longer than a rehearsal may
    backend = "inductor" if bench.is_cuda else "eager"
    net = our_net(bench)
    multiply_adds = conv_multiply_adds(net, image[:1])
    for batch in batches(bench)[:1] if bench.is_small else BATCHES:
        torch.compiler.reset()
        through_compiler: Any = torch.compile(our_net(bench), backend=backend, dynamic=False)
        contestants = {
            f"ours, batch {batch}": Contestant(net, batch),
            f"ours, torch.compile, batch {batch}": Contestant(through_compiler, batch),
        }
        if bench.peer and batch == len(image):
            contestants[f"pytorch-fcn, float32, batch {batch}"] = Contestant(peer_net(bench), batch, False)
        yield from rates(bench, contestants, image[:batch], label[:batch], multiply_adds, most_s=5)


def kernels(bench: Bench) -> Iterator[Row]:
    """The dearest kernels of a training step, and settings that could change them."""
    image, label = batch_of(bench)
    net = our_net(bench)
    work = training(Contestant(net, len(image)), image, label)
    seconds = medians({"step": work}, bench, 5)["step"]
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.is_cuda else [])
    num_steps = 3
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(num_steps):
            work()
        if bench.is_cuda:
            torch.cuda.synchronize(bench.device)
    times = kernel_times(profiler, bench.is_cuda)
    total_s = sum(times.values())
    name = "a training step: kernels' time over the step's"
    yield Row(name, total_s / num_steps / seconds, note="below 1 the GPU waits for the host")
    for name, kernel_s in sorted(times.items(), key=lambda item: -item[1])[:NUM_KERNELS]:
        yield Row(f"kernel {name[:70]}", kernel_s / total_s, "of all kernels' time")
    yield from settings(bench, image, label, seconds)


def kernel_times(profiler: torch.profiler.profile, is_cuda: bool) -> dict[str, float]:
    """Return seconds by kernel; on a CPU by operation."""
    device, micros = ("CUDA", "self_device_time_total") if is_cuda else ("CPU", "self_cpu_time_total")
    return {
        event.key: 1e-6 * getattr(event, micros)
        for event in profiler.key_averages()
        if event.device_type.name == device and getattr(event, micros) > 0 and not event.is_user_annotation
    }


def settings(bench: Bench, image: Tensor, label: Tensor, seconds: float) -> Iterator[Row]:
    """The step with cuDNN's search for the fastest kernels, and with weights in channels last."""
    net = our_net(bench)
    work = training(Contestant(net, len(image)), image, label)
    torch.backends.cudnn.benchmark = True
    searched_s = medians({"step": work}, bench, 5)["step"]
    torch.backends.cudnn.benchmark = False
    yield Row("a training step with cudnn.benchmark, over one without", searched_s / seconds)
    net.to(memory_format=torch.channels_last)
    arranged_s = medians({"step": work}, bench, 5)["step"]
    yield Row("a training step with weights in channels last, over one without", arranged_s / seconds)
