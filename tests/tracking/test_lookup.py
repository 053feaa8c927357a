"""Scores of a run, downloaded by its id or name."""

import pytest

from pipeline.errors import ResultError
from pipeline.tracking import Tracker, download_metrics


def test_scores_are_found_by_id_and_by_the_newest_run_of_a_name(root, tmp_path_factory):
    tracker = Tracker("small", root)
    scores, images = root / "fcn8s.json", root / "fcn8s.parquet"
    for number in (1, 2):
        scores.write_text(f'{{"mean_iu": 0.{number}}}')
        images.write_text(f"images of {number}")
        record = tracker.record("evaluation", "nightly", "model_sha256", str(number), params={}, datasets={})
        tracker.log(record, {}, {}, [], [scores, images])
    oldest = tracker.search_runs("tags.model_sha256 = '1'")[0].info.run_id
    for run, number in ((oldest, 1), ("nightly", 2)):
        folder = tmp_path_factory.mktemp("download")
        path = download_metrics(run, root, folder)
        assert path.read_text() == f'{{"mean_iu": 0.{number}}}'
        assert path.with_suffix(".parquet").read_text() == f"images of {number}"


@pytest.mark.parametrize("run", ["bare", "it's", "none"])
def test_a_run_that_is_missing_or_has_no_scores_is_refused_by_name(run, root):
    tracker = Tracker("small", root)
    tracker.open_run(tracker.record("evaluation", "bare", "model_sha256", "a", params={}, datasets={}))
    with pytest.raises(ResultError, match=run):
        download_metrics(run, root, root)


def test_without_runs_no_database_is_made(tmp_path):
    with pytest.raises(ResultError, match=str(tmp_path)):
        download_metrics("nightly", tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())
