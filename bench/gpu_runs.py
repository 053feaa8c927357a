"""Correctness of training on the GPU: resuming, files between devices, process groups, pinned batches."""

import dataclasses
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.gpu_result import Row
from bench.gpu_setup import NUM_CLASSES, Bench, drawn_labels, l2_error, project, tf32
from fcn.model import FCN
from fcn.optim import batch_rule
from pipeline.config.job import Job
from pipeline.config.training import Optimizer
from pipeline.distributed.batch_norm import across_workers
from pipeline.distributed.gradients import average_gradients
from pipeline.distributed.rank import Rank
from pipeline.loading.loader import loader
from pipeline.models import checkpoint
from pipeline.models.model_file import load_model
from pipeline.monitoring.meter import Meter
from pipeline.shards.dataset import Batch
from pipeline.shards.read import open_shards
from pipeline.training.loop import FINAL, make_stream, start_model, train_worker
from pipeline.training.step import backward

STEPS, KILLED_AT, CHECKPOINT_EVERY = 20, 10, 5
EXACT_LIMIT = 1e-5  # of one float32 gradient by two ways
BFLOAT16_EPS = 2**-8
WARNINGS = "warnings.txt"


def resume(bench: Bench) -> Iterator[Row]:
    """A run killed at step 10 and resumed, against two undisturbed ones. Each in a process of its own."""
    jobs = [
        small_job(bench, name, train={"precision": "auto"}, recipe={"iterations": STEPS})
        for name in ("first", "second", "killed")
    ]
    for each in jobs[:2]:
        in_fork(train_deterministically, each, bench.rank)
    code = in_fork(train_deterministically, jobs[2], bench.rank, killed_at=KILLED_AT)
    if code != -signal.SIGKILL:
        raise RuntimeError(f"the run to be killed ended with code {code}")
    saved = sorted(path.name for path in jobs[2].folder.glob("step-*.pt"))
    in_fork(train_deterministically, jobs[2], bench.rank)
    states = [checkpoint.load(each.folder / FINAL, "model")[0]["state_dict"] for each in jobs]
    yield Row("two undisturbed runs of 20 steps", num_differing(states[0], states[1]), "weights differ", 0)
    note = f"checkpoints at the kill: {', '.join(saved)}"
    yield Row(
        "a run killed at step 10 and resumed",
        num_differing(states[0], states[2]),
        "weights differ",
        0,
        note=note,
    )
    without = {
        line.split(" does not have")[0].strip()
        for line in (jobs[0].folder / WARNINGS).read_text().splitlines()
    }
    yield Row("operations without a deterministic form", None, note=", ".join(sorted(without)) or "none")


