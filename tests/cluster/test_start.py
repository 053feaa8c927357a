"""What `fcn cluster head` and `join` say before Ray starts; test_two_machines.py has what they say later."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster import start
from tests.cluster.machines import machines
from tests.conftest import ROOT, run_fcn

ADDRESSES = """
from pipeline.cluster import addresses
print(addresses.own_address(), addresses.interface(addresses.own_address()), addresses.interface("127.0.0.1"))
"""


@pytest.fixture(autouse=True)
def token(tmp_path, monkeypatch) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "token"
    path.write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    return path


@pytest.fixture
def started(monkeypatch) -> list:
    """The options of `ray start`, which is not started but ends at once, and what is printed when it runs."""
    calls = []
    monkeypatch.setattr(
        start, "_run", lambda options, token, ready: calls.append((options, token, ready)) or "Ray's words"
    )
    return calls


@pytest.fixture
def port() -> int:
    """Where nothing listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def options(port: int) -> list[str]:
    return [f"--dashboard-port={port}", f"--ray-client-server-port={port}"]


def test_a_machines_address_is_that_of_its_network_where_its_name_leads_to_loopback_and_no_route_leads_out(
    tmp_path,
):
    with machines(tmp_path) as pair:
        for machine in pair:
            assert machine.run("getent", "hosts", machine.run("hostname").strip()).startswith("127.")
            said = machine.run(sys.executable, "-c", ADDRESSES, cwd=ROOT)
            assert said.split() == [machine.address, "eth0", "lo"]


def test_a_head_says_where_to_join_and_requires_the_token_and_keeps_its_server_on_loopback(
    monkeypatch, capsys, started, port, token
):
    command = ["cluster", "head", "--port", str(port), "--", "--node-ip-address", "10.1.2.3", *options(port)]
    code, out, err = run_fcn(monkeypatch, capsys, *command)
    assert (code, out) == (2, "")  # this Ray ended at once
    assert "Ray's words\n" in err
    ((given, token_file, ready),) = started
    assert {"--head", f"--port={port}", "--node-ip-address=10.1.2.3", "--dashboard-host=127.0.0.1"} <= set(
        given
    )
    assert token_file == token
    assert f"fcn cluster join 10.1.2.3:{port}\n" in ready
    assert f"fcn cluster submit --address http://127.0.0.1:{port} " in ready


def test_a_head_may_be_given_this_machines_name(monkeypatch, capsys, started, port):
    for host, code_of_refusal in (("localhost", None), ("no.such.host.invalid", 2)):
        command = ["cluster", "head", "--port", str(port), "--", "--node-ip-address", host, *options(port)]
        code, _, err = run_fcn(monkeypatch, capsys, *command)
        assert code == 2  # this Ray ended at once
        if code_of_refusal:
            assert err.count("\n") == 1
            assert host in err
    ((given, _, _),) = started
    assert {"--node-ip-address=127.0.0.1", "--node-ip-address=::1"} & set(given)
    assert "localhost" not in given


def test_a_head_on_loopback_is_warned_of(monkeypatch, capsys, started, port):
    command = ["cluster", "head", "--port", str(port), "--", "--node-ip-address=127.0.1.1", *options(port)]
    _, out, _ = run_fcn(monkeypatch, capsys, *command)
    assert out.count("\n") == 1
    assert out.startswith("warning: ")
    assert "127.0.1.1" in out
    assert len(started) == 1


@pytest.mark.parametrize("taken", ["--port", "--dashboard-port", "--ray-client-server-port"])
def test_a_second_head_on_a_machine_is_refused(monkeypatch, capsys, started, port, taken):
    with socket.create_server(("127.0.0.1", 0)) as first:
        number = first.getsockname()[1]
        ports = {"--port": port, "--dashboard-port": port, "--ray-client-server-port": port} | {taken: number}
        own, *rays = [f"{name}={value}" for name, value in ports.items()]
        code, out, err = run_fcn(monkeypatch, capsys, "cluster", "head", own, "--", *rays)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(number) in err
    assert taken in err
    assert started == []


@pytest.mark.parametrize("wrong", ["--port", "--dashboard-port", "--ray-client-server-port"])
@pytest.mark.parametrize("number", [0, -1, 99999])
def test_a_head_whose_port_is_none_is_refused(monkeypatch, capsys, started, port, wrong, number):
    ports = {"--port": port, "--dashboard-port": port, "--ray-client-server-port": port} | {wrong: number}
    own, *rays = [f"{name}={value}" for name, value in ports.items()]
    code, out, err = run_fcn(monkeypatch, capsys, "cluster", "head", own, "--", *rays)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(number) in err
    assert wrong in err
    assert started == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "no.such.host.invalid:6379", "10.77.0.1", "127.0.0.1:99999"]
)
def test_a_head_that_does_not_answer_is_not_waited_for(monkeypatch, capsys, started, address):
    code, out, err = run_fcn(monkeypatch, capsys, "cluster", "join", address)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {address}: ")
    assert started == []


def test_a_node_that_joins_puts_away_the_logs_of_workers_that_have_ended(
    monkeypatch, capsys, started, tmp_path
):
    ended = subprocess.Popen(["true"])
    ended.wait()
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    names = [f"worker-5a-01-{ended.pid}.out", f"worker-5a-01-{os.getpid()}.out", "raylet.out"]
    for name in names:
        (logs / name).write_text(name)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        code, _, _ = run_fcn(monkeypatch, capsys, "cluster", "join", address, "--", f"--temp-dir={tmp_path}")
    assert code == 2  # this Ray ended at once
    assert len(started) == 1
    left = {path.relative_to(logs).as_posix(): path.read_text() for path in logs.rglob("*.out")}
    assert left == {f"old/{names[0]}": names[0], names[1]: names[1], names[2]: names[2]}
