"""The report's page: its numbers and pixels, its size, its isolation from the network, and its keys in a browser."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from pipeline.curves import kept_in_words
from pipeline.errors import ResultError
from pipeline.evaluation.bootstrap import mean_iu, pixel_acc
from pipeline.evaluation.compare import score_table
from pipeline.report import viewer
from pipeline.report.page import MAX_BYTES, build, write_page
from pipeline.shards.labels import voc_palette
from tests.browser import browser, complaints, hosts_asked, needs_browser, wait_for
from tests.report.page_content import FIVE, NETS, content

HOSTILE = (
    "background",
    "<script>window.taken=1</script>",
    '"><img src=x onerror=window.taken=1>',
    "</script><b>",
    "$data {{ layers }} & &amp; 100%",
)


class Page(HTMLParser):
    """The tags with their attributes, and the words, of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    @property
    def figures(self) -> dict[str, str]:
        """The SVG of each figure by its alternative text."""
        images = [attributes for tag, attributes in self.tags if tag == "img"]
        return {
            str(image["alt"]): base64.b64decode(str(image["src"]).partition(",")[2]).decode()
            for image in images
        }


def viewer_data(text: str) -> dict:
    """What gallery.js reads."""
    (data,) = re.findall(r'<script type="application/json" id="gallery-data">(.*?)</script>', text)
    return json.loads(data)


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def classes_in(uri: str, num_classes: int) -> np.ndarray:
    """(H, W) by the colours of a picture: transparent is background, 255 is void."""
    rgba = np.array(picture(uri).convert("RGBA")).astype(int)
    palette = voc_palette().astype(int)
    classes = np.full(rgba.shape[:2], 255, np.uint8)
    for index in range(1, num_classes):
        classes[(rgba[..., :3] == palette[index]).all(-1)] = index
    classes[rgba[..., 3] == 0] = 0
    return classes


# --- numbers and pixels


def test_the_layers_show_label_prediction_and_confidence_to_the_pixel_and_the_images_own_scores(tmp_path):
    made = content(tmp_path)
    for i, image in enumerate(viewer_data(build(made))["images"]):
        for number, (result, gallery) in enumerate(zip(made.results, made.galleries, strict=True)):
            seen, net = gallery[image["key"]], image["nets"][number]
            assert np.array_equal(classes_in(image["label"], 5), seen.label)
            assert np.array_equal(classes_in(net["prediction"], 5), seen.prediction)
            confidence = np.array(picture(net["confidence"])).astype(int)
            assert np.abs(confidence - seen.confidence).mean() < 8  # a JPEG
            valid = seen.label != 255
            assert net["pixel_acc"] == pytest.approx((seen.label == seen.prediction)[valid].mean(), abs=1e-4)
            assert net["mean_iu"] == pytest.approx(float(mean_iu(result.images.whole[i])), abs=1e-4)
            assert net["pixel_acc"] == pytest.approx(float(pixel_acc(result.images.whole[i])), abs=1e-4)
            assert net["present"] == sorted(set(seen.prediction.flat))


def test_an_error_is_of_the_kind_a_person_would_call_it():
    label = np.array([[0, 0, 1, 1, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 2, 0, 1, 2, 0, 2]], np.uint8)
    kinds = viewer.error_kinds(label, prediction)
    expected = ["RIGHT", "INVENTED", "MISSED", "RIGHT", "CONFUSED", "VOID", "VOID"]
    assert kinds.tolist() == [[getattr(viewer, name) for name in expected]]
    rgba = np.array(picture(viewer.error_png(label, prediction)).convert("RGBA"))
    assert rgba[0, :, 3].tolist() == [0, 255, 255, 0, 255, 255, 255]
    assert tuple(rgba[0, 2, :3]) == viewer.ERRORS[viewer.MISSED - 1][1]


def test_255_classes_have_a_colour_each_and_void_its_own():
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(classes_in(viewer.class_png(classes, 255), 255), classes)


def test_the_page_has_every_class_its_iu_and_a_figure_of_each_net(tmp_path):
    made = content(tmp_path)
    page = Page(build(made))
    for result in made.results:
        for name, value in result.values["class_iu"].items():
            assert name in page.words
            assert f"{value:.3f}" in page.words
    for name in ("class_f1", "class_precision", "class_recall"):
        for value in made.results[-1].values[name].values():
            assert f"{value:.3f}" in page.words
    assert "No image of val is trained on." in page.words
    assert "fcn explain small/fcn8s" in page.words
    figures = page.figures
    assert len(figures) == len(NETS) + 2  # the confusion of each, the curves, the data
    assert all(svg.startswith("<svg") for svg in figures.values())


