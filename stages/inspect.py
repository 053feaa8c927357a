"""Describe the splits in data/<profile>/inspection, and fail if a score could not be trusted.

That is so if an image is both trained and evaluated on, or if a class is in no training image; by choice of the profile
also if an image of val is a near duplicate of one of train.

Writes inspection.json, .md and .png, leaks.json and .md, near_duplicates.png if there are any, and, unless it fails,
verdict.json, the only file that training depends on. It holds the digest of the images whose scores decide what
training keeps, and of those that settings are chosen on; otherwise another validation split retrains nothing.
"""

from pathlib import Path

from pipeline import config, files, paths, tracking
from pipeline.cache.client import NodeCache
from pipeline.datasets import raw, splits
from pipeline.errors import UserError
from pipeline.inspection import describe, leaks, near_duplicates
from pipeline.report import canvas, plots
from pipeline.shards.read import open_shards
from pipeline.surroundings import run_command
from pipeline.tables import render


def main() -> None:
    profile_name, profile = config.load()
    lists = profile.data.splits
    node_cache = NodeCache(**profile.run.cache.model_dump())
    shards = {
        split: open_shards(
            paths.shards(profile_name, split), split=split, cache=paths.VERIFIED, node_cache=node_cache
        )
        for split in profile.data.split_names
    }
    images = {split: leaks.Images.of_shards(split, opened) for split, opened in shards.items()}
    train, val = images["train"], images["val"]
    named = (lists.train, lists.val) if lists else ()
    names = [name for split in named for name in (*split.include, *split.exclude)]
    listed = splits.listed(raw.ensure(profile_name, profile.data), names)
    included = [split.include for split in named] or [[], []]
    shared = leaks.survey(train, val, listed, *included)
    leak, reasons = shared["leak"]["id_in_train"], profile.data.allow_leak
    tuned: dict[str, str] = {}
    if "tuning" in images:
        shared["tuning"] = leaks.survey_tuning(images["tuning"], train, val)
        tuned = shared["tuning"]["id_in_tuning"]
    names = shared["names"] = leaks.names_of(shared, shards.values())
    verdict = {"leak": leaks.verdict(leak | tuned, reasons)}
    if "tuning" in shards:  # models record these images, see training/provenance.py
        verdict["tuning"] = shards["tuning"].digest
    if profile.train.chooses:
        verdict["chosen_on"] = shards[profile.data.validation_split].digest

    duplicates = near_duplicates.survey(shards["val"], shards["train"], profile.data.near_duplicates)
    described = {split: describe.describe(opened) for split, opened in shards.items()}
    tables = render(describe.as_tables(described), "markdown")
    survey = render([*leaks.as_blocks(shared, reasons), *near_duplicates.as_blocks(duplicates)], "markdown")
    dest = paths.inspection(profile_name)
    with files.whole_folder(dest) as folder:
        files.write_json(folder / "inspection.json", described)
        files.write_json(
            folder / "leaks.json", shared | {"allow_leak": reasons, "near_duplicates": duplicates}
        )
        files.write_json(folder / "verdict.json", verdict)
        files.write_text(folder / "inspection.md", tables + "\n")
        files.write_text(folder / "leaks.md", survey + "\n")
        canvas.save(plots.inspection(described), folder / "inspection.png")
        if examples := near_duplicates.examples(duplicates, shards["val"], shards["train"]):
            canvas.save(plots.pairs(examples), folder / near_duplicates.PICTURE)
    print(f"{tables}\n\n{survey}", flush=True)

    tracker = tracking.Tracker(profile_name, Path.cwd())
    digests = {split: opened.digest for split, opened in shards.items()}
    key = "+".join(digests.values())
    record = tracker.record("inspection", "data", "inspected", key, params=digests, datasets=digests)
    metrics = describe.as_metrics(described) | {"num_leaked": float(len(leak | tuned))}
    if profile.data.near_duplicates != "ignore":
        metrics["num_near_duplicates"] = float(duplicates["num_images"])
    tags = {"leak": verdict["leak"], "allow_leak": "; ".join(reasons)}
    figures = sorted(dest.glob("*.png"))
    texts = sorted({*dest.iterdir()} - {*figures})
    tracker.log(record, metrics, tags, figures, texts)
    remedy = f"leave them out by data.splits.train.exclude ({dest / 'leaks.md'} lists the shared images)"
    try:
        leaks.refuse(leaks.renamed(leak, names), "val", "train", reasons, remedy)
        leaks.refuse(leaks.renamed(tuned, names), "val", "tuning", reasons, "leave them out of data.tuning")
        near_duplicates.refuse(duplicates, dest)
        describe.refuse_missing_classes(shards["train"], allow_partial=profile.data.allow_partial)
    except UserError:
        (dest / "verdict.json").unlink()  # without which nothing trains, `fcn seeds` neither
        raise


if __name__ == "__main__":
    run_command(main)
