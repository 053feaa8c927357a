"""`fcn serve`: the real server in its own process, asked by a real client, and a real browser on its page."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fcn.model import FCN
from pipeline.models.predictor import Predictor
from pipeline.prediction import photos
from pipeline.prediction.predict import predict_photos
from pipeline.serving.answer import Segmentation, described
from pipeline.shards.labels import voc_palette
from tests.browser import browser, complaints, hosts_asked, needs_browser, wait_for
from tests.conftest import run_fcn
from tests.photo_net import CLASSES, encoded, indices_of, noise, save_model, scores_of

WAIT = 60  # seconds that a busy machine may take to answer
SERVE = [sys.executable, "-m", "pipeline.cli.main", "serve"]


@contextmanager
def server(path: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(its URL, its process) of `fcn serve` with these options, on a free port."""
    command = [*SERVE, str(path), "--port", "0", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("http://"), process.stderr.read()
            yield line.split()[0], process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(model) -> Iterator[str]:
    with server(model, "--max-mb", "1") as (url, _):
        yield url


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """A net that takes seconds for a photo of a megapixel."""
    options = {"num_classes": 3, "backbone": "vgg16", "padding": "tight", "width": 0.5, "fc6_kernel": 3}
    return save_model(tmp_path_factory.mktemp("slow") / "slow.pt", FCN(**options), options)


def ask(url: str, data: bytes, **options) -> httpx.Response:
    return httpx.post(f"{url}/predict", content=data, timeout=WAIT, **options)


def get(url: str, **options) -> httpx.Response:
    return httpx.get(url, timeout=WAIT, **options)


def num_requests(url: str) -> int:
    return get(f"{url}/health").json()["requests"]


@contextmanager
def wire(url: str, *headers: str) -> Iterator[socket.socket]:
    """A connection that has sent the head of POST /predict and no body."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as connection:
        lines = ["POST /predict HTTP/1.1", f"Host: {host}:{port}", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        yield connection


def assert_refused(response: httpx.Response, status: int, *facts: str) -> None:
    """The answer is one line of JSON with these facts."""
    assert (response.status_code, list(response.json())) == (status, ["error"]), response.text
    message = response.json()["error"]
    assert "\n" not in message
    for fact in facts:
        assert fact in message


# Answers


@pytest.mark.parametrize("kind", ["model", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_prediction_has_the_bytes_that_fcn_predict_writes(request, tmp_path, real_data, kind):
    path = request.getfixturevalue(kind)
    files = sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[:2]
    (tmp_path / "large.png").write_bytes(encoded(noise(500, 830)))  # run in tiles
    files.append(tmp_path / "large.png")
    predict_photos(Predictor.load(path), files, tmp_path / "out", side=480)
    with server(path, "--tile", "480") as (url, _):
        for file in files:
            answer = ask(url, file.read_bytes())
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            assert answer.content == (tmp_path / "out" / f"{file.stem}.png").read_bytes()


def test_a_photo_comes_as_the_body_or_as_a_file_of_a_form(url):
    data = encoded(noise(40, 60))
    expected = ask(url, data).content
    form = httpx.post(f"{url}/predict", files={"file": ("a.png", data)}, data={"more": "text"}, timeout=WAIT)
    assert (form.status_code, form.content) == (200, expected)
    typed = ask(url, data, headers={"content-type": "application/x-www-form-urlencoded"})  # curl's default
    assert typed.content == expected


def test_json_has_each_class_with_its_share_and_confidence(url, net):
    image = noise(40, 60)
    answer = ask(url, encoded(image), params={"format": "json"}).json()
    probability, prediction = scores_of(net, image).double().softmax(0).max(0)
    assert (answer["width"], answer["height"]) == (60, 40)
    assert answer["model"] == {"name": "fcn8s.pt", "backbone": "mobilenet_v1", "stride": 8}
    colours = ["#000000", "#800000", "#008000"]
    for index, (row, name) in enumerate(zip(answer["classes"], CLASSES, strict=True)):
        region = prediction == index
        assert (row["index"], row["name"], row["colour"]) == (index, name, colours[index])
        assert row["share"] == pytest.approx(region.double().mean().item())
        assert row["confidence"] == pytest.approx(probability[region].mean().item(), abs=0.5 / 255)


def test_layers_are_the_photo_the_prediction_and_the_confidence_at_one_size(url, net):
    image = noise(40, 60)
    answer = ask(url, encoded(image), params={"format": "layers"}).json()
    photo, prediction, confidence = (
        base64.b64decode(answer[name]) for name in ("photo", "prediction", "confidence")
    )
    assert prediction == ask(url, encoded(image)).content
    with Image.open(io.BytesIO(confidence)) as grey:
        assert grey.mode == "L"
        expected = 255 * scores_of(net, image).softmax(0).amax(0).numpy()
        np.testing.assert_allclose(np.array(grey), expected, atol=0.51)
    with Image.open(io.BytesIO(photo)) as jpeg:
        assert (jpeg.format, jpeg.size) == ("JPEG", (60, 40))
        assert np.abs(np.array(jpeg).astype(int) - image).mean() < 12


def test_a_class_without_a_pixel_has_no_confidence():
    only_ground = Segmentation(np.zeros((4, 5), np.uint8), np.full((4, 5), 255, np.uint8))
    rows = described(only_ground, ["ground", "tree"])["classes"]
    assert [(row["share"], row["confidence"]) for row in rows] == [(1.0, 1.0), (0.0, None)]


def test_health_names_the_model_and_its_classes(url):
    assert get(f"{url}/health").json() == {
        "status": "ok",
        "model": {"name": "fcn8s.pt", "backbone": "mobilenet_v1", "stride": 8, "classes": CLASSES},
        "requests": 0,
    }


def test_a_photo_is_read_as_fcn_predict_reads_it(url):
    """The first frame of an animation; turned as viewers show it."""
    first, second = (Image.fromarray(noise(40, 60, seed)).quantize(64) for seed in (1, 2))
    moving = encoded(first, "GIF", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(moving)) as gif:
        assert gif.n_frames == 2
        still = encoded(gif.convert("RGB"))
    assert ask(url, moving).content == ask(url, still).content
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turned to the right
    turned = encoded(np.rot90(noise(40, 60), -1))
    assert ask(url, encoded(noise(40, 60), exif=exif)).content == ask(url, turned).content


# Refusals


@pytest.mark.parametrize(
    ("kind", "status", "fact"),
    [
        ("text", 415, "JPEG"),
        ("cut JPEG", 400, "truncated"),
        ("16-bit PNG", 415, "8 bits"),
        ("empty", 400, "no photo"),
        ("empty form", 400, "no photo"),
        ("bomb", 413, "pixels"),
        ("large", 413, "1000000 bytes"),
    ],
)
def test_what_is_no_photo_to_work_on_is_refused_in_a_sentence(url, kind, status, fact):
    jpeg = encoded(noise(200, 200), "JPEG", quality=95)
    data = {
        "text": b"no photo at all",
        "cut JPEG": jpeg[: len(jpeg) // 2],
        "16-bit PNG": encoded(np.zeros((4, 4), np.uint16)),
        "empty": b"",
        "bomb": encoded(Image.new("1", (photos.MAX_PIXELS // 4000 + 1, 4000))),
        "large": bytes(1_000_001),
    }
    if kind == "empty form":
        answer = httpx.post(f"{url}/predict", files={"file": ("a.png", b"")}, timeout=WAIT)
    else:
        answer = ask(url, data[kind])
    assert_refused(answer, status, fact)
    assert num_requests(url) == 0


def test_a_photo_too_wide_for_the_page_is_refused_there_and_predicted_otherwise(url):
    wide = encoded(Image.new("RGB", (65501, 1)))
    assert_refused(ask(url, wide, params={"format": "layers"}), 413, "65500")
    assert ask(url, wide, params={"format": "json"}).json()["width"] == 65501


def test_a_body_of_unsaid_length_is_counted_while_it_is_read(url):
    num_sent, chunk = 0, b"%x\r\n%b\r\n" % (2**16, bytes(2**16))
    with wire(url, "Transfer-Encoding: chunked") as connection:
        answer = b""
        while not answer and num_sent < 10**9:
            connection.settimeout(WAIT)
            connection.sendall(chunk)
            num_sent += 2**16
            connection.settimeout(0.01)
            try:
                answer = connection.recv(2**16)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert num_sent < 2**24  # bytes


def test_a_content_length_that_is_too_large_is_refused_before_the_body_comes(url):
    with wire(url, f"Content-Length: {10**12}") as connection:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 413 ")


def test_a_photo_that_does_not_arrive_is_given_up_and_leaves_its_place(model):
    with server(model, "--timeout", "1", "--waiting", "0") as (url, _):
        with wire(url, "Content-Length: 100") as connection:
            connection.sendall(b"x")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 408 ")
        assert_refused(ask(url, b"text"), 415)  # there is room again
        assert ask(url, encoded(noise(40, 60))).status_code == 200


def test_more_photos_than_may_wait_are_told_to_come_again_and_the_others_are_done(slow):
    data = encoded(noise(600, 800))
    with server(slow, "--waiting", "1") as (url, _):
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(url, data))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert len(done) >= 2
        assert len(done) + len(refused) == 5
        assert refused
        for answer in refused:
            assert_refused(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
        assert len({answer.content for answer in done}) == 1
        assert num_requests(url) == 0


def test_work_that_takes_too_long_is_given_up_at_the_next_tile_and_leaves_its_place(slow):
    with server(slow, "--timeout", "1", "--waiting", "0", "--tile", "640") as (url, process):
        start = time.monotonic()
        assert_refused(ask(url, encoded(noise(3000, 4000), "JPEG")), 504, "1 seconds")
        assert time.monotonic() - start < 20  # all tiles would take minutes
        while num_requests(url):
            assert time.monotonic() - start < WAIT
            time.sleep(0.1)
        process.kill()
        assert process.stderr.read() == ""


def test_a_damaged_model_is_named(nan_model):
    with server(nan_model) as (url, _):
        assert_refused(ask(url, encoded(noise(40, 60))), 500, "nan.pt", "NaN")


def test_a_name_that_another_site_has_pointed_here_is_refused(url):
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1.evil.example"):
        assert_refused(get(f"{url}/health", headers={"host": host}), 400, repr(host))
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8000", "192.168.0.7", socket.gethostname()):
        assert get(f"{url}/health", headers={"host": host}).status_code == 200, host


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_origin_is_refused(url, origin):
    assert_refused(ask(url, encoded(noise(4, 4)), headers={"origin": origin}), 403, origin)


def test_browsers_are_told_to_ask_no_other_host_and_no_site_to_frame_it(url):
    for path in ("/", "/health", "/none"):
        headers = get(f"{url}{path}").headers
        rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["frame-ancestors"] == "'none'"
        assert all("http" not in value and "unsafe" not in value for value in rules.values())
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_an_unknown_path_method_or_format_is_refused_in_json(url):
    assert_refused(get(f"{url}/docs"), 404)
    assert_refused(get(f"{url}/predict"), 405)
    assert_refused(ask(url, encoded(noise(4, 4)), params={"format": "gif"}), 400, "format", "'layers'")


# The command


@pytest.mark.parametrize("is_busy", [False, True])
def test_ctrl_c_ends_it_quietly_even_if_it_is_at_work(slow, is_busy):
    with server(slow) as (url, process):
        if is_busy:
            photo = encoded(noise(1500, 1500), "JPEG")

            def ask_in_vain() -> None:
                with pytest.raises(httpx.HTTPError):
                    ask(url, photo)

            asking = threading.Thread(target=ask_in_vain)
            asking.start()
            while not num_requests(url):
                time.sleep(0.05)
            time.sleep(0.5)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT)
        assert (process.returncode, out, err) == (0, "", "")
        assert time.monotonic() - start < 15
        if is_busy:
            asking.join()


@pytest.mark.parametrize("mistake", ["port", "host", "model"])
def test_a_port_host_or_model_that_cannot_be_had_is_one_message_and_exit_code_2(
    model, tmp_path, monkeypatch, capsys, mistake
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options, fact = {
            "port": ([str(model), "--port", port], f"port {port}"),
            "host": ([str(model), "--host", "no.such.host.invalid"], "no.such.host.invalid"),
            "model": ([str(tmp_path / "none.pt")], "none.pt is missing"),
        }[mistake]
        code, out, err = run_fcn(monkeypatch, capsys, "serve", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert fact in err


def test_it_listens_to_this_machine_alone_unless_told_otherwise_which_it_warns_of(model, url):
    assert url.startswith("http://127.0.0.1:")
    with server(model, "--host", "0.0.0.0") as (_, process):
        assert process.stdout.readline().startswith("warning: ")


# The page


@needs_browser
def test_a_person_sees_the_prediction_of_a_photo_without_mouse_or_other_hosts(url, tmp_path):
    photo, text = tmp_path / "two squares.png", tmp_path / "a.txt"
    photo.write_bytes(encoded(noise(60, 80)))
    text.write_text("no photo")
    rows = ask(url, photo.read_bytes(), params={"format": "json"}).json()["classes"]
    shown = sorted((row for row in rows if row["share"]), key=lambda row: -row["share"])
    png = ask(url, photo.read_bytes()).content
    prediction = indices_of(png)
    with browser(tmp_path / "profile", width=400) as driver:
        element = driver.find_element
        driver.get(url)
        wait_for(driver, lambda d: "fcn8s.pt: mobilenet_v1, stride 8" in d.find_element(By.ID, "model").text)
        element(By.ID, "file").send_keys(str(photo))
        wait_for(driver, lambda d: d.find_element(By.ID, "result").is_displayed())
        # The legend and the layer over the photo
        assert element(By.ID, "caption").text.startswith("two squares.png, 80 ")
        buttons = driver.find_elements(By.CSS_SELECTOR, "#legend button")
        assert [
            (
                button.find_element(By.CLASS_NAME, "name").text,
                button.find_element(By.CLASS_NAME, "share").text,
            )
            for button in buttons
        ] == [(row["name"], f"{100 * row['share']:.1f} %") for row in shown]
        layer = pixels_of(driver)
        assert layer.shape == (60, 80, 4)
        np.testing.assert_array_equal(layer[..., 3], np.where(prediction == 0, 0, round(2.55 * 60)))
        seen = prediction != 0  # a colour that is half transparent is stored a little rounded
        assert np.abs(layer[seen][:, :3].astype(int) - voc_palette()[prediction[seen]]).max() <= 2
        # By the keyboard alone
        reached = []
        for _ in range(12):
            ActionChains(driver).send_keys(Keys.TAB).perform()
            active = driver.switch_to.active_element
            values = active.get_attribute("id"), active.get_attribute("value"), active.text.split("\n")[0]
            reached.append(next(filter(None, values), ""))
        assert {"prediction", "opacity", "download", *CLASSES} <= set(reached)
        element(By.CSS_SELECTOR, "[value=prediction]").send_keys(Keys.ARROW_LEFT)
        assert pixels_of(driver)[..., 3].max() == 0  # the photo alone
        driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        button = element(By.CSS_SELECTOR, "#legend button[data-index='1']")
        button.send_keys(Keys.ENTER)
        assert button.get_attribute("aria-pressed") == "true"
        assert set(pixels_of(driver)[prediction != 1][:, 3]) == {190}  # darkened
        # The download, and a file that is refused
        folder = {"behavior": "allow", "downloadPath": str(tmp_path / "saved")}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
        element(By.ID, "download").click()
        saved = wait_for(driver, lambda _: list((tmp_path / "saved").glob("*.png")))
        assert saved[0].read_bytes() == png
        assert complaints(driver) == []
        element(By.ID, "file").send_keys(str(text))
        assert "JPEG" in wait_for(driver, lambda d: d.find_element(By.ID, "error").text)
        assert element(By.ID, "caption").text.startswith("two squares.png")
        scroll, window = driver.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert scroll <= window
        assert hosts_asked(driver) == {url.removeprefix("http://")}


def pixels_of(driver) -> np.ndarray:
    """(H, W, 4) RGBA of the layer over the photo."""
    height, width, values = driver.execute_script(
        "const c = document.getElementById('layer');"
        "return [c.height, c.width, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]"
    )
    return np.array(values, np.uint8).reshape(height, width, 4)
