import time
from io import BytesIO
from queue import Queue
from types import SimpleNamespace

import numpy as np
import pytest
from band_files import dicom, numbers
from PIL import Image

from lit_ft.data.bands.reader import BandReader
from lit_ft.model.prediction import Prediction
from lit_ft.serving import photo_api
from lit_ft.serving.answers import Refusal
from lit_ft.serving.photo_api import GreedyLoop, PhotoAPI, read_image
from lit_ft.serving.uploads import Upload


def png(width=4, height=3, value=0):
    file = BytesIO()
    Image.new("RGB", (width, height), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


class Brightness:
    """A model that predicts the red of each image, and notes how many it gets at once."""

    def __init__(self, reader=None):
        self.batches = []
        self.reader = reader

    def predict_images(self, images, top_k, batch_size):
        self.batches.append((len(images), top_k, batch_size))
        return [Prediction(str(int(image[0, 0, 0])), 1.0, [(str(k), 0.1) for k in range(top_k)]) for _, image in images]


@pytest.fixture
def api(tmp_path):
    api = PhotoAPI(tmp_path / "best.ckpt", "cpu", 8)
    api.model = Brightness()
    return api


def test_each_upload_of_a_batch_has_its_own_answer_in_order(api):
    uploads = [Upload(png(value=7), 1), Upload(b"text"), Upload(png(value=9), 3), Upload(b""), Upload(png(value=8), 2)]
    first, text, second, empty, third = api.predict(uploads)
    assert [(one.label, len(one.top_k)) for one in (first, second, third)] == [("7", 1), ("9", 3), ("8", 2)]
    assert text == Refusal(422, "the image cannot be read (its format is not known)")
    assert empty.status == 422
    assert api.model.batches == [(3, 3, 3)]


def test_batch_without_an_image_asks_the_model_for_nothing(api):
    assert [one.status for one in api.predict([Upload(b"a"), Upload(b"b")])] == [422, 422]
    assert api.model.batches == []


def test_large_images_of_a_batch_are_predicted_before_more_are_decoded(api, monkeypatch):
    monkeypatch.setattr(photo_api, "MAX_MEGAPIXELS", 25 / 1e6)
    sizes = [(4, 3), (5, 4), (2, 2), (5, 5), (1, 1)]  # 12 + 20 and 4 + 25 pixels are too many to wait for more
    answers = api.predict([Upload(png(*size, value=i), 1) for i, size in enumerate(sizes)])
    assert [one.label for one in answers] == ["0", "1", "2", "3", "4"]
    assert [count for count, _, _ in api.model.batches] == [2, 2, 1]


def test_image_of_too_many_pixels_is_refused_as_too_large(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow refuses twice as many
    assert read_image(png(10, 10)).shape == (3, 10, 10)
    assert read_image(png(10, 11)) == Refusal(413, "the image has more than 80 megapixels")


def test_raw_values_are_read_of_any_kind_of_upload(api, monkeypatch):
    api.model = Brightness(BandReader((2,)))
    file = BytesIO()
    np.save(file, numbers((6, 5, 4), np.uint8) + 1000 * np.arange(4, dtype=np.uint16))
    scan = dicom(np.full((3, 4), 777, np.uint16))
    found, one, broken = api.predict([Upload(file.getvalue()), Upload(scan), Upload(file.getvalue()[:90])])
    assert 1000 <= int(found.label) < 1256
    assert one == Refusal(422, "the image cannot be read (it has 1 band, and band 2 is asked for)")
    assert broken.status == 422
    monkeypatch.setattr(photo_api, "MAX_MEGAPIXELS", 50 / 1e6)  # of which an image has 30
    assert len(api.predict([Upload(file.getvalue())] * 4)) == 4
    assert [count for count, _, _ in api.model.batches] == [1, 2, 2]


def test_image_of_sixteen_bits_is_read_like_a_file():
    file = BytesIO()
    Image.fromarray(np.array([[0, 65535, 256]], dtype=np.uint16)).save(file, "PNG")
    assert read_image(file.getvalue())[0].tolist() == [[0, 255, 1]]


def test_uploads_of_more_bits_than_the_model_takes_are_warned_of_once(api, capsys):
    file = BytesIO()
    Image.fromarray(np.full((3, 4), 777, np.uint16)).save(file, "PNG")
    answers = api.predict([Upload(file.getvalue()), Upload(png(value=7)), Upload(file.getvalue())])
    assert [one.label for one in answers] == ["3", "7", "3"]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("lit-ft: warning: pictures: some have more than 8 bits of three colours, and are reduced")


def test_upload_to_explain_is_refused_where_there_is_no_heat_map(api):
    plain, to_explain, text = api.predict(
        [Upload(png(value=7)), Upload(png(), explain=True), Upload(b"a", explain=True)]
    )
    assert plain.label == "7"
    assert (to_explain.status, to_explain.reason.partition(";")[0]) == (422, "explain: this server has no heat map")
    assert text == Refusal(422, "the image cannot be read (its format is not known)")


def take(queue, loop=None, most=3, timeout=60):
    api = SimpleNamespace(max_batch_size=most, request_timeout=timeout)
    return (loop or GreedyLoop()).get_batch_requests(api, queue, None)


def put(queue, name, explain=False, seconds_ago=0):
    queue.put((0, name, time.monotonic() - seconds_ago, Upload(b"", explain=explain)))


def names(found):
    """The names of a batch, and of what came too long ago."""
    return [name for _, name, _ in found[0]], [name for _, name in found[1]]


def test_batch_is_all_that_waits_up_to_the_largest():
    queue = Queue()
    for number in range(5):
        put(queue, f"r{number}")
    assert take(queue) == ([(0, name, Upload(b"")) for name in ("r0", "r1", "r2")], [])
    assert names(take(queue)) == (["r3", "r4"], [])


def test_request_that_nobody_waits_for_any_more_is_left_out():
    queue = Queue()
    put(queue, "late", seconds_ago=90)
    put(queue, "new", seconds_ago=30)
    assert names(take(queue)) == (["new"], ["late"])


def test_what_is_to_be_explained_goes_alone_between_the_batches_of_others():
    queue, loop = Queue(), GreedyLoop()
    put(queue, "e0", explain=True)
    assert names(take(queue, loop)) == (["e0"], [])
    for name in ("p0", "e1", "p1", "e2", "e3", "p2", "p3", "p4"):
        put(queue, name, explain=name[0] == "e", seconds_ago=90 if name == "e3" else 0)
    assert names(take(queue, loop)) == (["p0", "p1", "p2"], [])
    assert names(take(queue, loop)) == (["e1"], [])
    put(queue, "p5")
    assert names(take(queue, loop)) == (["p3", "p4", "p5"], [])
    assert [names(take(queue, loop)) for _ in range(2)] == [(["e2"], []), ([], ["e3"])]
