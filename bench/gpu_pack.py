"""Pack what bench.gpu_all needs on a machine with a GPU and without a network into one git-ignored folder, .gpu.

    python -m bench.gpu_pack --photos FOLDER --peer CHECKOUT      # --profile laptop

FOLDER has voc/JPEGImages and voc/SegmentationClass, sbd/img and sbd/cls_png, and the lists here/train_aug.txt and
here/seg11valid.txt of the ids that are there. The profile's published weights are fetched. CHECKOUT is a clone of
wkentaro/pytorch-fcn.

    .gpu/project    a project folder: the profile, shards of the photos, the backbone
    .gpu/peer       pytorch-fcn's model files and licence
    .gpu/wheels     packages for Python 3.12 on x86-64 Linux that the machine lacks

The folder and the checkout together stay under 60 MiB: the photos keep as much of their quality as fits.
"""

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from PIL import Image

from pipeline import config, paths
from pipeline.download.weights import fetch_weights
from pipeline.files import whole_folder, write_text
from pipeline.models import backbone
from pipeline.shards.labels import decode_label
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards

ROOT = Path(__file__).parent.parent
FOLDER = ".gpu"
LIMIT_BYTES = 60 * 2**20
THERE = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "pyarrow",
    "safetensors",
    "tqdm",
)  # on the machine already
CARRIED = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "ruamel-yaml")
LISTS = {"train": "train_aug", "val": "seg11valid"}
# JPEG quality of training and validation photos, from best to least; None leaves the file's bytes as they are
QUALITIES = ((None, None), (90, None), (85, None), (75, None), (75, 90), (75, 75), (60, 60))

Load = Callable[[str], Sample]


def main() -> None:
    arguments = parse()
    with whole_folder(ROOT / FOLDER) as folder:
        ignore(FOLDER)
        copy_peer(arguments.peer, folder / "peer")
        download_wheels(folder / "wheels")
        write_profile(folder / "project", arguments.profile)
        write_backbone(folder / "project")
        num_free = LIMIT_BYTES - checkout_bytes() - num_bytes(folder)
        for qualities in QUALITIES:
            write_photos(folder / "project", arguments.photos, dict(zip(LISTS, qualities, strict=True)))
            photo_bytes = num_bytes(folder / "project" / "data")
            print(
                f"photos, JPEG quality {qualities}: {photo_bytes / 2**20:.1f} MiB, {num_free / 2**20:.1f} are free"
            )
            if photo_bytes <= num_free:
                break
        else:
            sys.exit(f"{FOLDER} and the checkout are larger than {LIMIT_BYTES / 2**20:.0f} MiB")
    print(
        f"{FOLDER} and the checkout: {(checkout_bytes() + num_bytes(ROOT / FOLDER)) / 2**20:.1f} MiB. There, run:\n"
    )
    print(command())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True, help="a clone of wkentaro/pytorch-fcn")
    parser.add_argument("--profile", default="laptop", help="its model and recipe are trained")
    return parser.parse_args()


def command() -> str:
    """Return the shell command for the machine with the GPU, run in the checkout's root."""
    return (
        f"python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site {FOLDER}/wheels/*.whl && "
        f"PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 python3 -m bench.gpu_all --out OUT --minutes 6 "
        f"--photos {FOLDER}/project --peer {FOLDER}/peer"
    )


def ignore(folder: str) -> None:
    """Add a folder of the root to the checkout's own ignore list, which is not committed."""
    path = Path(git("rev-parse", "--path-format=absolute", "--git-path", "info/exclude"))
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pattern = f"/{folder}*/"  # with the unfinished folder beside it
    if pattern not in lines:
        write_text(path, "\n".join([*lines, pattern, ""]))


def git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def checkout_bytes() -> int:
    """Return the bytes of all files that git tracks or does not ignore."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_peer(checkout: Path, dest: Path) -> None:
    for path in [checkout / "LICENSE", *(checkout / "torchfcn" / "models").glob("*.py")]:
        copy = dest / path.relative_to(checkout)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def download_wheels(dest: Path) -> None:
    """Download the wheels of CARRIED, in the versions of this environment."""
    platforms = chain(*(("--platform", f"manylinux{name}_x86_64") for name in ("_2_28", "_2_17", "2014")))
    wanted = [f"{name}=={version(name)}" for name in CARRIED]
    pip = [
        sys.executable,
        "-m",
        "uv",
        "tool",
        "run",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
    ]
    target = ["--python-version", "3.12", "--implementation", "cp", *platforms]
    subprocess.run([*pip, "--dest", str(dest), *target, *wanted], check=True)


def write_profile(root: Path, name: str) -> None:
    """Write params.yaml and the profile to a project folder."""
    path = config.PROFILES / f"{name}.yaml"
    write_text(root / config.PARAMS, f"profile: {name}\n")
    write_text(root / path, (ROOT / path).read_text(encoding="utf-8"))


def write_backbone(root: Path) -> None:
    """Write the backbone that the chain of the folder's profile starts from."""
    name, profile = config.load(root)
    model, dest = profile.model.arguments(), root / paths.model(name, "backbone")
    if profile.backbone.weights:
        backbone.write_pretrained(
            dest, model, fetch_weights(profile.backbone.weights, ROOT / paths.DOWNLOADS)
        )
    else:
        backbone.write_random(dest, model, profile.backbone.seed)


def write_photos(root: Path, source: Path, qualities: Mapping[str, int | None]) -> None:
    """Write the shards of both splits, in place of older ones.

    qualities: the JPEG quality of each split's photos; None for the files' own bytes.
    """
    for split, name in LISTS.items():
        keys = (source / "here" / f"{name}.txt").read_text(encoding="utf-8").split()
        quality = qualities[split]
        write_split(root, split, keys, lambda key, quality=quality: load(source, key, quality))


def write_split(root: Path, split: str, keys: Sequence[str], load: Load) -> None:
    """Write one split's shards to the project folder."""
    name, profile = config.load(root)
    write_shards(
        keys,
        load,
        root / paths.shards(name, split),
        split=split,
        classes=profile.data.classes,
        samples_per_shard=profile.shards.samples_per_shard,
        seed=profile.shards.seed,
    )


def load(source: Path, key: str, quality: int | None) -> Sample:
    """Return a photo and its label, from VOC if it is there, else from SBD."""
    is_voc = (source / "voc" / "JPEGImages" / f"{key}.jpg").exists()
    photos, labels = ("voc/JPEGImages", "voc/SegmentationClass") if is_voc else ("sbd/img", "sbd/cls_png")
    jpeg = (source / photos / f"{key}.jpg").read_bytes()
    if quality is not None:
        file = io.BytesIO()
        Image.open(io.BytesIO(jpeg)).convert("RGB").save(file, "JPEG", quality=quality, optimize=True)
        jpeg = file.getvalue()
    mask = (source / labels / f"{key}.png").read_bytes()
    return Sample.checked(key, jpeg, decode_label(mask), mask=mask)


if __name__ == "__main__":
    main()