def test_a_net_that_was_chosen_on_val_is_shown_as_such(tmp_path):
    made = content(tmp_path)
    chosen = {
        "keep": "best",
        "step": 20,
        "last_step": 30,
        "iterations": 30,
        "best_by": "mean_iu",
        "score": 0.5,
    }
    chosen |= {"split": "val", "num_images": 3}
    first, *others = made.curves
    words = Page(build(replace(made, curves=[replace(first, kept=chosen), *others]))).words
    assert kept_in_words(chosen) in words
    assert [word.partition(":")[0] for word in words if "optimistic" in word] == [first.net]


def test_a_class_without_a_score_a_net_without_counts_and_a_leak_are_shown_as_such(tmp_path):
    made = content(tmp_path, validates=False)
    values = made.results[2].values
    values |= {"class_iu": values["class_iu"] | {"cross": None}, "num_leaked": 3}
    changed = replace(made.results[2], values=values, images=None)
    text = build(replace(made, results=[*made.results[:2], changed]))
    assert "mean_iu" not in viewer_data(text)["images"][0]["nets"][2]
    assert "LEAK: fcn8s was trained on 3 of the 3 images it is scored on." in Page(text).words
    assert Page(text).words.count("-") >= 2  # the IU, and its difference to another net
    assert "run.validate_every" in text  # the remedy for missing curves of val


def test_results_of_an_earlier_version_have_a_dash_where_they_have_no_score(tmp_path):
    made = content(tmp_path)
    rows = [len([word for word in Page(build(made)).words if word == "-"])]
    for result in made.results:
        for name in ("mean_f1", "mean_precision", "class_f1", "class_precision", "class_recall"):
            del result.values[name]
    old = Page(build(replace(made, scores=score_table(made.results))))
    rows.append(len([word for word in old.words if word == "-"]))
    assert rows[1] - rows[0] == 3 * len(FIVE) + 2 * len(NETS)


# --- size, and the network


def test_21_classes_and_two_dozen_photos_of_500_by_375_stay_under_10_mb_in_full_detail(tmp_path):
    made = content(tmp_path, [f"class{i}" for i in range(21)], num_images=24, size=(375, 500), side=25)
    write_page(tmp_path / "index.html", made)
    assert (tmp_path / "index.html").stat().st_size < 10_000_000 == MAX_BYTES
    images = viewer_data((tmp_path / "index.html").read_text("utf-8"))["images"]
    assert len(images) == 24
    assert {picture(image["photo"]).size for image in images} == {(500, 375)}


def test_pictures_that_do_not_fit_become_smaller_and_none_is_left_out(tmp_path):
    made = content(tmp_path, FIVE, num_images=4, size=(400, 600), side=1)
    images = viewer.as_data(made.galleries, 5, 600_000)
    assert [image["key"] for image in images] == [f"2007_{i:06d}" for i in range(4)]
    assert [image["name"] for image in images] == [image["key"] for image in images]
    assert len(json.dumps(images)) < 600_000
    sizes = {picture(image["photo"]).size for image in images}
    assert sizes < {(round(side), round(side * 2 / 3)) for side in viewer.SIDES}


def test_a_page_that_cannot_be_kept_small_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    made = content(tmp_path / "made", num_images=1)
    monkeypatch.setattr("pipeline.report.page.MAX_BYTES", 20_000)
    with pytest.raises(ResultError, match=r"index\.html .*0\.02.*evaluate\.num_gallery"):
        write_page(tmp_path / "index.html", made)
    assert not (tmp_path / "index.html").exists()


