"""The scores of a run as its files hold them, and groups of runs."""

import json

import numpy as np
import pytest

from pipeline.errors import ResultError
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.results import group_result, read_result
from tests.made_results import make_result, write_result


def test_a_result_is_read_with_the_counts_beside_it(tmp_path):
    result = make_result("fcn8s")
    path = write_result(tmp_path, result)
    read = read_result(path, "my run")
    assert (read.name, read.values) == ("my run", result.values)
    assert read.images
    assert result.images
    assert np.array_equal(read.images.counts, result.images.counts)
    path.with_suffix(".parquet").unlink()
    assert read_result(path, "fcn8s").images is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model_sha256": "another"},
        {"val_digest": "c" * 64},
        {"averaging": {"scales": [1.0], "flip": True}},
        {"keys_sha256": "f" * 64},
        {"border_width": 3},
    ],
)
def test_counts_of_another_evaluation_beside_the_scores_are_refused(tmp_path, changes):
    path = write_result(tmp_path, make_result("fcn8s"))
    path.write_text(json.dumps(make_result("fcn8s").values | changes))
    with pytest.raises(ResultError, match=rf"fcn8s\.parquet .*fcn8s\.json.*{next(iter(changes))}"):
        read_result(path, "fcn8s")


GOOD = {"mean_iu": 0.5, "pixel_acc": 1, "mean_acc": 1, "fw_iu": None, "num_images": 1, "class_iu": {}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSON"),
        ("\x00\xff", "JSON"),
        ("[1]", "list"),
        ("{}", "mean_iu"),
        (json.dumps(GOOD | {"mean_iu": 65.4}), "mean_iu is 65.4"),
        (json.dumps(GOOD | {"fw_iu": "a"}), "fw_iu is 'a'"),
        (json.dumps(GOOD | {"fw_iu": True}), "fw_iu is True"),
        (json.dumps(GOOD | {"class_iu": []}), "class_iu is"),
        (json.dumps(GOOD | {"mean_f1": 2}), "mean_f1 is 2"),
        (json.dumps(GOOD | {"class_f1": 0.5}), "class_f1 is 0.5"),
        (json.dumps(GOOD | {"class_iu": {"cat": "a"}}), "class_iu of cat is 'a'"),
        (json.dumps(GOOD | {"mean_iu_low": "a"}), "mean_iu_low is 'a'"),
        (json.dumps(GOOD | {"level": "a"}), "level is 'a'"),
        (json.dumps(GOOD | {"num_images": "a"}), "num_images is 'a'"),
        (json.dumps(GOOD | {"num_leaked": "a"}), "num_leaked is 'a'"),
        (json.dumps(GOOD | {"keys_sha256": [1]}), "keys_sha256 is [1]"),
        (json.dumps(GOOD | {"convention": 1}), "convention is 1"),
        (json.dumps(GOOD | {"averaging": {"scales": 1}}), "averaging is"),
    ],
)
def test_a_file_that_holds_no_scores_is_refused_in_one_line(tmp_path, text, why):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ResultError) as caught:
        read_result(path, "a")
    assert why in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [0, 1])
def test_a_group_of_fewer_than_two_runs_is_refused(number):
    runs = {f"seed {i}": make_result(f"seed {i}", seed=i) for i in range(number)}
    with pytest.raises(ResultError, match=f"both.* {number} "):
        group_result("both", "chains", runs, Bootstrap(100))
