"""The report's page: its numbers and pixels, its size, what it asks of the network, and its keys in a browser."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from pipeline.errors import ResultError
from pipeline.evaluation.bootstrap import mean_iu, pixel_acc
from pipeline.report.page import images
from pipeline.report.page.charts import MAX_POINTS, Axis, Line, chart, thinned
from pipeline.report.page.page import MAX_BYTES, build, write_page
from pipeline.shards.labels import voc_palette
from tests.browser import browser, complaints, hosts_asked, needs_browser, wait_for
from tests.page_content import FIVE, NETS, content

HOSTILE = (
    "background",
    "<script>window.taken=1</script>",
    '"><img src=x onerror=window.taken=1>',
    "</script><b>",
    "$data ${layers} & &amp; 100%",
)


class Page(HTMLParser):
    """The attributes and the words of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def data_of(text: str) -> dict:
    """What gallery.js reads."""
    (found,) = re.findall(r'<script type="application/json" id="gallery-data">(.*?)</script>', text)
    return json.loads(found)


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def classes_in(uri: str, num_classes: int) -> np.ndarray:
    """(H, W) by the colours of a picture, transparent as background, void as 255."""
    rgba = np.array(picture(uri).convert("RGBA")).astype(int)
    palette = voc_palette().astype(int)
    found = np.full(rgba.shape[:2], 255, np.uint8)
    for index in range(1, num_classes):
        found[(rgba[..., :3] == palette[index]).all(-1)] = index
    found[rgba[..., 3] == 0] = 0
    return found


# --- numbers and pixels


def test_the_layers_show_label_prediction_and_confidence_to_the_pixel_and_the_images_own_scores(tmp_path):
    made = content(tmp_path)
    for i, image in enumerate(data_of(build(made))["images"]):
        for number, (result, shown) in enumerate(zip(made.results, made.galleries, strict=True)):
            seen, net = shown[image["key"]], image["nets"][number]
            assert np.array_equal(classes_in(image["label"], 5), seen.label)
            assert np.array_equal(classes_in(net["prediction"], 5), seen.prediction)
            sure = np.array(picture(net["confidence"])).astype(int)
            assert np.abs(sure - seen.confidence).mean() < 8  # a JPEG
            valid = seen.label != 255
            assert net["pixel_acc"] == pytest.approx((seen.label == seen.prediction)[valid].mean(), abs=1e-4)
            assert net["mean_iu"] == pytest.approx(float(mean_iu(result.images.whole[i])), abs=1e-4)
            assert net["pixel_acc"] == pytest.approx(float(pixel_acc(result.images.whole[i])), abs=1e-4)
            assert net["present"] == sorted(set(seen.prediction.flat))


def test_an_error_is_of_the_kind_a_person_would_call_it():
    label = np.array([[0, 0, 1, 1, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 2, 0, 1, 2, 0, 2]], np.uint8)
    kinds = images.error_kinds(label, prediction)
    expected = ["RIGHT", "INVENTED", "MISSED", "RIGHT", "CONFUSED", "VOID", "VOID"]
    assert kinds.tolist() == [[getattr(images, name) for name in expected]]
    rgba = np.array(picture(images.error_png(label, prediction)).convert("RGBA"))
    assert rgba[0, :, 3].tolist() == [0, 255, 255, 0, 255, 255, 255]
    assert tuple(rgba[0, 2, :3]) == images.ERRORS[images.MISSED - 1][1]


def test_255_classes_have_a_colour_each_and_void_its_own():
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(classes_in(images.class_png(classes, 255), 255), classes)


def test_the_page_says_every_class_its_iu_and_the_shares_of_the_confusion_matrix(tmp_path):
    made = content(tmp_path)
    words = Page(build(made)).words
    for result in made.results:
        for name, value in result.values["class_iu"].items():
            assert name in words
            assert f"{value:.3f}" in words
    last = made.confusions[-1]
    assert f"{last[2, 2] / last[2].sum() * 100:.0f}" in words
    assert "No image of val is trained on." in words
    assert "fcn explain small/fcn8s" in words


