"""The archives that VOC and SBD are published as: their checksums, and unpacking them side by side."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.datasets.copying import new_folder
from pipeline.download.archive import extract
from pipeline.download.checksum import Checksum, digests
from pipeline.errors import ArchiveError

# md5 as torchvision's datasets/voc.py and sbd.py publish them; sha256 as tensorflow_datasets' url_checksums/voc.txt
CHECKSUMS = {
    "VOCtrainval_06-Nov-2007.tar": "md5:c52e279531787c972589f7e41ab4ae64",
    "VOCtest_06-Nov-2007.tar": "md5:b6e924de25625d8de591ea690078ad9f",
    "VOCtrainval_25-May-2011.tar": "md5:6c3384ef61512963050cb5d687e5bf1e",
    "VOCtrainval_11-May-2012.tar": "md5:6cd6e144f989b92b3379bac3b3de84fd",
    "VOC2012test.tar": "sha256:f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3",
    "benchmark.tgz": "md5:82b4d87ceb2ed10f6038a1cba92111cb",
}


def unpack(archives: Sequence[Path], raw: Path) -> None:
    """Unpack archives into the new folder `raw`, all of them or none. A later archive's files replace earlier ones."""
    with new_folder(raw) as folder:
        for archive in archives:
            unpacked = folder / ".unpacked"
            extract(archive, unpacked)
            _merge(unpacked, folder)


def unpack_local(archives: Sequence[Path], raw: Path) -> None:
    """Unpack a user's own copies; an archive with a published file name must have its published checksum."""
    for archive in archives:
        actual = digests(archive)
        if archive.name not in CHECKSUMS:
            print(f"{archive}: no checksum is published for that name; sha256 {actual['sha256']}", flush=True)
            continue
        expected = Checksum.parse(CHECKSUMS[archive.name])
        if not expected.fits(actual):
            raise ArchiveError(
                f"{archive}: expected {expected} as published, found {actual[expected.algorithm]}; fetch it again, "
                "or give an archive of your own another name"
            )
    unpack(archives, raw)


def _merge(unpacked: Path, folder: Path) -> None:
    for path in sorted(unpacked.rglob("*")):
        target = folder / path.relative_to(unpacked)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(path, target)
    shutil.rmtree(unpacked)
