"""Runs beside each other and beside the published rows, as `fcn compare` and the report show them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fcn.metrics import ConfusionMatrix
from pipeline.errors import ResultError
from pipeline.evaluation import compare, per_image, published_scores
from pipeline.evaluation.bootstrap import Bootstrap, mean_iu, paired_difference
from pipeline.evaluation.compare import Result, Table, as_text, difference_table, score_table
from pipeline.evaluation.per_image import PerImage
from pipeline.tracking import Tracker
from tests.conftest import ROOT

CLASSES = ["background", "disc"]
KEYS = tuple(f"{i:03}" for i in range(30))


def counts_of(seed: int, right: int) -> np.ndarray:
    """(30, 2, 3, 2) of images of 100 pixels a class, about `right` of each right."""
    random = np.random.default_rng(seed)
    good = random.integers(right - 5, right + 5, (30, 2))
    counts = np.stack((good, np.full_like(good, 100), good + (100 - good)[:, ::-1]), 1)
    return np.stack((counts, counts), 1)


def result(name: str, right: int = 70, seed: int = 0, **changes) -> Result:
    counts = counts_of(seed, right)
    total = counts[:, 0].sum(0)
    hist = np.array([[total[0, 0], total[1, 0] - total[0, 0]], [total[1, 1] - total[0, 1], total[0, 1]]])
    scores = ConfusionMatrix(2).merge(torch.from_numpy(hist)).scores()
    values = {
        "pixel_acc": scores.pixel_acc,
        "mean_acc": scores.mean_acc,
        "mean_iu": scores.mean_iu,
        "fw_iu": scores.fw_iu,
        "class_iu": dict(zip(CLASSES, scores.class_iu, strict=True)),
        "num_images": 30,
        "num_leaked": 0,
        "mean_iu_low": scores.mean_iu - 0.01,
        "mean_iu_high": scores.mean_iu + 0.01,
        "level": 0.95,
        "profile": "small",
        "keys_sha256": per_image.digest_of_keys(KEYS),
        "val_digest": "ab" * 32,
        "model_sha256": name,
    }
    about = {"classes": CLASSES, "border_width": 5, "model_sha256": name}
    return Result(name, values | changes, PerImage(KEYS, counts, about))


def write(folder: Path, one: Result) -> Path:
    path = folder / f"{one.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(one.values))
    if one.images:
        per_image.write(path.with_suffix(".parquet"), one.images)
    return path


def row(table: Table, name: str, *and_: str) -> dict[str, str]:
    (found,) = [
        line for line in table.rows if line[0] == name and all(any(a in cell for cell in line) for a in and_)
    ]
    return dict(zip(table.head, found, strict=True))


# The table of scores


def test_a_run_stands_with_its_interval_above_every_published_row():
    run = result("fcn8s")
    table = score_table([run])
    found = row(table, "fcn8s")
    low, score, high = (run.values[key] for key in ("mean_iu_low", "mean_iu", "mean_iu_high"))
    assert found["mean_iu"] == f"{score:.3f} [{low:.3f}, {high:.3f}]"
    assert found["pixel_acc"] == f"{run.values['pixel_acc']:.3f}"  # a score without an interval
    assert found["compares to the first run"] == "yes"
    assert len(table.rows) == 1 + len(published_scores.PUBLISHED)
    assert any("95% interval" in note for note in table.notes)


def test_the_published_numbers_are_those_of_the_papers_tables():
    """Typed a second time from CVPR 2015 and the reference release's README."""
    table = score_table([result("a")])
    expected = {
        ("FCN-32s-fixed", "seg11valid"): (0.454, 0.830, 0.597, 0.720),
        ("FCN-32s", "seg11valid"): (0.594, 0.891, 0.733, 0.814),
        ("FCN-16s", "seg11valid"): (0.624, 0.900, 0.757, 0.830),
        ("FCN-8s", "seg11valid"): (0.627, 0.903, 0.759, 0.832),
    }
    for (name, split), scores in expected.items():
        found = row(table, name, split)
        assert [found[key] for key in compare.SCORES] == [f"{score:.3f}" for score in scores]
    alone = {
        ("SDS", "VOC2011 test"): 0.526,
        ("SDS", "VOC2012 test"): 0.516,
        ("R-CNN", "VOC2011 test"): 0.479,
        ("FCN-8s", "VOC2011 test"): 0.627,
        ("FCN-8s", "VOC2012 test"): 0.622,
        ("FCN-AlexNet", "VOC2011 val"): 0.398,
        ("FCN-VGG16", "VOC2011 val"): 0.560,
        ("FCN-GoogLeNet", "VOC2011 val"): 0.425,
        ("FCN-8s, released", "seg11valid"): 0.655,
    }
    for (name, split), score in alone.items():
        found = row(table, name, split)
        assert [found[key] for key in compare.SCORES] == [f"{score:.3f}", "-", "-", "-"]