def test_a_class_without_a_score_and_a_net_without_counts_are_shown_as_such(tmp_path):
    made = content(tmp_path)
    values = made.results[2].values | {
        "class_iu": made.results[2].values["class_iu"] | {"cross": None},
        "num_leaked": 3,
    }
    changed = replace(made.results[2], values=values, images=None)
    hist = made.confusions[2].copy()
    hist[4] = 0
    page = build(replace(made, results=[*made.results[:2], changed], confusions=[*made.confusions[:2], hist]))
    assert "mean_iu" not in data_of(page)["images"][0]["nets"][2]
    assert "LEAK: fcn8s was trained on 3 of the 3 images it is scored on." in page
    assert "<td>-</td>" in page


def test_too_many_classes_for_a_matrix_are_sent_to_the_file(tmp_path):
    page = build(content(tmp_path, classes=[f"class{i}" for i in range(60)], num_images=1))
    assert "figures/small/NET/confusion.csv" in page


def test_a_run_that_never_looked_at_val_says_how_it_could_have(tmp_path):
    page = build(content(tmp_path, num_images=1, validates=False))
    assert "run.validate_every" in page
    assert page.count("<svg") == 2


# --- charts


def test_a_nets_curve_goes_on_where_the_one_it_started_from_ended(tmp_path):
    page = build(content(tmp_path, num_images=1))
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    lines = [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'points="(.*?)"', charts[0])
    ]
    ends = [line[-1][0] for line in lines]
    starts = [line[0][0] for line in lines]
    step = (ends[0] - starts[0]) / 2  # of 10 steps
    assert starts[1] - ends[0] == pytest.approx(step, abs=0.2)
    assert starts[2] - ends[1] == pytest.approx(step, abs=0.2)
    one_at_once = content(tmp_path / "at_once", num_images=1)
    curves = [replace(curve, parent="backbone") for curve in one_at_once.curves]
    charts = re.findall(r"<svg.*?</svg>", build(replace(one_at_once, curves=curves)), re.DOTALL)
    starts = {points.split(",")[0] for points in re.findall(r'points="(.*?)"', charts[0])}
    assert len(starts) == 1


@pytest.mark.parametrize(
    "axis",
    [Axis(0, 400), Axis(0.13, 0.14), Axis(0, 300_000), Axis(0.02, 1.7, True), Axis(1e-14, 1e-10, True)],
)
def test_ticks_are_a_few_round_values_within_the_axis(axis):
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    assert all(axis.least <= value <= axis.most for value in ticks)
    assert all(len(f"{value:.6g}".strip("0.").replace(".", "").rstrip("0")) <= 12 for value in ticks)
    assert axis.share(axis.least) == 0
    assert axis.share(axis.most) == 1


@pytest.mark.parametrize("y", [[0.0], [1.0, 1.0], [0.0, 2.0], [-1.0, 3.0]])
def test_any_curve_can_be_drawn_even_one_point_a_constant_or_zero(y):
    drawn = chart("loss", [Line("fcn8s", 0, list(range(len(y))), y)], "steps", is_log=True)
    assert "nan" not in drawn
    assert drawn.count("polyline") + drawn.count("circle") == 1
    assert chart("loss", [Line("fcn8s", 0, [], [])], "steps", is_log=True) == ""


def test_a_long_curve_is_thinned_to_means_and_keeps_its_mean():
    x = list(range(40_000))
    line = thinned(Line("fcn8s", 0, x, [float(value % 7) for value in x]))
    assert len(line.x) == len(line.y) == MAX_POINTS
    assert np.mean(line.y) == pytest.approx(np.mean([value % 7 for value in x]))


# --- size, and the network


def test_21_classes_and_two_dozen_photos_of_500_by_375_stay_under_10_mb_in_full_detail(tmp_path):
    made = content(tmp_path, [f"class{i}" for i in range(21)], num_images=24, size=(375, 500), side=25)
    write_page(tmp_path / "index.html", made)
    assert (tmp_path / "index.html").stat().st_size < 10_000_000 == MAX_BYTES
    shown = data_of((tmp_path / "index.html").read_text("utf-8"))["images"]
    assert len(shown) == 24
    assert {picture(image["photo"]).size for image in shown} == {(500, 375)}


def test_pictures_that_do_not_fit_become_smaller_and_none_is_left_out(tmp_path):
    made = content(tmp_path, FIVE, num_images=4, size=(400, 600), side=1)
    few = images.as_data(made.galleries, 5, 600_000)
    assert [image["key"] for image in few] == [f"2007_{i:06d}" for i in range(4)]
    assert len(json.dumps(few)) < 600_000
    sizes = {picture(image["photo"]).size for image in few}
    assert sizes < {(round(side), round(side * 2 / 3)) for side in images.SIDES}


