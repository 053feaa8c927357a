"""Published data sets that are on this machine already, unpacked or as archives."""

from pathlib import Path

from pipeline.datasets import published
from pipeline.datasets.copying import copy
from pipeline.errors import DatasetError
from pipeline.files import and_more

KEY = "data.source.local"
TOPS = ("VOCdevkit", "TrainVal", "benchmark_RELEASE")  # top folders of the archives; TrainVal: VOC2011's
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2")
EXPECTED = f"{', '.join(TOPS[:-1])} or {TOPS[-1]}"


def bring(local: Path, raw: Path) -> None:
    """Fill the new folder `raw` from a folder of unpacked data sets, else a folder of archives, or one archive."""
    if local.is_file():
        published.unpack_local([local], raw)
        return
    if not local.is_dir():
        raise DatasetError(f"{KEY}: no folder or archive {local}; it must hold {EXPECTED}, or their archives")
    folders = [top for top in TOPS if (local / top).is_dir()]
    archives = sorted(path for path in local.iterdir() if path.name.endswith(ARCHIVES) and path.is_file())
    if folders:
        for path in archives:
            print(f"{KEY}: {', '.join(folders)} copied, {path} not unpacked", flush=True)
        copy({top: local / top for top in folders}, raw, KEY)
    elif archives:
        published.unpack_local(archives, raw)
    else:
        content = and_more(sorted(path.name for path in local.iterdir())) or "nothing"
        raise DatasetError(
            f"{KEY}: {local} holds {content}; expected {EXPECTED} as the archives unpack, or the archives"
        )
