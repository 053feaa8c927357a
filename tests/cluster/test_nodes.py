"""The token of a cluster, and what a node started here listens on."""

import stat
from pathlib import Path

import pytest

from pipeline.cluster import nodes
from pipeline.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_where_ray_looks_for_it_and_for_its_owners_eyes(home):
    path = nodes.ensure_token()
    assert path == home / ".ray" / "auth_token"
    assert len(path.read_text()) == 64
    assert mode(path) == 0o600
    before = path.read_text()
    assert nodes.ensure_token().read_text() == before


def test_a_token_that_others_may_read_is_closed_to_them(home):
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("as Ray makes it")
    path.chmod(0o644)
    nodes.ensure_token()
    assert mode(path) == 0o600
    assert path.read_text() == "as Ray makes it"


def test_another_place_for_the_token_is_respected(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "~/elsewhere")
    assert nodes.ensure_token() == home / "elsewhere"


def test_two_tokens_differ(tmp_path, monkeypatch):
    tokens = set()
    for name in "ab":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / name))
        tokens.add(nodes.ensure_token().read_text())
    assert len(tokens) == 2


def test_a_node_without_the_heads_token_is_told_to_fetch_it():
    with pytest.raises(UserError, match=r"token is missing from .*auth_token: copy the file"):
        nodes.join("127.0.0.1:1", [])


def test_a_nodes_command_asks_for_the_token_and_keeps_the_job_server_at_home(home, monkeypatch, capfd):
    started = []
    monkeypatch.setattr(nodes.os, "execve", lambda *given: started.append(given))
    nodes.start_head(7000, ["--num-cpus", "1"])
    nodes.join("head:7000", [])
    (_, head, environment), (_, node, _) = started
    assert head == [
        "ray",
        "start",
        "--block",
        "--head",
        "--port=7000",
        "--dashboard-host=127.0.0.1",
        "--num-cpus",
        "1",
    ]
    assert node == ["ray", "start", "--block", "--address=head:7000"]
    assert environment["RAY_AUTH_MODE"] == "token"
    token = (home / ".ray" / "auth_token").read_text()
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(home / ".ray" / "auth_token")
    assert token not in "".join(capfd.readouterr())
