"""Describes the splits in data/<profile>/inspection, and stops the chain if an image is trained and evaluated on.

Writes inspection.json, .md and .png, leaks.json and .md, and verdict.json: all of it that training depends on, so that
another validation split trains nothing anew.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline import config, paths, tracking
from pipeline.datasets import splits
from pipeline.errors import exit_cleanly
from pipeline.inspection import describe, leaks
from pipeline.report import plots
from pipeline.shards.read import open_shards


def main() -> None:
    profile_name, profile = config.load()
    wanted, reasons = profile.data.splits, profile.data.allow_leak
    shards = {
        split: open_shards(paths.shards(profile_name, split), split=split, cache=paths.VERIFIED)
        for split in ("train", "val")
    }
    found = {split: describe.inspect(one) for split, one in shards.items()}
    train, val = (leaks.Images.of_shards(split, one) for split, one in shards.items())
    names = [name for split in (wanted.train, wanted.val) for name in (*split.include, *split.exclude)]
    lists = splits.listed(paths.raw(profile_name), names)
    shared = leaks.survey(train, val, lists, wanted.train.include, wanted.val.include)
    leak, dest = shared["leak"]["id_in_train"], paths.inspection(profile_name)
    verdict = leaks.verdict(leak, reasons)
    _write(dest, found, shared | {"allow_leak": reasons}, verdict)
    print(f"{describe.as_markdown(found)}\n{leaks.as_markdown(shared, reasons)}", flush=True)

    tracker = tracking.Tracker(profile_name, Path.cwd())
    digests = {split: one.digest for split, one in shards.items()}
    value = "+".join(digests.values())
    record = tracker.record("inspection", "data", "inspected", value, params=digests, datasets=digests)
    metrics = describe.as_metrics(found) | {"num_leaked": float(len(leak))}
    texts = [path for path in sorted(dest.iterdir()) if path.suffix != ".png"]
    tags = {"leak": verdict, "allow_leak": "; ".join(reasons)}
    tracker.log(record, metrics, tags, [dest / "inspection.png"], texts)
    leaks.refuse(
        leak,
        "val",
        "train",
        reasons,
        f"leave them out by data.splits.train.exclude ({dest / 'leaks.md'} says which lists meet)",
    )


def _write(dest: Path, found: dict[str, Any], shared: dict[str, Any], verdict: str) -> None:
    """Writes the whole folder or nothing of it."""
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as scratch:
        folder = Path(scratch, dest.name)
        folder.mkdir()
        values = {"inspection": found, "leaks": shared, "verdict": {"leak": verdict}}
        texts = {f"{name}.json": json.dumps(value, indent=1) + "\n" for name, value in values.items()}
        texts |= {
            "inspection.md": describe.as_markdown(found),
            "leaks.md": leaks.as_markdown(shared, shared["allow_leak"]),
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        plots.draw_inspection(found, folder / "inspection.png")
        shutil.rmtree(dest, ignore_errors=True)
        folder.rename(dest)


if __name__ == "__main__":
    exit_cleanly(main)
