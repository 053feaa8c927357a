"""The token of a cluster."""

import os
import stat
from pathlib import Path

import pytest

from pipeline.cluster import nodes
from pipeline.errors import UserError


@pytest.fixture(autouse=True)
def token(tmp_path, monkeypatch) -> Path:
    """Where the token of this machine is, once it is made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray" / "auth_token"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_where_ray_looks_for_it_and_only_its_owner_can_read_it(token):
    assert nodes.ensure_token() == token
    assert mode(token) == 0o600
    first = token.read_text()
    assert len(first) == 64
    assert nodes.ensure_token().read_text() == first


def test_two_tokens_differ(token):
    first = nodes.ensure_token().read_text()
    token.unlink()
    assert nodes.ensure_token().read_text() != first


def test_a_token_that_others_may_read_is_closed_to_them(token):
    token.parent.mkdir()
    token.write_text("as Ray makes it")
    token.chmod(0o644)
    nodes.ensure_token()
    assert mode(token) == 0o600
    assert token.read_text() == "as Ray makes it"


def test_an_empty_file_is_no_token(token):
    token.parent.mkdir()
    token.touch()
    with pytest.raises(UserError, match=str(token)):
        nodes.require_token()
    assert len(nodes.ensure_token().read_text()) == 64
    assert mode(token) == 0o600


def test_a_token_killed_while_it_is_written_leaves_none(token, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(nodes.os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        nodes.ensure_token()
    assert list(token.parent.iterdir()) == []


def test_a_token_that_another_process_makes_meanwhile_stays(monkeypatch):
    link = os.link

    def second(source, dest):
        dest.write_text("the other's")
        link(source, dest)

    monkeypatch.setattr(nodes.os, "link", second)
    assert nodes.ensure_token().read_text() == "the other's"


def test_the_token_may_be_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "~/elsewhere")
    assert nodes.ensure_token() == tmp_path / "elsewhere"


def test_a_node_without_the_heads_token_is_refused(token):
    with pytest.raises(UserError, match=str(token)):
        nodes.require_token()


def test_a_token_of_another_user_that_may_be_read_is_used_and_stays_as_it_is(token, monkeypatch):
    token.parent.mkdir()
    token.write_text("the team's")
    token.chmod(0o640)
    owner = os.geteuid()
    monkeypatch.setattr(nodes.os, "geteuid", lambda: owner + 1)
    assert nodes.ensure_token() == token
    assert mode(token) == 0o640


@pytest.mark.parametrize("name", ["folder", "file/token"])
def test_a_token_that_cannot_be_written_is_one_message(tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / name))
    with pytest.raises(UserError, match=f"{tmp_path / name}.*RAY_AUTH_TOKEN_PATH"):
        nodes.ensure_token()


def test_a_file_that_is_not_text_is_no_token(token):
    token.parent.mkdir()
    token.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=str(token)):
        nodes.require_token()
