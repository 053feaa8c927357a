"""`fcn cluster head` and `join`: runs `ray start`, and says in a sentence what Ray says in a page."""

import argparse
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from pipeline.cluster import addresses, nodes
from pipeline.errors import INTERRUPTED, UserError

CLIENT_PORT = 10001  # of the Ray client server
HEAD_STARTS = "No node info found for head node"  # Ray's last words on a node when the head is not ready yet


def head(port: int, options: Sequence[str]) -> None:
    """Run the head of a new cluster until Ctrl-C or SIGTERM.

    port: where other nodes join.
    options: further options of `ray start`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--node-ip-address", default=addresses.own_address())
    parser.add_argument("--dashboard-port", default=nodes.JOB_PORT, type=int)
    parser.add_argument("--ray-client-server-port", default=CLIENT_PORT, type=int)
    chosen, others = parser.parse_known_args(options)
    address, job_port = _resolved(chosen.node_ip_address), chosen.dashboard_port
    for number, option in (
        (port, "--port"),
        (job_port, "-- --dashboard-port"),
        (chosen.ray_client_server_port, "-- --ray-client-server-port"),
    ):
        if not 0 < number < 2**16:  # Ray would run, and other machines could not join
            raise UserError(f"{number} is not a port; choose one from 1 to 65535 ({option})")
        if _answers(f"127.0.0.1:{number}"):
            raise UserError(
                f"port {number} of this machine is taken, probably by a head that runs already: end that one (Ctrl-C "
                f"where it runs), or choose another port ({option})"
            )
    if ipaddress.ip_address(address).is_loopback:
        print(
            f"warning: no other machine reaches {address}; give this machine's address in the cluster's network, if it "
            "has one: fcn cluster head -- --node-ip-address ADDRESS",
            flush=True,
        )
    token = nodes.ensure_token()
    server = "" if job_port == nodes.JOB_PORT else f" --address http://127.0.0.1:{job_port}"
    ready = (
        f"a cluster's head runs at {address}:{port}\n"
        f"token: {token} (it allows to run programs here; copy it to each node and client, with mode 600)\n"
        f"another node:          fcn cluster join {address}:{port}\n"
        f"a job, from this host: fcn cluster submit{server} --folder FOLDER\n"
        f"from elsewhere:        ssh -L {nodes.JOB_PORT}:127.0.0.1:{job_port} {address}, then the same there"
    )
    arguments = [
        f"--port={port}",
        f"--node-ip-address={address}",
        f"--dashboard-port={job_port}",
        f"--ray-client-server-port={chosen.ray_client_server_port}",
    ]
    said = _run(["--head", *arguments, "--dashboard-host=127.0.0.1", *others], token, ready)
    print(said, file=sys.stderr)
    raise UserError(
        f"Ray ended on this head, its words are above; start it again, and the nodes of {address}:{port} join it by "
        "themselves; a job that is submitted again goes on from its last checkpoint"
    )


def _resolved(host: str) -> str:
    """Return the address of a host; UserError if it has none."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--node-ip-address {host}: no such host ({getattr(error, 'strerror', error)}); give an address of this "
            "machine in the cluster's network"
        ) from None


def join(address: str, options: Sequence[str]) -> None:
    """Run a node of a cluster until Ctrl-C or SIGTERM. Cut off from the head, it joins again when it can.

    address: HOST:PORT of the cluster's head.
    options: further options of `ray start`.
    """
    nodes.require_token()
    try:
        nodes.reach(address)
    except OSError as error:
        raise UserError(
            f"{address}: no answer ({error}); give HOST:PORT of a running head, as `fcn cluster head` prints it, and "
            "see that no firewall lies between"
        ) from None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--temp-dir", default="/tmp/ray", type=Path)
    chosen, _ = parser.parse_known_args(options)
    while True:
        _put_away_logs(chosen.temp_dir)
        said = _run(
            [f"--address={address}", *options], nodes.token_file(), f"this machine is a node of {address}"
        )
        if _answers(address) and not _was_cut_off(said) and HEAD_STARTS not in said:
            print(said, file=sys.stderr)
            raise UserError(
                f"Ray ended on this node, its words are above; join again: fcn cluster join {address}"
            )
        print(
            f"{address} and this node have lost each other; it joins again when the head answers", flush=True
        )
        while not _answers(address):
            time.sleep(1)


def _put_away_logs(folder: Path) -> None:
    """Move logs of workers that have ended to `old`. Else jobs show their lines again when a node joins again."""
    for log in folder.glob("session_*/logs/worker-*-*.*"):
        number = log.stem.rpartition("-")[2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            (log.parent / "old").mkdir(exist_ok=True)
            log.replace(log.parent / "old" / log.name)


def _answers(address: str) -> bool:
    try:
        nodes.reach(address)
    except OSError:
        return False
    return True


def _was_cut_off(said: str) -> bool:
    """Return whether Ray ended because this node and the head no longer reached each other."""
    return "raylet [exit code=1]" in said and not nodes.unknown_errors(said)


def _run(arguments: Sequence[str], token: Path, ready: str) -> str:
    """Run `ray start` until it ends by itself, and return what it printed. Ctrl-C and SIGTERM end it and this process.

    ready: printed when Ray runs.
    """
    bin = Path(sys.executable).parent  # first on the PATH, so that jobs run this environment's `python`
    environment = os.environ | nodes.ENVIRONMENT | {"PATH": f"{bin}{os.pathsep}{os.environ.get('PATH', '')}"}
    if "RAY_AUTH_TOKEN" not in environment:
        environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    command = [bin / "ray", "start", "--block", "--log-style=record", "--log-color=false", *arguments]
    signals: list[int] = []
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as ray:
        assert ray.stdout is not None

        def stop(number: int, _: object) -> None:
            signals.append(number)
            ray.terminate()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        for line in ray.stdout:
            lines.append(line)
            if "\tWARN" in line:
                print(line, end="", file=sys.stderr)
            if "Ray runtime started" in line:
                print(ready, flush=True)
            if "InvalidAuthToken" in line:  # Ray would try again for 20 s
                ray.kill()
    for number, handler in before.items():
        signal.signal(number, handler)
    if signals:
        sys.exit(INTERRUPTED if signals[0] == signal.SIGINT else 128 + signals[0])
    said = "".join(lines)
    if "InvalidAuthToken" in said:
        raise UserError(f"the cluster refuses the token in {token}: {nodes.TOKEN_REMEDY}")
    return said
