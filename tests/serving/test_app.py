"""`fcn serve`: the real server in a process of its own, asked by a real client, and a real browser on its page."""

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
import torch
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fcn.model import FCN
from pipeline.cli.main import parser
from pipeline.models.tiles import Overlap
from pipeline.prediction import photos
from pipeline.prediction.predict import Net, load_net
from pipeline.serving.answer import described, segment
from pipeline.shards.labels import voc_palette
from tests.browser import browser, complaints, hosts_asked, needs_browser, wait_for
from tests.prediction.test_predict import CLASSES, OPTIONS, model, net, noise, onnx, run, save_model  # noqa: F401  # fixtures

WAIT = 60  # seconds that a busy machine may take to answer


@contextmanager
def server(path: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(its URL, its process) of `fcn serve` with these options, on a port that is free."""
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", str(path), "--port", "0", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            assert line.startswith("http://"), process.stderr and process.stderr.read()
            yield line.split()[0], process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(model) -> Iterator[str]:  # noqa: F811
    with server(model, "--max-mb", "1") as (url, _):
        yield url


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def ask(url: str, data: bytes, **options) -> httpx.Response:
    return httpx.post(f"{url}/predict", content=data, timeout=WAIT, **options)


def indices(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        assert image.getpalette("RGB") == voc_palette().flatten().tolist()
        return np.array(image)


def refused(response: httpx.Response, status: int, *words: str) -> None:
    """The answer is one sentence of JSON with these words."""
    assert (response.status_code, list(response.json())) == (status, ["error"]), response.text
    said = response.json()["error"]
    assert "\n" not in said
    for word in words:
        assert word in said


# --- what it answers


@pytest.mark.parametrize("kind", [".pt", ".onnx"])
def test_a_prediction_has_the_bytes_that_fcn_predict_writes(model, onnx, tmp_path, real_data, kind):  # noqa: F811
    path = model if kind == ".pt" else onnx
    files = sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[:2]
    run(path, *files, output=tmp_path)
    with server(path) as (url, _):
        for file in files:
            answer = ask(url, file.read_bytes())
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            assert answer.content == (tmp_path / f"{file.stem}.png").read_bytes()


def test_a_photo_in_tiles_gets_what_fcn_predict_gives_it_in_tiles(model, tmp_path):  # noqa: F811
    file = tmp_path / "a.png"
    file.write_bytes(encoded(noise(500, 830)))
    run(model, file, output=tmp_path / "out", side=480)
    with server(model, "--tile", "480") as (url, _):
        assert ask(url, file.read_bytes()).content == (tmp_path / "out" / "a.png").read_bytes()


def test_a_photo_comes_as_the_body_or_as_a_file_of_a_form(url):
    data = encoded(noise(40, 60))
    expected = ask(url, data).content
    form = httpx.post(f"{url}/predict", files={"file": ("a.png", data)}, data={"more": "text"}, timeout=WAIT)
    assert form.status_code == 200
    assert form.content == expected
    typed = ask(url, data, headers={"content-type": "application/x-www-form-urlencoded"})  # curl's own
    assert typed.content == expected


def test_json_has_each_class_with_its_share_and_how_sure_the_net_is(url, net):  # noqa: F811
    image = noise(40, 60)
    answer = ask(url, encoded(image), params={"format": "json"}).json()
    with torch.inference_mode():
        odds = net(torch.from_numpy(image).permute(2, 0, 1)[None])[0].double().exp()
    probability, prediction = (odds / odds.sum(0)).max(0)
    assert (answer["width"], answer["height"]) == (60, 40)
    assert answer["model"] == {"name": "fcn8s.pt", "backbone": "mobilenet_v1", "stride": 8}
    colours = ["#000000", "#800000", "#008000"]
    for index, (row, name) in enumerate(zip(answer["classes"], CLASSES, strict=True)):
        there = prediction == index
        assert (row["index"], row["name"], row["colour"]) == (index, name, colours[index])
        assert row["share"] == pytest.approx(there.double().mean().item())
        assert row["confidence"] == pytest.approx(probability[there].mean().item(), abs=0.5 / 255)
    assert sum(row["share"] for row in answer["classes"]) == pytest.approx(1)


def test_layers_are_the_photo_the_prediction_and_the_confidence_at_one_size(url, net):  # noqa: F811
    image = noise(40, 60)
    answer = ask(url, encoded(image), params={"format": "layers"}).json()
    photo, prediction, confidence = (
        base64.b64decode(answer[name]) for name in ("photo", "prediction", "confidence")
    )
    assert prediction == ask(url, encoded(image)).content
    with torch.inference_mode():
        sure = net(torch.from_numpy(image).permute(2, 0, 1)[None])[0].softmax(0).amax(0)
    with Image.open(io.BytesIO(confidence)) as grey:
        assert grey.mode == "L"
        np.testing.assert_allclose(np.array(grey), 255 * sure.numpy(), atol=0.51)
    with Image.open(io.BytesIO(photo)) as jpeg:
        assert (jpeg.format, jpeg.size) == ("JPEG", (60, 40))
        assert np.abs(np.array(jpeg).astype(int) - image).mean() < 12


def test_a_class_that_is_nowhere_has_no_confidence():
    def score(image: np.ndarray) -> np.ndarray:
        return np.stack([np.zeros(image.shape[1:], np.float32), np.full(image.shape[1:], -9, np.float32)])

    only = Net(score, ["ground", "tree"], {}, lambda: Overlap(8, 8))
    found = described(segment(only, Image.new("RGB", (5, 4)), 100, "a", lambda: None), only.classes)
    assert [(row["share"], row["confidence"]) for row in found["classes"]] == [(1.0, 1.0), (0.0, None)]


def test_health_says_which_model_is_served(url):
    assert httpx.get(f"{url}/health", timeout=WAIT).json() == {
        "status": "ok",
        "model": {"name": "fcn8s.pt", "backbone": "mobilenet_v1", "stride": 8, "classes": CLASSES},
        "requests": 0,
    }


# --- photos as they come


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("text", 415, ["no image that can be read", "JPEG"]),
        ("cut JPEG", 400, ["cannot be read as an image", "truncated"]),
        ("16-bit PNG", 415, ["grey of more than 8 bits", "save it with 8"]),
        ("empty", 400, ["no photo came"]),
        ("empty form", 400, ["no photo came", "`file` of a form"]),
        ("bomb", 413, ["more than", "pixels"]),
        ("large", 413, ["more than 1000000 bytes"]),
    ],
)
def test_what_is_no_photo_to_work_on_is_refused_in_a_sentence(url, kind, status, words):
    whole = encoded(noise(200, 200), "JPEG", quality=95)
    data = {
        "text": b"no photo at all",
        "cut JPEG": whole[: len(whole) // 2],
        "16-bit PNG": encoded(np.zeros((4, 4), np.uint16)),
        "empty": b"",
        "bomb": encoded(Image.new("1", (photos.MAX_PIXELS // 4000 + 1, 4000))),
        "large": bytes(1_000_001),
    }
    if kind == "empty form":
        refused(httpx.post(f"{url}/predict", files={"file": ("a.png", b"")}, timeout=WAIT), status, *words)
    else:
        refused(ask(url, data[kind]), status, *words)
    assert httpx.get(f"{url}/health", timeout=WAIT).json()["requests"] == 0


def test_a_moving_picture_is_seen_by_its_first_frame(url):
    first, second = Image.fromarray(noise(40, 60, 1)), Image.fromarray(noise(40, 60, 2))
    moving = encoded(first.quantize(64), "GIF", save_all=True, append_images=[second.quantize(64)])
    with Image.open(io.BytesIO(moving)) as gif:
        assert gif.n_frames == 2
        still = encoded(gif.convert("RGB"))
    assert ask(url, moving).content == ask(url, still).content


def test_a_photo_lies_as_viewers_show_it(url):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turned to the right
    turned = ask(url, encoded(noise(40, 60), exif=exif)).content
    assert indices(turned).shape == (60, 40)
    assert turned == ask(url, encoded(np.rot90(noise(40, 60), -1))).content


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (97, 64)])
def test_a_photo_of_any_size_is_answered(url, size):
    assert indices(ask(url, encoded(noise(*size))).content).shape == size


# --- bounds


def test_a_body_of_unsaid_length_is_counted_while_it_is_read(url):
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10**9:
            sent += 2**16
            yield bytes(2**16)

    address = url.removeprefix("http://")
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as wire:
        wire.sendall(
            f"POST /predict HTTP/1.1\r\nHost: {address}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for part in endless():
            wire.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            wire.settimeout(0.01)
            try:
                answer = wire.recv(2**16)
                break
            except TimeoutError:
                wire.settimeout(WAIT)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 2**24  # bytes; far fewer than there would have been


def test_a_length_that_is_said_to_be_too_large_is_refused_before_it_comes(url):
    address = url.removeprefix("http://")
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as wire:
        wire.sendall(
            f"POST /predict HTTP/1.1\r\nHost: {address}\r\nContent-Length: {10**12}\r\n\r\n".encode()
        )
        assert wire.recv(2**16).startswith(b"HTTP/1.1 413 ")


def test_a_photo_that_does_not_arrive_is_given_up_and_leaves_its_place(model):  # noqa: F811
    with server(model, "--timeout", "1", "--waiting", "0") as (url, _):
        address = url.removeprefix("http://")
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=WAIT) as wire:
            wire.sendall(
                f"POST /predict HTTP/1.1\r\nHost: {address}\r\nContent-Length: 100\r\n\r\nx".encode()
            )
            assert wire.recv(2**16).startswith(b"HTTP/1.1 408 ")
        data = encoded(noise(40, 60))
        refused(ask(url, b"text"), 415)  # there is room again
        assert ask(url, data).status_code == 200


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """A net that takes seconds for a photo of a megapixel."""
    options = {"num_classes": 3, "backbone": "vgg16", "padding": "tight", "width": 0.5, "fc6_kernel": 3}
    path = tmp_path_factory.mktemp("slow") / "slow.pt"
    return save_model(path, FCN(**options), options)


def test_more_photos_than_may_wait_are_told_to_come_again_and_the_others_are_done(slow):
    data = encoded(noise(900, 1200))
    with server(slow, "--waiting", "1") as (url, _):
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(url, data))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses.count(200) >= 2
        assert statuses.count(200) + statuses.count(503) == 5
        assert 503 in statuses
        for answer in answers:
            if answer.status_code == 503:
                refused(answer, 503, "all that may wait", "send it again")
                assert int(answer.headers["retry-after"]) >= 1
        assert len({answer.content for answer in answers if answer.status_code == 200}) == 1
        assert httpx.get(f"{url}/health", timeout=WAIT).json()["requests"] == 0


def test_work_that_takes_too_long_is_given_up_at_the_next_tile_and_leaves_its_place(slow):
    with server(slow, "--timeout", "1", "--waiting", "0", "--tile", "640") as (url, _):
        start = time.monotonic()
        refused(ask(url, encoded(noise(3000, 4000), "JPEG")), 504, "within 1 seconds", "smaller photo")
        assert time.monotonic() - start < 20  # all tiles would take minutes
        while httpx.get(f"{url}/health", timeout=WAIT).json()["requests"]:
            assert time.monotonic() - start < WAIT
            time.sleep(0.1)


def test_a_damaged_model_is_said_to_be_so(net, tmp_path):  # noqa: F811
    damaged = FCN(**OPTIONS)
    damaged.load_state_dict(net.state_dict())
    with torch.no_grad():
        damaged.score_fr.bias[1] = torch.nan
    with server(save_model(tmp_path / "nan.pt", damaged, OPTIONS)) as (url, _):
        refused(ask(url, encoded(noise(40, 60))), 500, "not finite", "weights are damaged")


# --- who may ask


def test_a_name_that_another_site_has_pointed_here_is_refused(url):
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1.evil.example"):
        refused(
            httpx.get(f"{url}/health", headers={"host": host}, timeout=WAIT), 400, "ask for it by its address"
        )
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8000", "192.168.0.7", socket.gethostname()):
        assert httpx.get(f"{url}/health", headers={"host": host}, timeout=WAIT).status_code == 200, host


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_origin_is_refused(url, origin):
    refused(ask(url, encoded(noise(4, 4)), headers={"origin": origin}), 403, origin)


def test_browsers_are_told_to_ask_no_other_host_and_no_site_to_frame_it(url):
    for path in ("/", "/health", "/none"):
        headers = httpx.get(f"{url}{path}", timeout=WAIT).headers
        rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["frame-ancestors"] == "'none'"
        assert all("http" not in value and "unsafe" not in value for value in rules.values())
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_what_there_is_not_is_said_in_json(url):
    refused(httpx.get(f"{url}/docs", timeout=WAIT), 404, "Not Found")
    refused(httpx.get(f"{url}/predict", timeout=WAIT), 405, "Not Allowed")
    refused(
        ask(url, encoded(noise(4, 4)), params={"format": "gif"}), 400, "'png', 'json' or 'layers'", "serve.md"
    )


# --- the command


@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_ends_it_quietly_even_if_it_is_at_work(slow, busy):
    with server(slow) as (url, process):
        if busy:
            photo = encoded(noise(1500, 1500), "JPEG")

            def unanswered() -> None:
                with pytest.raises(httpx.HTTPError):
                    ask(url, photo)

            asking = threading.Thread(target=unanswered)
            asking.start()
            while not httpx.get(f"{url}/health", timeout=WAIT).json()["requests"]:
                time.sleep(0.05)
            time.sleep(0.5)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT)
        assert (process.returncode, out, err) == (0, "", "")
        assert time.monotonic() - start < 15
        if busy:
            asking.join()


def test_a_port_in_use_is_one_message_and_exit_code_2(model):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "pipeline.cli.main", "serve", str(model), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: cannot listen on 127.0.0.1, port {port}: Address already in use; try another --port or --host\n"
    )


def test_a_host_or_model_that_is_not_there_is_one_message_and_exit_code_2(model, tmp_path):  # noqa: F811
    for path, host, words in (
        (model, "no.such.host.invalid", "cannot listen on no.such.host.invalid"),
        (tmp_path / "none.pt", "127.0.0.1", "none.pt is missing"),
    ):
        command = [
            sys.executable,
            "-m",
            "pipeline.cli.main",
            "serve",
            str(path),
            "--port",
            "0",
            "--host",
            host,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert words in done.stderr


def test_it_listens_to_this_machine_alone_unless_told_otherwise_which_it_warns_of(model):  # noqa: F811
    with server(model) as (url, _):
        assert url.startswith("http://127.0.0.1:")
    with server(model, "--host", "0.0.0.0") as (_, process):
        assert process.stdout.readline().startswith("warning: whoever reaches this machine can use it")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--port=70000", "no port"),
        ("--waiting=-1", "whole number from 0"),
        ("--max-mb=0", "whole number from 1"),
    ],
)
def test_a_number_out_of_range_is_refused(capsys, option, words):
    with pytest.raises(SystemExit):
        parser().parse_args(["serve", "a.pt", option])
    assert words in capsys.readouterr().err


def test_the_page_is_in_the_wheel_beside_the_module(root):
    """hatchling takes every file of a package; it is a git-ignored one that it leaves out."""
    page = root / "pipeline" / "serve.html"
    done = subprocess.run(["git", "check-ignore", str(page)], cwd=root, check=False, capture_output=True)
    assert done.returncode == 1
    assert page.stat().st_size < 2**16


# --- the page


@needs_browser
def test_a_person_chooses_a_photo_and_sees_what_the_net_sees(url, tmp_path):
    photo = tmp_path / "two squares.png"
    image = noise(120, 160)
    photo.write_bytes(encoded(image))
    expected = ask(url, photo.read_bytes(), params={"format": "json"}).json()["classes"]
    shown = sorted((row for row in expected if row["share"]), key=lambda row: -row["share"])
    with browser(tmp_path / "profile") as driver:
        driver.get(url)
        wait_for(driver, lambda d: "fcn8s.pt: mobilenet_v1, stride 8" in d.find_element(By.ID, "model").text)
        driver.find_element(By.ID, "file").send_keys(str(photo))
        wait_for(driver, lambda d: d.find_element(By.ID, "result").is_displayed())
        assert driver.find_element(By.ID, "caption").text.startswith("two squares.png, 160 ")
        rows = driver.find_elements(By.CSS_SELECTOR, "#legend button")
        assert [row.find_element(By.CLASS_NAME, "name").text for row in rows] == [
            row["name"] for row in shown
        ]
        assert [row.find_element(By.CLASS_NAME, "share").text for row in rows] == [
            f"{100 * row['share']:.1f} %" for row in shown
        ]
        prediction = indices(ask(url, photo.read_bytes()).content)
        alpha = round(2.55 * 60)
        layer = pixels_of(driver)
        assert layer.shape == (120, 160, 4)
        assert (layer[prediction == 0, 3] == 0).all()
        assert (layer[prediction != 0, 3] == alpha).all()
        for row in shown:  # what is nearly transparent is stored a little rounded
            colour = voc_palette()[row["index"]]
            found = layer[(prediction == row["index"]) & (layer[..., 3] > 0), :3]
            assert np.abs(found.astype(int) - colour).max(initial=0) <= 2
        assert complaints(driver) == []
        assert hosts_asked(driver) == {url.removeprefix("http://")}


def pixels_of(driver) -> np.ndarray:
    """(H, W, 4) RGBA of the layer over the photo."""
    found = driver.execute_script(
        "const c = document.getElementById('layer');"
        "return [c.height, c.width, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]"
    )
    return np.array(found[2], np.uint8).reshape(found[0], found[1], 4)


@needs_browser
def test_the_page_needs_no_mouse_and_keeps_the_last_picture_when_a_file_is_refused(url, tmp_path):
    photo, text = tmp_path / "a.png", tmp_path / "a.txt"
    photo.write_bytes(encoded(noise(60, 80)))
    text.write_text("no photo")
    prediction = indices(ask(url, photo.read_bytes()).content)
    with browser(tmp_path / "profile", width=400) as driver:
        driver.get(url)
        driver.find_element(By.ID, "file").send_keys(str(photo))
        wait_for(driver, lambda d: d.find_element(By.ID, "result").is_displayed())
        seen = []
        for _ in range(12):
            ActionChains(driver).send_keys(Keys.TAB).perform()
            active = driver.switch_to.active_element
            seen.append(
                active.get_attribute("id") or active.get_attribute("value") or active.text.split("\n")[0]
            )
        for name in ("file", "prediction", "opacity", "download", *CLASSES):
            assert name in seen
        radio = driver.find_element(By.CSS_SELECTOR, "[value=prediction]")
        radio.send_keys(Keys.ARROW_LEFT)
        assert pixels_of(driver)[..., 3].max() == 0  # the photo alone
        driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        driver.find_element(By.ID, "opacity").send_keys(Keys.END)
        assert set(np.unique(pixels_of(driver)[..., 3])) == {0, 255}
        button = driver.find_element(By.CSS_SELECTOR, "#legend button[data-index='1']")
        button.send_keys(Keys.ENTER)
        assert button.get_attribute("aria-pressed") == "true"
        layer = pixels_of(driver)
        np.testing.assert_array_equal(layer[..., 0] == 128, prediction == 1)
        assert set(layer[prediction != 1][:, 3]) == {190}
        assert complaints(driver) == []
        driver.find_element(By.ID, "file").send_keys(str(text))
        said = wait_for(driver, lambda d: d.find_element(By.ID, "error").text)
        assert said == "the photo is no image that can be read; known: BMP, GIF, JPEG, PNG, TIFF, WEBP"
        assert driver.find_element(By.ID, "caption").text.startswith("a.png")
        width = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1]


@needs_browser
def test_a_photo_is_dropped_or_pasted_and_its_png_is_what_the_api_gives(url, tmp_path):
    data = encoded(noise(50, 70))
    with browser(tmp_path / "profile") as driver:
        driver.get(url)
        for event, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
            driver.execute_script(
                """const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0));
                const given = new DataTransfer();
                given.items.add(new File([bytes], arguments[1] + "ed.png", {type: "image/png"}));
                const kind = arguments[1] === "paste" ? ClipboardEvent : DragEvent;
                const options = {[arguments[2]]: given, bubbles: true, cancelable: true};
                document.dispatchEvent(new kind(arguments[1], options));
                """,
                base64.b64encode(data).decode(),
                event,
                holder,
            )
            wait_for(
                driver,
                lambda d, event=event: d.find_element(By.ID, "caption").text.startswith(f"{event}ed.png"),
            )
        link = driver.find_element(By.ID, "download")
        assert link.get_attribute("download") == "droped.png"
        driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "saved")}
        )
        link.click()
        saved = wait_for(driver, lambda _: list((tmp_path / "saved").glob("*.png")))
        assert saved[0].read_bytes() == ask(url, data).content
        assert complaints(driver) == []


def test_the_options_of_the_model_reach_the_page(model):  # noqa: F811
    assert load_net(model).options["backbone"] == "mobilenet_v1"
