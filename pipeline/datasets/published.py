"""Data sets in the archives they are published as."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

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
    """Unpacks the archives beside each other into raw, which must be empty or not there; all or nothing."""
    building = raw.with_name(f".{raw.name}.unpacking")
    shutil.rmtree(building, ignore_errors=True)  # of a run that was killed
    try:
        for number, archive in enumerate(archives):
            extract(archive, building / str(number))
            merge(building / str(number), building / "merged")
        os.replace(building / "merged", raw)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def unpack_local(archives: Sequence[Path], raw: Path) -> None:
    """Unpacks a user's own copies, once those with a published name are found to be as published."""
    for archive in archives:
        found = digests(archive)
        if archive.name not in CHECKSUMS:
            print(f"{archive}: no checksum is published for that name; sha256 {found['sha256']}", flush=True)
            continue
        expected = Checksum.parse(CHECKSUMS[archive.name])
        if not expected.fits(found):
            raise ArchiveError(
                f"{archive}: expected {expected} as published, found {found[expected.algorithm]}; fetch it again, "
                "or give an archive of your own another name"
            )
    unpack(archives, raw)


def merge(unpacked: Path, raw: Path) -> None:
    """Moves an unpacked archive's folders into raw, beside those of other archives."""
    raw.mkdir(parents=True, exist_ok=True)
    for path in sorted(unpacked.rglob("*")):
        target = raw / path.relative_to(unpacked)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(path, target)
    shutil.rmtree(unpacked)