def small_job(
    bench: Bench,
    name: str,
    *,
    train: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Job:
    """Return the job of the packed profile's FCN-32s in a project of its own, four images a step."""
    return project(bench, name).job(
        "fcn32s",
        train={"batch_size": 4, "accumulation": 1} | dict(train or {}),
        run={
            "loader_workers": 0 if bench.is_small else 2,
            "log_every": 1,
            "checkpoint_every": CHECKPOINT_EVERY,
        },
        recipe=recipe,
    )


def train_deterministically(job: Job, rank: Rank, killed_at: int | None = None) -> None:
    """Train with deterministic algorithms; list in a file the operations that have none.

    killed_at: the step before whose batch this process gets SIGKILL.
    """
    use_deterministic_algorithms()
    if killed_at is not None:
        kill_at(killed_at)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_worker(job, rank)
    lines = {str(w.message).splitlines()[0] for w in caught if "deterministic" in str(w.message)}
    (job.folder / WARNINGS).write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


def use_deterministic_algorithms() -> None:
    """Before CUDA starts. Operations without a deterministic form warn, such as the loss, whose sum alone varies."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)


def kill_at(step: int) -> None:
    """Have this process killed when training takes the batch of a step, from 0."""
    take, num_taken = Meter.take, 0

    def take_or_die(meter: Meter, batches: Iterator[Batch], number: int) -> list[Batch]:
        nonlocal num_taken
        if num_taken == step:
            os.kill(os.getpid(), signal.SIGKILL)
        num_taken += 1
        return take(meter, batches, number)

    Meter.take = take_or_die  # pyright: ignore[reportAttributeAccessIssue]


def in_fork(work: Callable[..., object], *arguments: object, **options: object) -> int:
    """Run the work in a forked process, which can start CUDA if this one has not; return its exit code.

    A process that got a signal has minus its number. Raises RuntimeError if the work raises.
    """
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            work(*arguments, **options)
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code > 0:
        raise RuntimeError(f"{work.__name__} failed; its traceback is in the output")
    return code


def num_differing(state: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return how many numbers of two state_dicts differ."""
    assert state.keys() == other.keys()
    return float(sum(int((state[name] != other[name]).sum()) for name in state))


def files(bench: Bench) -> Iterator[Row]:
    """Checkpoints and model files written on one device and read on the other; batches in pinned memory."""
    cpu, device = Rank(0, 1, torch.device("cpu")), bench.device.type
    # SGD, because the first steps of AdamW follow a gradient's sign, which rounding turns where it is nearly zero
    train = {"precision": "float32", "schedule": "fixed", "optimizer": Optimizer(name="sgd", weight_decay=0)}
    mixed, plain = (
        small_job(bench, name, train=train, recipe={"lr": 1e-2, "iterations": 8})
        for name in ("mixed", "plain")
    )
    with tf32(False):
        for rank, iterations in ((bench.rank, 4), (cpu, 6), (bench.rank, 8)):
            train_for(mixed, iterations, rank)
        train_for(plain, 8, cpu)
    start = start_model(plain).state_dict()
    ends = [checkpoint.load(each.folder / FINAL, "model")[0]["state_dict"] for each in (mixed, plain)]
    moved = [torch.cat([(end[key] - start[key]).flatten().float() for key in start]) for end in ends]
    name = f"8 steps, 4 on {device}, 2 resumed on the CPU, 2 resumed on {device}: against all on the CPU"
    yield Row(name, l2_error(*moved), "of the way", 1e-2)
    nets = [load_model(mixed.folder / FINAL, place)[0] for place in (cpu.device, bench.device)]
    loaded = [{key: tensor.cpu() for key, tensor in net.state_dict().items()} for net in nets]
    name = f"a model file written on {device}, loaded on the CPU and on {device}"
    yield Row(name, num_differing(*loaded), "weights differ", 0)
    yield pinned(bench, mixed)


def train_for(job: Job, iterations: int, rank: Rank) -> None:
    """Train, or resume, up to an iteration, with a checkpoint there. The learning rate must be constant."""
    recipe = job.recipe.model_copy(update={"iterations": iterations})
    run = job.run.model_copy(update={"checkpoint_every": 2})
    train_worker(dataclasses.replace(job, recipe=recipe, run=run), rank)


def pinned(bench: Bench, job: Job) -> Row:
    """Compare batches of loader processes, pinned and copied to the device, with plain ones."""
    stream = make_stream(job, open_shards(job.shards, split="train"), bench.rank)
    num_differing = 0
    for number, batch in enumerate(loader(stream, range(6), 2, pin=bench.is_cuda)):
        if bench.is_cuda and not batch.image.is_pinned():
            raise RuntimeError("a batch is not in pinned memory")
        expected = stream.read(number)
        for result, same in zip(batch[:2], expected[:2], strict=True):
            num_differing += int((result.to(bench.device, non_blocking=True).cpu() != same).sum())
    name = "pinned batches of two loader processes" if bench.is_cuda else "batches of two loader processes"
    note = "" if bench.is_cuda else "not pinned: that needs a GPU"
    return Row(name, num_differing, "bytes differ", 0, note=note)


def group(bench: Bench) -> Iterator[Row]:
    """A process group of one (NCCL; gloo on a CPU): gradients, the batch rule, synchronised batch norm."""
    backend = "nccl" if bench.is_cuda else "gloo"
    use_deterministic_algorithms()
    if bench.is_cuda:
        torch.cuda.set_device(bench.device)
    meeting = bench.folder("group") / "meeting"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=0, world_size=1)
    # The pipeline uses no group for one worker. With world_size 2 it does; the group itself has one.
    rank = Rank(0, 2, bench.device)
    try:
        warnings.filterwarnings("ignore", ".*deterministic")
        with tf32(False):
            yield from gradients(bench, rank, backend)
            yield rule(bench)
            yield synchronised_norm(bench, rank, backend)
    finally:
        dist.destroy_process_group()