def test_a_published_row_compares_only_to_a_run_on_the_very_same_list_of_images():
    here = score_table([result("a")])
    there = score_table([result("b", keys_sha256=published_scores.SEG11VALID, num_images=736)])
    for name, split in (("FCN-8s", "seg11valid"), ("FCN-32s, released", "seg11valid")):
        assert row(here, name, split)["compares to the first run"] == (
            "no: another split: seg11valid, not small val, 30 images"
        )
        assert row(there, name, split)["compares to the first run"] == "yes"
    assert row(there, "b")["scored on"] == "seg11valid, 736 images"
    for table in (here, there):
        said = row(table, "SDS", "VOC2012 test")["compares to the first run"]
        assert said == "no: another split: VOC2012 test, whose labels VOC's server alone has"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"keys_sha256": "f" * 64}, "other images: small val"),
        ({"val_digest": "c" * 64}, "other pixels or labels of the same images"),
        ({"convention": "absent_is_1"}, "other conventions of mean IU: reference and absent_is_1"),
        (
            {"averaging": {"scales": [0.75, 1.0], "flip": True}},
            "other averaging: none and over scales 0.75, 1.0 and mirror images",
        ),
        ({"class_iu": {"background": 0.5, "cat": 0.5}}, "other classes"),
        ({"keys_sha256": None}, "b does not say which images it was scored on; evaluate it again"),
    ],
)
def test_a_run_that_does_not_compare_stays_and_says_why(changes, why):
    runs = [result("a"), result("b", **changes)]
    found = row(score_table(runs), "b")
    assert found["compares to the first run"].startswith(f"no: {why}")
    assert found["mean_iu"].startswith(f"{runs[1].values['mean_iu']:.3f}")
    (line,) = difference_table(runs, Bootstrap(100)).rows
    assert line[0] == "b - a"
    assert line[-1].startswith(why)


def test_a_run_that_was_trained_on_what_it_is_scored_on_says_so():
    found = row(score_table([result("a", num_leaked=3)]), "a")
    assert found["compares to the first run"] == "no: LEAK: trained on 3 of the images it is scored on"


def test_a_score_that_could_not_be_told_is_nan_and_one_without_interval_stands_alone():
    old = {"mean_iu_low": None, "mean_iu_high": None, "mean_iu": None}
    assert row(score_table([result("a", **old)]), "a")["mean_iu"] == "nan"


# Differences


def test_every_two_runs_on_the_same_images_have_their_paired_difference():
    runs = [result("a", 60), result("b", 70, seed=1), result("c", 70, seed=1)]
    plan = Bootstrap(200, 0.9, 5)
    table = difference_table(runs, plan)
    assert [line[:2] for line in table.rows] == [
        (f"{x} - {y}", score)
        for x, y in (("b", "a"), ("c", "a"), ("c", "b"))
        for score in ("mean_iu", "pixel_acc")
    ]
    assert runs[0].images
    assert runs[1].images
    found = paired_difference(mean_iu, runs[1].images.whole, runs[0].images.whole, plan)
    assert found.value == pytest.approx(runs[1].values["mean_iu"] - runs[0].values["mean_iu"])
    first = dict(zip(table.head, table.rows[0], strict=True))
    assert first["value"] == f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    assert first["p"] == "<0.0100"  # 2 / 201, rounded up: what 200 resamples can tell
    assert dict(zip(table.head, table.rows[-1], strict=True))["p"] == "1.0000"
    assert "90% interval" in table.notes[0]


def test_without_each_images_counts_there_is_no_difference_but_a_reason():
    bare = result("b")
    table = difference_table([result("a"), Result("b", bare.values, None)], Bootstrap(100))
    assert table.rows[0][-1] == "no file of each image's counts beside b's scores; evaluate it again"


# As text


def test_each_format_holds_every_cell():
    table = Table(("run", "score"), (("a|b", "0.5"), ("<c>", "0.25")), ("A note.",))
    plain = as_text(table, "plain").splitlines()
    assert plain == ["run  score", "a|b  0.5", "<c>  0.25", "", "A note."]
    assert "| a\\|b | 0.5 |" in as_text(table, "markdown")
    page = as_text(table, "html")
    assert "<td>&lt;c&gt;</td><td>0.25</td>" in page
    assert page.count("<tr>") == page.count("</tr>") == 3
    with pytest.raises(ValueError, match="known: plain, markdown, html"):
        as_text(table, "latex")


