"""What a person sees in MLflow's pages of a chain's runs, in a real browser: the table, a comparison, a figure."""

import json
from collections.abc import Iterator
from urllib.parse import quote

import numpy as np
import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from pipeline.curves import append_point
from pipeline.datasets import synthetic
from pipeline.report import plots
from pipeline.report.gallery import Seen
from pipeline.tracking import Follower, Tracker
from tests.browser import browser, complaints, hosts_asked, needs_browser, wait_for
from tests.mlflow_server import Server, write_database

pytestmark = needs_browser
CHAIN = {"fcn32s": 0.55, "fcn16s": 0.75, "fcn8s": 0.88}
HARMLESS = ("users/current", "ResizeObserver")  # nobody logs in; a chart is drawn anew while it is measured


def log_net(tracker: Tracker, net: str, parent: str) -> None:
    """As the stages of training and evaluation tell of a net."""
    root = tracker.root
    curves = root / "runs" / tracker.profile / net / "curves.jsonl"
    curves.parent.mkdir(parents=True)
    for step in range(10, 110, 10):
        append_point(curves, step, {"loss": CHAIN[net] / step, "lr": 1e-3})
    training = tracker.record(
        "training",
        net,
        "fcn.attempt",
        f"attempt of {net}",
        params={"net": net, "train": {"optimizer": {"name": "adamw"}}, "lr": 1e-3},
        datasets={"train": "699cfacb9d42"},
        curves=curves,
    )
    tags = {"model_sha256": f"digest of {net}", "parent": parent, "chain": "fcn32s-abc"}
    tags |= {"parent_sha256": f"digest of {parent}", "net": net}
    tracker.log(Follower(tracker, training).record, {}, tags)
    image, label = synthetic.picture("voc_val", 0, 96, 1)
    figure = root / f"{net}.png"
    seen = Seen("drawn", image, label, prediction=label, confidence=np.full_like(label, 255))
    plots.save(plots.predictions([("drawn", seen)], synthetic.CLASSES, net), figure)
    evaluation = tracker.record(
        "evaluation", net, "model_sha256", f"digest of {net}", params={}, datasets={"val": "1c7fab0b9d11"}
    )
    tracker.log(evaluation, {"mean_iu": CHAIN[net], "iu/disc": CHAIN[net] - 0.1}, {}, [figure])


@pytest.fixture(scope="module")
def tracker(tmp_path_factory) -> Iterator[Tracker]:
    """The runs of a chain, in a database of their own."""
    root = tmp_path_factory.mktemp("project")
    write_database(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker("drawn", root)
        for net, parent in zip(CHAIN, ("backbone", *CHAIN), strict=False):
            log_net(tracker, net, parent)
        yield tracker


@pytest.fixture(scope="module")
def ids(tracker) -> dict[str, str]:
    return {run.info.run_name: run.info.run_id for run in tracker.search("")}


@pytest.fixture(scope="module")
def pages(tracker, tmp_path_factory) -> Iterator[str]:
    """Where `make ui` would show them."""
    server = Server(tmp_path_factory.mktemp("server"), tracker.uri)
    server.start()
    yield f"{server.uri}/#/experiments/{tracker._experiment_id()}"
    server.kill()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[WebDriver]:
    with browser(tmp_path_factory.mktemp("browser"), 1800, 1000) as driver:
        yield driver


def text_of(page: WebDriver) -> str:
    return page.find_element("tag name", "body").text


def opened(page: WebDriver, url: str, *texts: str) -> str:
    """What the page at a URL says, once it says all of these."""
    page.get("about:blank")  # else a URL that differs after the # alone is no new page
    page.get(url)
    wait_for(page, lambda one: all(text in text_of(one) for text in texts))
    return text_of(page)


@pytest.fixture(autouse=True)
def nothing_is_wrong(page) -> Iterator[None]:
    """No page complains, or asks any other machine for anything."""
    yield
    assert [one for one in complaints(page) if not any(known in one for known in HARMLESS)] == []
    assert {host.partition(":")[0] for host in hosts_asked(page)} <= {"127.0.0.1"}


def test_the_table_of_runs_has_a_row_for_each_net_with_its_data(page, pages, ids):
    said = opened(page, f"{pages}/runs", *CHAIN)
    assert "3 matching runs" in said
    assert "drawn-train (699cfacb9d42)" in said
    links = {link.text: link.get_attribute("href") for link in page.find_elements("css selector", "a")}
    for net in CHAIN:
        assert links[net].endswith(f"/runs/{ids[net]}")


def test_two_runs_beside_each_other_show_recipe_and_scores(page, pages, ids):
    experiment = pages.rpartition("/")[2]
    chosen = quote(json.dumps([ids["fcn16s"], ids["fcn8s"]]))
    url = (
        f"{pages.partition('#')[0]}#/compare-runs?runs={chosen}&experiments={quote(json.dumps([experiment]))}"
    )
    lines = opened(page, url, "Comparing 2 Runs", "mean_iu", "iu/disc", "Artifacts").splitlines()
    assert "Comparing 2 Runs from 1 Experiment" in lines
    assert "train.optimizer.name adamw adamw" in lines
    numbers = lines[lines.index("Metrics") : lines.index("Artifacts")]  # by rows: names first, then pairs
    pairs = [numbers[i : i + 2] for i in range(len(numbers) - 1)]
    assert ["0.65", "0.78"] in pairs
    assert ["0.75", "0.88"] in pairs


def test_a_run_leads_to_its_parent_and_names_its_chain_and_data(page, pages, ids):
    said = opened(page, f"{pages}/runs/{ids['fcn8s']}", "Started from fcn16s.", "fcn32s-abc")
    assert "drawn-train (699cfacb9d42)" in said
    (link,) = [one for one in page.find_elements("css selector", "a") if one.text == "fcn16s"]
    assert link.get_attribute("href").endswith(f"/runs/{ids['fcn16s']}")
    page.get(link.get_attribute("href"))
    wait_for(page, lambda one: "Started from fcn32s." in text_of(one))


def test_a_figure_of_a_run_is_shown(page, pages, ids):
    opened(page, f"{pages}/runs/{ids['fcn8s']}/artifacts/figures/fcn8s.png", "figures/fcn8s.png")
    sizes = "return [...document.images].filter(i => i.src.startsWith('blob:')).map(i => i.naturalWidth)"
    assert wait_for(page, lambda one: max(one.execute_script(sizes))) > 300
