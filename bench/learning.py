"""Train and score three nets on real photos of VOC, by `dvc repro` of the profile `laptop`, and time them.

    python -m bench.learning FOLDER       # --work DIR keeps the results, and resumes from them

FOLDER has voc/JPEGImages and voc/SegmentationClass, sbd/img and sbd/cls_png, and the lists here/train_aug.txt and
here/seg11valid.txt of the ids that are there.

--mobilenet FILE: with the published MobileNetV1 of width 0.25 as the trunk, and all else alike.
Printed: the scores of each net, and the minutes from the start until they were known.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.files import sha256_file

ROOT = Path(__file__).parent.parent
NETS = ("fcn32s", "fcn16s", "fcn8s")
PROFILE = "laptop"


def own_folder(source: Path, dest: Path, classes: list[str]) -> None:
    """Write the photos and labels of both lists in the layout of docs/own-data.md."""
    for name in ("images", "masks", "splits"):
        (dest / name).mkdir(parents=True, exist_ok=True)
    (dest / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for split, name in (("train", "train_aug"), ("val", "seg11valid")):
        ids = (source / "here" / f"{name}.txt").read_text(encoding="utf-8").split()
        (dest / "splits" / f"{split}.txt").write_text("".join(f"{key}\n" for key in ids), encoding="utf-8")
        for key in ids:
            is_voc = (source / "voc" / "JPEGImages" / f"{key}.jpg").exists()
            photos, labels = (
                ("voc/JPEGImages", "voc/SegmentationClass") if is_voc else ("sbd/img", "sbd/cls_png")
            )
            shutil.copyfile(source / photos / f"{key}.jpg", dest / "images" / f"{key}.jpg")
            shutil.copyfile(source / labels / f"{key}.png", dest / "masks" / f"{key}.png")


def checkout(dest: Path) -> None:
    """Copy the files of this checkout to a git repository of their own."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, dest / name)
    (dest / "dvc.lock").unlink(missing_ok=True)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as measured"]):
        subprocess.run(
            ["git", "-c", "user.name=b", "-c", "user.email=b@localhost", *command], cwd=dest, check=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mobilenet", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, help="of training; else the profile's")
    parser.add_argument("--work", type=Path, help="a folder that is kept; else a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        project, yaml = work / "project", YAML()
        path = project / "profiles" / f"{PROFILE}.yaml"
        if not project.exists():
            checkout(project)
        profile = yaml.load(path.read_text(encoding="utf-8"))
        own_folder(arguments.folder, work / "photos", list(profile["data"]["classes"]))
        profile["data"]["source"] = {"own": str(work / "photos")}
        if arguments.mobilenet:
            profile["model"] = {"backbone": "mobilenet_v1", "width": 0.25}
            profile["backbone"]["weights"] = {
                "urls": [arguments.mobilenet.absolute().as_uri()],
                "checksum": f"sha256:{sha256_file(arguments.mobilenet)}",
            }
        if arguments.seed is not None:
            profile["train"]["seed"] = arguments.seed
        yaml.dump(profile, path)
        (project / "params.yaml").write_text(f"profile: {PROFILE}\n", encoding="utf-8")
        start = time.time()
        here = str(Path(sys.executable).parent)
        environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
        if code := subprocess.run(["dvc", "repro"], cwd=project, env=environment, check=False).returncode:
            sys.exit(code)  # the stage printed the cause
        print(f"{'net':8} mean IU  pixel accuracy  scored after")
        for net in NETS:
            file = project / "metrics" / PROFILE / f"{net}.json"
            scores, minutes = (
                json.loads(file.read_text(encoding="utf-8")),
                (file.stat().st_mtime - start) / 60,
            )
            print(f"{net:8} {scores['mean_iu']:7.3f}  {scores['pixel_acc']:14.3f}  {minutes:8.1f} min")


if __name__ == "__main__":
    main()
