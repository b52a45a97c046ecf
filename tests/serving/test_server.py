"""The server as a client sees it: over HTTP, in processes of its own."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from served import Served, descendants, left_of

import lit_ft
from lit_ft.data.images.decode import decode
from lit_ft.data.images.loss import REDUCED
from lit_ft.errors import for_command_line
from lit_ft.evaluation.explanations.drawing import draw_evidence, draw_small
from lit_ft.model.module import FineTuneModule

CLASSES = ["cat", "<b>dog", "owl"]


def encode(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(seed=0, size=(60, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def half_dark():
    """A photo whose prediction differs upright and turned."""
    image = Image.new("RGB", (60, 60), "white")
    image.paste("black", (0, 0, 60, 30))
    return image


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    torch.manual_seed(0)
    module = FineTuneModule("mnist_cnn", weights="MNIST", classes=CLASSES)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    path = tmp_path_factory.mktemp("model") / "best.ckpt"
    torch.save({**content, "pytorch-lightning_version": L.__version__}, path)
    return path


@pytest.fixture(scope="module")
def model(best):
    return lit_ft.load(best, "cpu")


@pytest.fixture(scope="module")
def server(best, tmp_path_factory):
    """One server for all tests, which ends as by Ctrl-C, with no traceback and no process left."""
    with Served(best, tmp_path_factory.mktemp("server"), "--max_mb", "0.1", "--max_batch", "4") as served:
        assert len(served.processes) >= 4
        yield served
        assert served.end() == (0, {})
    line, *further = served.printed.splitlines()
    assert line == f"Serving on http://127.0.0.1:{served.port} (Ctrl-C ends it)"
    assert further in ([], [f"lit-ft: warning: {for_command_line(REDUCED)}"])  # of deep.png, once


EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by a quarter
PHOTOS = {
    "a.jpg": lambda: encode(photo(), "JPEG"),
    "turned.jpg": lambda: encode(half_dark(), "JPEG", exif=EXIF),
    "cmyk.jpg": lambda: encode(photo().convert("CMYK"), "JPEG"),
    "grey.png": lambda: encode(photo().convert("L"), "PNG"),
    "deep.png": lambda: encode(Image.fromarray(np.arange(0, 65536, 16, np.uint16).reshape(64, 64)), "PNG"),
    "moving.gif": lambda: encode(photo(), "GIF", save_all=True, append_images=[photo(1), photo(2)]),
    "clear.png": lambda: encode(photo().convert("RGBA").rotate(45), "PNG"),
    "long.png": lambda: encode(Image.new("RGB", (20_000, 2), "red"), "PNG"),
    "dot.webp": lambda: encode(photo(size=(1, 1)), "WEBP"),
}


@pytest.mark.filterwarnings("ignore:pictures. some have more than 8 bits")  # which is told of deep.png
@pytest.mark.parametrize("name", PHOTOS)
def test_prediction_is_that_of_the_file(server, model, tmp_path, name):
    content = PHOTOS[name]()
    (tmp_path / name).write_bytes(content)
    (wanted,) = model.predict(tmp_path / name, top_k=2)
    for status, answer in (server.predict(content, "?top_k=2"), server.predict_form(content, query="?top_k=2")):
        assert status == 200
        assert (answer["label"], answer["probability"]) == (wanted.label, pytest.approx(wanted.probability, rel=1e-5))
        assert [row["label"] for row in answer["top_k"]] == [label for label, _ in wanted.top_k]
        assert (answer["unsure"], answer["unlike_training"]) == (wanted.unsure, wanted.unlike_training)


@pytest.mark.parametrize(("query", "count"), [("", 3), ("?top_k=1", 1), ("?top_k=3", 3), ("?top_k=100", 3)])
def test_answer_has_as_many_classes_as_are_asked_for(server, query, count):
    rows = server.predict(PHOTOS["a.jpg"](), query)[1]["top_k"]
    assert len(rows) == count
    assert rows == sorted(rows, key=lambda row: -row["probability"])


@pytest.mark.parametrize("name", ["a.jpg", "turned.jpg", "grey.png", "long.png", "dot.webp"])
def test_heat_map_is_that_of_lit_ft_explain(server, model, tmp_path, name):
    content = PHOTOS[name]()
    (tmp_path / name).write_bytes(content)
    (wanted,) = lit_ft.explain(model, tmp_path / name, methods=["grad_cam"])
    status, answer = server.predict(content, "?top_k=2&explain=true")
    found = answer.pop("explanation")
    assert (status, found["method"], found["target"]) == (200, "grad_cam", wanted.target)
    assert (answer["label"], answer["probability"]) == (wanted.target, pytest.approx(wanted.prediction.probability))
    kind, _, data = found["picture"].partition(",")
    picture = np.asarray(Image.open(BytesIO(base64.b64decode(data))), float)
    drawn = draw_evidence(draw_small(decode(tmp_path / name)), wanted, "grad_cam")
    assert (kind, picture.shape) == ("data:image/jpeg;base64", np.shape(drawn))
    assert np.abs(picture - drawn).mean() < 6  # of JPEG; another map differs by more
    assert server.predict(content, "?top_k=2&explain=false") == server.predict(content, "?top_k=2")


JPEG = PHOTOS["a.jpg"]()
IMAGE = "send one image as multipart/form-data, or its bytes as image/jpeg or application/octet-stream"
REFUSED = {
    "truncated": (JPEG[: len(JPEG) // 2], 422, "the image cannot be read (image file is truncated"),
    "text": (b"no image", 422, "the image cannot be read (its format is not known)"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "the image cannot be read (its format is not known)"),
    "empty": (b"", 400, f"the request has no image; {IMAGE}"),
    "100 megapixels": (encode(Image.new("1", (10_000, 10_000)), "PNG"), 413, "the image has more than 80 megapixels"),
    "large": (b"\xff\xd8\xff" + bytes(100_000), 413, "the upload is larger than 0.1 MB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_malformed_upload_is_refused_with_its_reason(server, name):
    content, status, reason = REFUSED[name]
    explained = server.predict(content, "?explain=true")
    for found, answer in (server.predict(content), server.predict_form(content), explained):
        assert (found, list(answer)) == (status, ["detail"])
        assert answer["detail"].startswith(reason)
    assert server.predict(JPEG)[0] == 200


@pytest.mark.parametrize(
    ("kind", "content", "status", "reason"),
    [
        ("application/json", b"{}", 415, f"application/json is not taken; {IMAGE}"),
        ("application/x-www-form-urlencoded", JPEG, 415, "application/x-www-form-urlencoded is not taken; "),
        ("multipart/form-data", b"", 400, "Missing boundary in multipart."),
        ("multipart/form-data; boundary=x", JPEG, 400, "Invalid multipart data."),
        ("multipart/form-data; boundary=x", b"--x\r\n\xff: \0\r\n", 400, ""),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 400, f"the request has no image; {IMAGE}"),
    ],
)
def test_request_without_an_image_is_refused_with_its_reason(server, kind, content, status, reason):
    found, answer = server.predict(content, kind=kind)
    assert (found, list(answer)) == (status, ["detail"])
    assert answer["detail"].startswith(reason)
    assert "\n" not in answer["detail"]


def test_form_with_two_images_is_refused(server):
    assert server.predict_form(JPEG, JPEG) == (400, {"detail": "Too many files. Maximum number of files is 1."})


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/JPEG; q=1", "application/octet-stream", ""])
def test_kind_of_an_image_is_not_believed_but_read(server, kind):
    assert server.predict(JPEG, kind=kind) == server.predict(JPEG)


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "many", "", "9999999999"])
def test_number_of_classes_out_of_range_is_refused(server, given):
    reason = f"top_k: must be a whole number of at least 1, got {given!r}"
    assert server.predict(JPEG, f"?top_k={given}") == (422, {"detail": reason})


def test_other_word_about_the_heat_map_is_refused_by_the_server(server):
    assert server.predict(JPEG, "?explain=yes") == (422, {"detail": "explain: must be true or false, got 'yes'"})


def test_upload_of_unknown_length_is_refused_once_it_is_too_large(server):
    parts = (bytes(10_000) for _ in range(20))
    assert server.predict(parts) == (413, {"detail": "the upload is larger than 0.1 MB"})


def test_upload_that_breaks_off_leaves_the_server_as_it_was(server):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
    for sent in (head + b"abc", b"no request\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(sent)
    assert server.predict(JPEG)[0] == 200
    server.log.write_text(server.printed.replace("WARNING:  Invalid HTTP request received.\n", ""))


def test_info_has_the_model_and_no_path(server, best):
    status, _, body = server.request("GET", "/info")
    about = json.loads(body)["model"]
    assert status == 200
    assert (about["name"], about["task"], about["classes"]) == ("mnist_cnn", "multiclass", CLASSES)
    assert (about["input"], about["max_mb"]) == ({"size": 28, "channels": 1}, 0.1)
    assert (len(about["version"]), about["explain"]) == (12, "grad_cam")
    assert str(best.parent).encode() not in body


def test_page_is_served_with_its_own_policy(server):
    status, headers, body = server.request("GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'sha256-" in headers["Content-Security-Policy"]
    assert b"Choose photos" in body


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/", 200),
        ("GET", "/predict", 405),
        ("POST", "/info", 405),
        ("GET", "/nothing", 404),
        ("GET", "/docs", 404),  # a page with scripts from elsewhere
        ("GET", "/openapi.json", 404),
        ("POST", "/shutdown", 404),
    ],
)
def test_every_response_has_the_headers_of_safety(server, method, path, status):
    found, headers, body = server.request(method, path)
    assert (found, headers["X-Content-Type-Options"]) == (status, "nosniff")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert headers["Server"] is None
    assert status < 400 or list(json.loads(body)) == ["detail"]


def ask_at_once(server, model, count):
    """Asks for photos at once, each on a connection of its own; each must get its own answer."""
    photos = [photo(seed, (30 + seed % 7, 30)) for seed in range(50)]
    contents = [encode(image, "PNG") for image in photos]
    wanted = [(found.label, found.probability) for found in model.predict(photos)]
    assert len({round(probability, 4) for _, probability in wanted}) > 30
    with ThreadPoolExecutor(count) as pool:
        asked = pool.map(lambda i: server.predict(contents[i % 50], "" if i % 5 else "?explain=true"), range(count))
        answers = list(asked)
    for i, (status, answer) in enumerate(answers):
        assert (status, "explanation" in answer) == (200, i % 5 == 0), answer
        label, probability = wanted[i % 50]
        assert (answer["label"], answer["probability"]) == (label, pytest.approx(probability, rel=1e-5))


def test_requests_at_once_each_get_their_own_answer(server, model):
    ask_at_once(server, model, 60)


@pytest.mark.slow
def test_500_requests_at_once_each_get_their_own_answer(server, model):
    ask_at_once(server, model, 500)


@pytest.mark.slow
def test_interrupt_in_a_terminal_ends_all_processes_without_a_word(best):
    """As a process with everything of its own, such as what watches for semaphores that are left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "lit_ft", "serve", str(best), "--port", port]
    process = subprocess.Popen(
        command, stdout=-1, stderr=-2, text=True, start_new_session=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout.readline() == f"Serving on http://127.0.0.1:{port} (Ctrl-C ends it)\n"
    started = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert (process.communicate(timeout=60)[0], process.returncode) == ("", 0)
    assert left_of(started) == {}


@pytest.mark.slow
def test_process_that_was_killed_is_replaced(best, tmp_path):
    with Served(best, tmp_path) as served:
        (worker,) = [pid for pid, args in served.processes.items() if "multiprocessing.spawn" in args]
        os.kill(worker, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            begun, lost = time.monotonic(), pool.submit(served.predict, JPEG)
            time.sleep(1.5)
            os.kill(worker, signal.SIGKILL)
        reason = "the process that predicts was started again; send the image once more"
        assert lost.result() == (503, {"detail": reason})
        assert time.monotonic() - begun < 30  # not a minute
        assert served.predict(JPEG)[0] == 200
        assert served.end(signal.SIGTERM) == (128 + signal.SIGTERM, {})