# What is read


def test_a_result_is_read_with_the_counts_beside_it(tmp_path):
    run = result("fcn8s")
    found = compare.read(write(tmp_path, run), "my run")
    assert (found.name, found.values) == ("my run", run.values)
    assert found.images
    assert run.images
    assert np.array_equal(found.images.counts, run.images.counts)
    (tmp_path / "fcn8s.parquet").unlink()
    assert compare.read(tmp_path / "fcn8s.json", "fcn8s").images is None


def test_counts_of_another_model_beside_the_scores_are_refused(tmp_path):
    path = write(tmp_path, result("fcn8s"))
    path.write_text(json.dumps(result("fcn8s").values | {"model_sha256": "another"}))
    with pytest.raises(ResultError, match=r"fcn8s\.parquet is of another model than .*fcn8s\.json; run"):
        compare.read(path, "fcn8s")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "holds no JSON that can be read"),
        ("\x00\xff", "holds no JSON that can be read"),
        ("[1]", "it holds a list"),
        ("{}", "it has no mean_iu"),
        (
            '{"mean_iu": 65.4, "pixel_acc": 1, "mean_acc": 1, "fw_iu": 1, "num_images": 1, "class_iu": {}}',
            "65.4, not",
        ),
        (
            '{"mean_iu": "a", "pixel_acc": 1, "mean_acc": 1, "fw_iu": 1, "num_images": 1, "class_iu": {}}',
            "is 'a'",
        ),
        (
            '{"mean_iu": 1, "pixel_acc": 1, "mean_acc": 1, "fw_iu": 1, "num_images": 1, "class_iu": []}',
            "class_iu is",
        ),
    ],
)
def test_a_file_that_is_no_metrics_of_ours_is_refused_in_one_sentence(tmp_path, text, why):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ResultError) as caught:
        compare.read(path, "a")
    assert why in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# The command


def fcn(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command_prints_runs_by_path_and_by_profile_and_net(tmp_path):
    write(tmp_path / "metrics" / "small", result("fcn8s"))
    path = write(tmp_path, result("other", 60, seed=1))
    done = fcn(tmp_path, "compare", "small/fcn8s", str(path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run ")
    assert lines[1].startswith("small/fcn8s ")
    assert any(line.startswith(f"{path} - small/fcn8s  mean_iu") for line in lines)
    page = fcn(tmp_path, "compare", "small/fcn8s", "--format", "html").stdout
    assert page.startswith("<table>")
    assert "difference" not in page  # one run has nothing to differ from


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ("none.json", "none.json is missing; run `dvc repro evaluate`"),
        ("small/fcn99s", "fcn99s.json is missing; run `dvc repro evaluate`"),
        ("nightly", "unknown run 'nightly': no such file, and no mlflow.db"),
    ],
)
def test_a_run_that_is_not_there_ends_in_one_sentence(tmp_path, run, why):
    done = fcn(tmp_path, "compare", run)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == []  # no database was made to look into


def test_a_run_of_mlflow_is_found_by_id_and_by_name_with_its_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "metrics", result("fcn8s"))
    tracker = Tracker("small", tmp_path)
    nightly, unscored = (
        tracker.record("evaluation", name, "model_sha256", digest, params={}, datasets={})
        for name, digest in (("nightly", "ab"), ("bare", "cd"))
    )
    tracker.log(nightly, {"mean_iu": 0.5}, {}, [], [path, path.with_suffix(".parquet")])
    run, bare = (tracker.open(one).info.run_id for one in (nightly, unscored))
    for name in (run, "nightly"):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        found = compare.load(name, folder)
        assert (found.name, found.values) == (name, result("fcn8s").values)
        assert found.images
        assert found.images.keys == KEYS
    for name, why in ((bare, "holds no scores"), ("it's", "unknown run"), ("none", "unknown run")):
        with pytest.raises(ResultError, match=why) as caught:
            compare.load(name, tmp_path)
        assert "\n" not in str(caught.value)


def test_the_commands_start_without_torch_mlflow_and_pyarrow():
    code = "import sys, pipeline.cli.main; pipeline.cli.main.parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "mlflow", "pyarrow", "numpy"} & set(done.stdout.split())