def tiny_net(bench: Bench) -> FCN:
    torch.manual_seed(0)
    with bench.device:
        return FCN(
            NUM_CLASSES, 8, padding="tight", width=1 / 16, batch_norm=True, dropout=0.0, score_init="random"
        )


def gradients(bench: Bench, rank: Rank, backend: str) -> Iterator[Row]:
    """The gradient through DistributedDataParallel, and of a batch taken in inner steps."""
    made = small_job(bench, "gradients", train={"precision": "float32"})
    torch.manual_seed(0)
    _, label = drawn_labels(4, 64, 80)
    label[1, 20:], label[2] = 255, 255  # void is spread unevenly
    batch = Batch(torch.randint(0, 256, (4, 3, 64, 80), dtype=torch.uint8), label, ())

    def gradient(net: FCN, parallel: nn.Module, batches: list[Batch], accumulation: int = 1) -> Tensor:
        train = made.train.model_copy(update={"accumulation": accumulation, "loss": "mean"})
        backward(dataclasses.replace(made, train=train), parallel, batches, 0, bench.rank, None)
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    net = tiny_net(bench)
    expected = gradient(net, net, [batch])
    for compression, limit in (("none", EXACT_LIMIT), ("bf16", BFLOAT16_EPS)):
        net = tiny_net(bench)
        parallel = average_gradients(net, rank, compression=compression, bucket_mb=25)
        error = l2_error(gradient(net, parallel, [batch]), expected)
        yield Row(f"gradients through {backend}, compression {compression}", error, "relative", limit)
    net = tiny_net(bench).eval()  # batch norm in training depends on how a batch is split
    expected = gradient(net, net, [batch])
    net = tiny_net(bench).eval()
    singles = [Batch(batch.image[i : i + 1], batch.label[i : i + 1], ()) for i in range(4)]
    error = l2_error(gradient(net, net, singles, accumulation=4), expected)
    yield Row("gradient of four images in four inner steps, against one", error, "relative", EXACT_LIMIT)


def rule(bench: Bench) -> Row:
    """Fused SGD with batch_rule's settings for 8 images a step, against one image a step, on a constant gradient."""
    lr, momentum, num_images = 1e-3, 0.9, 8
    speeds = []
    for images, (rate, decay) in ((1, (lr, momentum)), (num_images, batch_rule(lr, momentum, num_images))):
        weight = torch.zeros(1000, device=bench.device, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=rate, momentum=decay, fused=True)
        before = weight.detach().clone()
        for step in range(400 // images):
            if step == 400 // images - num_images // images:
                before = weight.detach().clone()
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        speeds.append(weight.detach() - before)
    error = l2_error(speeds[1], speeds[0])
    return Row("batch rule: the way of 8 images in one step, against 8 steps", error, "relative", 1e-9)


def synchronised_norm(bench: Bench, rank: Rank, backend: str) -> Row:
    """A net with SyncBatchNorm in a group of one, against the same with plain batch norm."""
    name = f"SyncBatchNorm through {backend}, score in training"
    if not bench.is_cuda:
        return Row(name, None, note="skipped: torch has it for GPUs alone")
    torch.manual_seed(1)
    image = torch.randint(0, 256, (4, 3, 64, 80), dtype=torch.uint8, device=bench.device)
    plain, synced = tiny_net(bench).train(), across_workers(tiny_net(bench), "sync", rank).train()
    if not any(isinstance(layer, nn.SyncBatchNorm) for layer in synced.modules()):
        raise RuntimeError("the net has no SyncBatchNorm")
    error = l2_error(synced(image), plain(image))
    buffers = max(
        l2_error(b.float(), a.float())
        for a, b in zip(plain.buffers(), synced.buffers(), strict=True)
        if a.any()
    )
    return Row(name, max(error, buffers), "relative", EXACT_LIMIT, note="score and running statistics")
