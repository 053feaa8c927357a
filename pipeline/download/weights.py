"""Published weights: a file that is downloaded, or one that an installed package of the registry brings."""

import importlib.metadata
from pathlib import Path

from pipeline.config.model import Weights
from pipeline.download.checksum import Checksum, digests
from pipeline.download.fetch import fetch_published
from pipeline.errors import DownloadError


def fetch_weights(weights: Weights, folder: Path) -> Path:
    """Return the path of the verified file.

    folder: for downloads; a package's file stays where it is.

    Raises DownloadError if no mirror gives the file, or the package is missing or has another file.
    """
    if weights.package and weights.file:
        return _packaged(weights.package, weights.file, weights.checksum)
    return fetch_published(
        folder, urls=weights.urls, checksum=weights.checksum, allowed_hosts=weights.allowed_hosts
    )


def _packaged(package: str, name: str, checksum: str) -> Path:
    """Return the path of a file that the package's own list of files has. No code of the package runs."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise DownloadError(
            f"the weights are in the package {package}, which is not installed; run `uv pip install {package}`, or "
            "`pip install 'fcn-pipeline[weights]'` for all packages of weights"
        ) from None
    path = next((Path(str(file.locate())) for file in distribution.files or () if str(file) == name), None)
    if path is None or not path.is_file():
        raise DownloadError(
            f"package {package} {distribution.version} has no file {name}; correct backbone.weights.file"
        )
    expected = Checksum.parse(checksum)
    if not expected.fits(actual := digests(path)):
        raise DownloadError(
            f"{path} of package {package} {distribution.version}: expected {expected}, found "
            f"{actual[expected.algorithm]}; install the package again, or correct backbone.weights.checksum"
        )
    return path
