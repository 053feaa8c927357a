"""MLflow's pages of a net's run, in a real browser."""

import numpy as np
from PIL import Image

from pipeline.tracking import Tracker
from tests.browser import browser, complaints, hosts_asked, needs_browser, wait_for
from tests.mlflow_server import Server

HARMLESS = ("users/current", "ResizeObserver")  # no login; a chart is drawn while it is measured


def log_net(tracker: Tracker, net: str, parent: str) -> None:
    data = {"train": "t" * 36}
    training = tracker.record("training", net, "fcn.attempt", net, params={"lr": 0.1}, datasets=data)
    tags = {"model_sha256": f"digest of {net}", "parent_sha256": f"digest of {parent}", "chain": "fcn32s-abc"}
    tracker.log(training, {}, tags)
    figure = tracker.root / f"{net}.png"
    Image.fromarray(np.full((400, 600, 3), 200, np.uint8)).save(figure)
    value = f"digest of {net}"
    evaluation = tracker.record("evaluation", net, "model_sha256", value, params={}, datasets={"val": "v"})
    tracker.log(evaluation, {"mean_iu": 0.88}, {}, [figure])


@needs_browser
def test_a_run_shows_its_parent_chain_data_and_figures_and_asks_no_other_machine(root, tmp_path_factory):
    tracker = Tracker("drawn", root)
    log_net(tracker, "fcn16s", "fcn32s")
    log_net(tracker, "fcn8s", "fcn16s")
    ids = {run.info.run_name: run.info.run_id for run in tracker.search_runs("")}
    server = Server(tmp_path_factory.mktemp("server"), tracker.uri)
    server.start()
    try:
        with browser(tmp_path_factory.mktemp("browser"), 1800, 1000) as page:
            url = f"{server.uri}/#/experiments/{tracker.experiment_id()}/runs/{ids['fcn8s']}"
            page.get(url)
            shown = ("Started from fcn16s.", "fcn32s-abc", "drawn-train")
            wait_for(
                page, lambda one: all(text in one.find_element("tag name", "body").text for text in shown)
            )
            (link,) = [one for one in page.find_elements("css selector", "a") if one.text == "fcn16s"]
            assert link.get_attribute("href").endswith(f"/runs/{ids['fcn16s']}")
            page.get("about:blank")  # a URL that differs after the # alone is not loaded again
            page.get(f"{url}/artifacts/figures/fcn8s.png")
            widths = (
                "return [...document.images].filter(i => i.src.startsWith('blob:')).map(i => i.naturalWidth)"
            )
            assert wait_for(page, lambda one: max(one.execute_script(widths))) == 600
            errors = [error for error in complaints(page) if not any(known in error for known in HARMLESS)]
            assert errors == []
            assert {host.partition(":")[0] for host in hosts_asked(page)} <= {"127.0.0.1"}
    finally:
        server.kill()