def test_a_page_that_cannot_be_kept_small_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    made = content(tmp_path / "made", num_images=1)
    monkeypatch.setattr("pipeline.report.page.page.MAX_BYTES", 20_000)
    with pytest.raises(ResultError, match=r"index\.html would have .* MB, more than 0.02; lower evaluate"):
        write_page(tmp_path / "index.html", made)
    assert not (tmp_path / "index.html").exists()


def test_nothing_on_the_page_refers_to_anything_outside_it(tmp_path):
    text = build(content(tmp_path))
    tags = Page(text).tags
    ids = {attributes.get("id") for _, attributes in tags}
    for _, attributes in tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:") or (value[0] == "#" and value[1:] in ids)
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [one["content"] for name, one in tags if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_same_content_gives_the_same_bytes(tmp_path):
    assert build(content(tmp_path / "a")) == build(content(tmp_path / "b"))


# --- in a browser


def shown_layers(driver: WebDriver) -> list[str]:
    """The alternative text of each view's picture on top, "" where the photo is alone."""
    return [image.get_attribute("alt") for image in driver.find_elements(By.CSS_SELECTOR, ".stage .layer")]


def press(driver: WebDriver, *keys: str) -> None:
    for key in keys:
        ActionChains(driver).send_keys(key).perform()


def where(driver: WebDriver) -> str:
    return driver.find_element(By.ID, "where").text


def checked(driver: WebDriver) -> str:
    return driver.find_element(By.CSS_SELECTOR, 'input[name="layer"]:checked').get_attribute("value")


def open_page(driver: WebDriver, path: Path) -> None:
    driver.get(path.as_uri())
    wait_for(driver, where)


@needs_browser
def test_layers_and_images_change_by_key_and_nothing_is_asked_of_the_network(tmp_path):
    made = content(tmp_path / "made")
    write_page(tmp_path / "index.html", made)
    data = data_of((tmp_path / "index.html").read_text("utf-8"))
    with browser(tmp_path / "browser") as driver:
        open_page(driver, tmp_path / "index.html")
        assert where(driver) == "1 of 3: 2007_000000"
        assert checked(driver) == "prediction"
        for number, layer in enumerate(("image", "label", "prediction", "error", "confidence"), start=1):
            press(driver, str(number))
            assert checked(driver) == layer
            sources = [
                image.get_attribute("src")
                for image in driver.find_elements(By.CSS_SELECTOR, ".stage .layer:not([hidden])")
            ]
            image = data["images"][0]
            nets = [image["label"] if layer == "label" else net.get(layer) for net in image["nets"]]
            assert sources == ([] if layer == "image" else [image["label"], *nets])
            legends = {
                name: driver.find_element(By.ID, f"legend-{name}").is_displayed()
                for name in ("classes", "errors", "confidence")
            }
            wanted = {"error": "errors", "confidence": "confidence"}.get(layer, "classes")
            assert [name for name, is_shown in legends.items() if is_shown] == [wanted]
        press(driver, "4", Keys.ARROW_RIGHT)
        assert where(driver) == "2 of 3: 2007_000001"
        alts = shown_layers(driver)
        assert [alt.partition(":")[0] for alt in alts] == ["label", *(f"error of {net}" for net in NETS)]
        sources = [one.get_attribute("src") for one in driver.find_elements(By.CSS_SELECTOR, ".stage .layer")]
        assert sources[3] == data["images"][1]["nets"][2]["error"]
        caption = driver.find_elements(By.CSS_SELECTOR, ".view figcaption")[3].text
        assert caption.startswith(f"fcn8s mean IU {data['images'][1]['nets'][2]['mean_iu']:.3f}")
        press(driver, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
        assert where(driver) == "3 of 3: 2007_000002"  # round, from the first
        assert all(
            driver.execute_script("return arguments[0].naturalWidth > 0", image)
            for image in driver.find_elements(By.CSS_SELECTOR, ".stage img:not([hidden])")
        )
        assert complaints(driver) == []
        assert hosts_asked(driver) == set()


@needs_browser
def test_every_control_is_reached_by_tab_shows_its_focus_and_works_without_a_mouse(tmp_path):
    write_page(tmp_path / "index.html", content(tmp_path / "made"))
    with browser(tmp_path / "browser") as driver:
        open_page(driver, tmp_path / "index.html")
        seen: dict[str, str] = {}
        for _ in range(60):
            press(driver, Keys.TAB)
            active = driver.switch_to.active_element
            if active.get_attribute("id") in seen:
                break  # round
            name = active.get_attribute("id") or active.get_attribute("name") or active.text
            name = name or active.get_attribute("aria-label") or ""
            visible = "const e = arguments[0].nextElementSibling && arguments[0].type === 'radio' ?"
            visible += (
                " arguments[0].nextElementSibling : arguments[0]; return getComputedStyle(e).outlineStyle"
            )
            seen[name] = driver.execute_script(visible, active)
            if name == "next":
                press(driver, Keys.ENTER)
                assert where(driver).startswith("2 of 3")
            if name == "layer":
                assert checked(driver) == "prediction"
                press(driver, Keys.ARROW_RIGHT)  # of the radio buttons, not of the images
                assert checked(driver) == "error"
                assert where(driver).startswith("2 of 3")
            if name == "opacity":
                press(driver, Keys.ARROW_LEFT)
                assert active.get_attribute("value") == "75"
                assert where(driver).startswith("2 of 3")
            if name == "underneath":
                press(driver, Keys.SPACE)
                photos = driver.find_elements(By.CSS_SELECTOR, ".stage .photo")
                assert not any(photo.is_displayed() for photo in photos)
        assert {"previous", "next", "layer", "opacity", "underneath", "Image 1: 2007_000000"} <= set(seen)
        assert all(seen[name] in ("solid", "auto") for name in ("previous", "next", "layer", "opacity"))
        for control in driver.find_elements(By.CSS_SELECTOR, "#gallery button, #gallery input"):
            assert control.accessible_name
        assert complaints(driver) == []


@needs_browser
def test_the_class_under_the_pointer_is_named(tmp_path):
    made = content(tmp_path / "made", num_images=1)
    write_page(tmp_path / "index.html", made)
    seen = made.galleries[2]["2007_000000"]
    with browser(tmp_path / "browser") as driver:
        open_page(driver, tmp_path / "index.html")
        stage = driver.find_elements(By.CSS_SELECTOR, ".stage")[3]
        ActionChains(driver).move_to_element_with_offset(stage, 15, 15).perform()
        y, x = 34, 44  # about the middle; pixels around it are of the same block
        label, prediction = made.classes[seen.label[y, x]], made.classes[seen.prediction[y, x]]
        said = wait_for(driver, lambda page: page.find_element(By.ID, "pixel").text.strip())
        assert said.startswith(f"label {label}, fcn8s {prediction} (0.")


@needs_browser
def test_names_from_data_are_words_and_never_code(tmp_path):
    made = content(tmp_path / "made", HOSTILE)
    made = replace(made, profile="<b>small</b>")
    write_page(tmp_path / "index.html", made)
    with browser(tmp_path / "browser") as driver:
        open_page(driver, tmp_path / "index.html")
        legend = driver.find_elements(By.CSS_SELECTOR, "#legend-classes li")
        assert [item.text for item in legend] == [*HOSTILE, "void"]
        press(driver, "2")
        assert shown_layers(driver)[1].startswith("label: ")
        assert driver.title == "FCN on <b>small</b>"
        assert driver.execute_script("return window.taken") is None
        assert complaints(driver) == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_window_and_its_words_stand_out_from_the_ground(tmp_path, scheme, width):
    write_page(
        tmp_path / "index.html", content(tmp_path / "made", [f"class{i}" for i in range(21)], num_images=2)
    )
    with browser(tmp_path / "browser") as driver:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        open_page(driver, tmp_path / "index.html")
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        for selector in ("body", ".help", "a", "figcaption", "th", "#legend-classes li"):
            assert contrast(driver, selector) >= 4.5, selector


def contrast(driver: WebDriver, selector: str) -> float:
    """Of an element's words against the page's ground, as WCAG 2 defines it."""
    script = "return [getComputedStyle(document.querySelector(arguments[0])).color,"
    script += " getComputedStyle(document.body).backgroundColor]"
    light = []
    for colour in driver.execute_script(script, selector):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)
