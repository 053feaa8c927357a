"""pipeline/download/weights.py, with packages written as an installer leaves them."""

import hashlib
import sys

import pytest

from pipeline.config.model import Weights
from pipeline.download.weights import fetch_weights
from pipeline.errors import DownloadError

CONTENT = b"numbers that were learned"
FILE = "tiny_model/models/tiny.pth"


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    site = tmp_path / "site"
    info = site / "tiny_model-0.3.dist-info"
    for path, content in (
        (site / FILE, CONTENT),
        (site / "tiny_model" / "__init__.py", b"raise RuntimeError('code of a package of weights was run')"),
        (info / "METADATA", b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.3\n"),
        (info / "RECORD", f"{FILE},,\ntiny_model/__init__.py,,\n../outside.pth,,\n".encode()),
        (tmp_path / "outside.pth", CONTENT),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return "tiny-model"


def of(package: str, file: str = FILE, checksum: str | None = None) -> Weights:
    digest = checksum or f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    return Weights(package=package, file=file, checksum=digest)


def test_weights_of_an_installed_package_are_used_where_they_are_without_running_its_code(package, tmp_path):
    path = fetch_weights(of(package), tmp_path / "downloads")
    assert path.read_bytes() == CONTENT
    assert not (tmp_path / "downloads").exists()


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path):
    with pytest.raises(DownloadError, match=r"pip install .*no-such-model"):
        fetch_weights(of("no-such-model"), tmp_path)


@pytest.mark.parametrize(
    "file", ["tiny_model/models/other.pth", "../site/tiny_model/models/tiny.pth", "/etc/passwd"]
)
def test_a_file_that_the_package_does_not_list_is_refused(package, file, tmp_path):
    with pytest.raises(DownloadError, match=r"tiny-model 0\.3 .*backbone\.weights\.file"):
        fetch_weights(of(package, file), tmp_path)


def test_a_packages_file_of_another_checksum_is_refused(package, tmp_path):
    wrong = "sha256:" + 64 * "0"
    with pytest.raises(DownloadError, match=hashlib.sha256(CONTENT).hexdigest()):
        fetch_weights(of(package, checksum=wrong), tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"package": "tiny-model"},
        {"file": FILE},
        {"package": "tiny-model", "file": FILE, "urls": ["https://host/tiny.pth"]},
    ],
)
def test_weights_have_exactly_one_origin(values):
    with pytest.raises(ValueError, match="either urls, or package and file"):
        Weights(**values, checksum="sha256:" + 64 * "0")