def test_names_from_data_are_words_and_nothing_on_the_page_refers_to_anything_outside_it(tmp_path):
    made = replace(content(tmp_path, HOSTILE), profile="<b>small</b>")
    text = build(made)
    page = Page(text)
    assert viewer_data(text)["classes"] == list(HOSTILE)
    assert set(HOSTILE) <= set(page.words)
    assert "FCN on <b>small</b>" in page.words
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == [
        "application/json",
        None,
    ]
    ids = {attributes.get("id") for _, attributes in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:") or (value[0] == "#" and value[1:] in ids)
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [one["content"] for _, one in page.tags if one.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; img-src data:;")


def test_the_same_content_gives_the_same_bytes(tmp_path):
    assert build(content(tmp_path / "a")) == build(content(tmp_path / "b"))


# --- in a browser


def press(driver: WebDriver, *keys: str) -> None:
    for key in keys:
        ActionChains(driver).send_keys(key).perform()


def text_of(driver: WebDriver, element: str) -> str:
    return driver.find_element(By.ID, element).text


def layers(driver: WebDriver, attribute: str) -> list[str | None]:
    """An attribute of the picture on top of each view that has one."""
    shown = driver.find_elements(By.CSS_SELECTOR, ".stage .layer:not([hidden])")
    return [image.get_attribute(attribute) for image in shown]


def contrast(driver: WebDriver, selector: str) -> float:
    """The contrast of an element's words with the page's ground, as WCAG 2 defines it."""
    script = "return [getComputedStyle(document.querySelector(arguments[0])).color,"
    script += " getComputedStyle(document.body).backgroundColor]"
    light = []
    for colour in driver.execute_script(script, selector):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


@needs_browser
def test_the_viewer_works_by_key_and_pointer_runs_no_name_as_code_and_needs_no_network(tmp_path):
    made = content(tmp_path / "made", HOSTILE)
    path = tmp_path / "index.html"
    write_page(path, made)
    first, second, _ = viewer_data(path.read_text("utf-8"))["images"]
    with browser(tmp_path / "browser") as driver:
        driver.get(path.as_uri())
        wait_for(driver, lambda page: text_of(page, "where"))
        assert text_of(driver, "where") == "1 of 3: 2007_000000"
        for number, layer in enumerate(("image", "label", "prediction", "error", "confidence"), start=1):
            press(driver, str(number))
            checked = driver.find_element(By.CSS_SELECTOR, 'input[name="layer"]:checked')
            assert checked.get_attribute("value") == layer
            nets = [first["label"] if layer == "label" else net.get(layer) for net in first["nets"]]
            assert layers(driver, "src") == ([] if layer == "image" else [first["label"], *nets])
            legend = {"error": "errors", "confidence": "confidence"}.get(layer, "classes")
            for name in ("classes", "errors", "confidence"):
                assert driver.find_element(By.ID, f"legend-{name}").is_displayed() == (name == legend)
        press(driver, "4", Keys.ARROW_RIGHT)
        assert text_of(driver, "where") == "2 of 3: 2007_000001"
        alternatives = [str(text).partition(":")[0] for text in layers(driver, "alt")]
        assert alternatives == ["label", *(f"error of {net}" for net in NETS)]
        caption = driver.find_elements(By.CSS_SELECTOR, ".view figcaption")[3].text
        assert caption.startswith(f"fcn8s mean IU {second['nets'][2]['mean_iu']:.3f}")
        press(driver, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
        assert text_of(driver, "where") == "3 of 3: 2007_000002"  # before the first comes the last

        seen = made.galleries[2]["2007_000002"]
        stage = driver.find_elements(By.CSS_SELECTOR, ".stage")[3]
        ActionChains(driver).move_to_element_with_offset(stage, 15, 15).perform()
        label, prediction = (
            HOSTILE[classes[34, 44]] for classes in (seen.label, seen.prediction)
        )  # the middle
        words = wait_for(driver, lambda page: text_of(page, "pixel").strip())
        assert words.startswith(f"label {label}, fcn8s {prediction} (0.")

        for control in driver.find_elements(By.CSS_SELECTOR, "#gallery button, #gallery input"):
            assert control.accessible_name
        driver.execute_script("document.getElementById('opacity').focus()")
        press(driver, Keys.ARROW_LEFT)  # of the slider, not of the images
        assert driver.find_element(By.ID, "opacity").get_attribute("value") == "75"
        assert text_of(driver, "where").startswith("3 of 3")

        loaded = "return [...document.images].every((image) => image.naturalWidth > 0 || image.hidden)"
        assert wait_for(driver, lambda page: page.execute_script(loaded))
        for scheme, width in (("light", 1280), ("dark", 390)):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            window = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
            assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
            for selector in ("body", ".help", "a", "figcaption", "th", "#legend-classes li"):
                assert contrast(driver, selector) >= 4.5, selector
        assert driver.execute_script("return window.taken") is None
        assert complaints(driver) == []
        assert hosts_asked(driver) == set()
