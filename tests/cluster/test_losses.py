"""What a run on a cluster says of workers and nodes that it loses; test_two_machines.py has the losses themselves."""

import multiprocessing
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from ray._private import worker as ray_worker
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError
from ray.train.v2._internal import util

from pipeline.cluster import losses
from pipeline.errors import ShardError


def said(capsys, error: Exception) -> str:
    losses.Workers("fcn32s").after_exception(run_context=None, worker_exceptions={1: error})
    return capsys.readouterr().out


def logged(caplog, error: Exception) -> str:
    """What a worker's log has of an error, which Ray Train writes there."""
    caplog.clear()
    try:
        raise error
    except Exception as raised:
        util.construct_user_exception_with_traceback(raised)
    return caplog.text


def meet(rank: int, folder: str, answers) -> None:
    """Join two processes, of which the second dies; the first sends what it then gets."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        os._exit(9)
    try:
        while True:
            dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        answers.put(str(error))


def test_a_worker_that_a_lost_one_leaves_alone_has_a_line_without_a_stack(tmp_path, capsys, caplog):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.SimpleQueue()
    pair = [spawn.Process(target=meet, args=(rank, str(tmp_path), answers)) for rank in (0, 1)]
    for process in pair:
        process.start()
    text = answers.get()
    for process in pair:
        process.join()
    error = RuntimeError(text)
    assert logged(caplog, error) == ""
    line = said(capsys, error)
    assert line.count("\n") == 1
    assert line.startswith("fcn32s  worker 1 ")
    assert "127.0.0.1" in line  # of the one it lost
    assert "gloo" not in line  # the file of a library


def test_a_worker_that_died_has_a_line(capsys):
    cause = ActorDiedErrorContext(
        error_message="The actor died because its node has died. Node Id: 5a\n\tthe node was terminated",
        class_name="RayTrainWorker",
        actor_id=bytes(16),
        node_ip_address="10.77.0.2",
        pid=12,
    )
    line = said(capsys, ActorDiedError(cause))
    assert line.count("\n") == 1
    assert line.startswith("fcn32s  worker 1 ")
    assert "its node has died" in line
    assert "actor_id" not in line


def test_an_error_of_another_kind_has_its_stack_once(capsys, caplog):
    error = IndexError("a mistake of this code")
    assert logged(caplog, error).count("a mistake of this code") == 1
    assert "Traceback" in caplog.text
    assert said(capsys, error) == ""


def test_an_error_that_ends_the_run_with_its_message_is_not_said_twice(capsys, caplog):
    error = ShardError("no such file")
    assert logged(caplog, error) == ""
    assert said(capsys, error) == ""


CUT_OFF = [
    "[2026-11-27 18:24:57,484 C 25 25] (raylet) node_manager.cc:971: [Timeout] Exiting because this node manager has "
    "mistakenly been marked as dead by the GCS: GCS failed to check the health of this node for 5 times.",
    "*** StackTrace Information ***",
    "/lib/x86_64-linux-gnu/libc.so.6(__libc_start_main+0x85) [0x7fdff4645305] __libc_start_main",
]
CRASHED = "[2026-11-27 18:24:57,484 C 25 25] (raylet) plasma.cc:1: Check failed: is_sealed"


def test_rays_stack_of_a_node_that_was_cut_off_is_not_shown_and_any_other_of_its_errors_is(capsys):
    def shown(*lines: str) -> str:
        data = {"lines": list(lines), "pid": "raylet", "ip": "10.0.0.2", "is_err": False}
        ray_worker.print_to_stdstream(data, ignore_prefix=False)
        return capsys.readouterr().out

    assert shown(*CUT_OFF) == ""
    assert CRASHED in shown(CRASHED)
    assert "is_open" in shown(
        *CUT_OFF, CRASHED.replace("is_sealed", "is_open")
    )  # Ray may skip what it has shown
    assert "Spilled" in shown("Spilled objects to a disk")


def test_nodes_that_come_and_go_are_named_with_what_is_missing(monkeypatch, capsys):
    def cluster(*addresses: str) -> list[dict]:
        return [
            {"NodeID": a, "NodeManagerAddress": a, "Alive": a in addresses} for a in ("10.0.0.1", "10.0.0.2")
        ]

    both, one = cluster("10.0.0.1", "10.0.0.2"), cluster("10.0.0.1")
    states = [both, both, one, one, both, both]
    monkeypatch.setattr(losses, "INTERVAL_S", 0)
    monkeypatch.setattr(losses.ray, "nodes", lambda: now)
    now = states[0]

    def missing() -> str:
        nonlocal now
        text = "" if now is both else "1 more CPU"
        now = states.pop(0) if states else now
        return text

    with losses.watch(missing, "10.0.0.1:6379"):
        while states:
            time.sleep(0.01)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    lost, joined = lines
    assert all(
        part in lost for part in ("10.0.0.2 lost", "waiting for 1 more CPU", "fcn cluster join 10.0.0.1:6379")
    )
    assert "10.0.0.2 joined" in joined
