"""Predictions from Python."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_ft.errors import UserError
from lit_ft.model.calibration import Calibration
from lit_ft.model.module import FineTuneModule
from lit_ft.model.prediction import head_inputs


def a_photo(size=(40, 30), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return FineTuneModule(
        "mnist_cnn", weights=None, classes=["cat", "dog", "owl"], input={"channels": 3, "resize": 32}
    ).eval()


def expected(model, image):
    """Probabilities by hand, of an image of Pillow."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    with torch.no_grad():
        return model(model.input_spec.eval_transform()(pixels).unsqueeze(0)).softmax(dim=1)[0]


def probabilities(predictions):
    return torch.tensor([[dict(one.top_k)[name] for name in ("cat", "dog", "owl")] for one in predictions])


def test_pictures_of_all_kinds_are_predicted_as_in_validation(model, tmp_path):
    photo = a_photo()
    array = np.array(photo)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    photo.save(path := tmp_path / "a.png")
    wanted = expected(model, photo)
    kinds = [str(path), path, photo, array, array / 255, tensor, tensor / 255, array[None], tensor[None], iter([photo])]
    for kind in kinds:
        (one,) = model.predict(kind, top_k=3)
        torch.testing.assert_close(probabilities([one])[0], wanted, atol=1e-5, rtol=1e-4)
        assert (one.label, one.probability) == one.top_k[0]
        assert one.probability == max(p for _, p in one.top_k)
    assert model.predict(path)[0].path == str(path)
    assert model.predict(photo)[0].path == ""


@pytest.mark.parametrize("as_file", [True, False])
def test_photo_of_more_bits_than_the_model_takes_is_predicted_with_a_warning(model, tmp_path, as_file):
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    deep.save(tmp_path / "deep.png")
    with pytest.warns(UserWarning, match="pictures: some have more than 8 bits of three colours, and are reduced"):
        (found,) = model.predict(tmp_path / "deep.png" if as_file else deep)
    assert found.label == model.predict(np.array(deep, dtype=np.float32) / 65535)[0].label


def test_order_is_that_of_the_pictures_in_batches_of_any_size(model, tmp_path):
    photos = [a_photo((20 + 7 * seed, 30), seed) for seed in range(5)]
    for i, photo in enumerate(photos):
        photo.save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    wanted = torch.stack([expected(model, photo) for photo in photos])
    with pytest.warns(UserWarning, match="are no images"):
        found = model.predict(tmp_path, top_k=3, batch_size=2)
    torch.testing.assert_close(probabilities(found), wanted, atol=1e-5, rtol=1e-4)
    assert [Path(one.path).name for one in found] == [f"{i}.png" for i in range(5)]
    mixed = model.predict([tmp_path / "3.png", photos[1], np.array(photos[4])], top_k=3)
    torch.testing.assert_close(probabilities(mixed), wanted[[3, 1, 4]], atol=1e-5, rtol=1e-4)
    assert model.predict([]) == []


def test_photos_are_turned_and_their_transparent_parts_white(model, tmp_path):
    photo, exif = a_photo(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo.save(tmp_path / "turned.png", exif=exif)
    opened = Image.open(tmp_path / "turned.png")
    wanted = expected(model, photo.transpose(Image.Transpose.ROTATE_270))
    for kind in (tmp_path / "turned.png", opened):
        torch.testing.assert_close(probabilities(model.predict(kind, top_k=3))[0], wanted, atol=1e-5, rtol=1e-4)
    assert opened.size == photo.size  # the user's image is as it was
    clear = np.dstack([np.array(photo), np.zeros((30, 40), np.uint8)])
    white = expected(model, Image.new("RGB", photo.size, "white"))
    torch.testing.assert_close(probabilities(model.predict(clear, top_k=3))[0], white, atol=1e-5, rtol=1e-4)
    grey = np.array(photo.convert("L"))
    for kind in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        torch.testing.assert_close(
            probabilities(model.predict(kind, top_k=3))[0], expected(model, photo.convert("L")), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("pictures", "text"),
    [
        (np.zeros((8, 8, 3), np.int64), "pixels are int64; give uint8, or float from 0 to 1"),
        (np.full((8, 8, 3), 200.0), "pixels are float from 200 to 200; give uint8, or float from 0 to 1"),
        (torch.full((3, 8, 8), torch.nan), "pixels are float from nan to nan"),
        (np.zeros((3, 8, 9), np.uint8), r"has the channels last, got the shape \(3, 8, 9\); transpose it"),
        (torch.zeros(3), r"expected a tensor \(C, H, W\), or a batch, got the shape \(3,\)"),
        ("nowhere.jpg", "nowhere.jpg does not exist"),
        ([3], "int is no image"),
        (b"\xff\xd8", "bytes is no image"),
        ({"a.jpg": 1}, "dict is no image"),
        ("x" * 5000, r"(cannot be read|x does not exist)"),  # the latter from Python 3.14 on
        (torch.zeros(8, 8, 3), r"an image of 8 channels; a tensor is \(C, H, W\)"),
        (np.zeros((5, 8, 8), np.uint8), "an image of 8 channels"),
        (np.zeros((0, 8, 3)), "an image of 0 x 8 pixels is empty"),
        (Image.new("L", (0, 0)), "an image of 0 x 0 pixels is empty"),
        (np.full((8, 8), None), "pixels are object"),
    ],
)
def test_what_is_no_picture_is_refused(model, tmp_path, monkeypatch, pictures, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^pictures: .*{text}"):
        model.predict(pictures)


def test_image_of_pillow_that_cannot_be_read_is_refused(model, tmp_path):
    a_photo().save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    for image in (Image.open(tmp_path / "a.png"), Image.fromarray(np.full((8, 8), 300, np.float32))):
        with pytest.raises(UserError, match="an image of Pillow: cannot be read as an image"):
            model.predict(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_coloured_pixels_are_predicted_together(channels):
    model = FineTuneModule("mnist_cnn", weights=None, classes=2, input={"channels": channels}).eval()
    photo = np.array(a_photo())
    pictures = [photo, photo[..., 0], torch.from_numpy(photo.copy()).permute(2, 0, 1), a_photo()]
    alone = [model.predict(picture)[0].probability for picture in pictures]
    assert [one.probability for one in model.predict(pictures)] == pytest.approx(alone, abs=1e-5)
    other_order = photo[..., 0].astype(">f4") / np.float32(255)
    assert model.predict(other_order)[0].probability == pytest.approx(alone[1], abs=1e-5)


def test_fourth_channel_is_that_of_a_network_that_takes_four():
    model = FineTuneModule("mnist_cnn", weights=None, classes=2, input={"channels": 4}).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 4), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    with torch.no_grad():
        wanted = model(tensor[None]).softmax(dim=1).max().item()
    assert [model.predict(kind)[0].probability for kind in (pixels, tensor)] == pytest.approx([wanted] * 2, abs=1e-5)


def test_damaged_file_and_options_out_of_range_are_refused(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"a\.png: cannot be read as an image"):
        model.predict(tmp_path / "a.png")
    for option in ("top_k", "batch_size"):
        with pytest.raises(UserError, match=f"{option}: must be at least 1, got 0"):
            model.predict(a_photo(), **{option: 0})


def test_labels_and_numbers_have_their_names():
    torch.manual_seed(0)
    options = {"weights": None, "classes": ["sun", "sea"]}
    labels = FineTuneModule("mnist_cnn", task="multilabel", **options).eval()
    with torch.no_grad():
        labels.head[-1].bias.copy_(torch.tensor([9.0, -9.0]))
    (one,) = labels.predict(a_photo(), top_k=5)
    assert one.labels == ["sun"]
    assert [name for name, _ in one.top_k] == ["sun", "sea"]
    assert one.label == ""
    numbers = FineTuneModule("mnist_cnn", task="regression", **options).eval()
    (one,) = numbers.predict(a_photo())
    image = numbers.input_spec.geometry()(torch.from_numpy(np.array(a_photo())).permute(2, 0, 1))
    with torch.no_grad():
        wanted = numbers.task.predict(numbers(image[None]))[0]
    assert one.values == pytest.approx(dict(zip(("sun", "sea"), wanted.tolist(), strict=True)))
    assert one.top_k == []


def test_dropout_does_not_act_and_the_mode_stays():
    torch.manual_seed(0)
    model = FineTuneModule("mnist_cnn", weights=None, classes=3, head={"dropout": 0.9}).train()
    first, second = model.predict([a_photo(), a_photo()])
    assert first == second
    assert model.training


def test_crops_are_the_centre_and_the_corners_of_the_whole_photo(model):
    photo = a_photo((60, 40), 3)
    found = probabilities(model.predict([photo, a_photo()], top_k=3, tta="crops"))
    resized = model.input_spec.geometry().transforms[0](torch.from_numpy(np.array(photo)).permute(2, 0, 1))
    assert resized.shape[1:] == (32, 48)
    parts = [resized[:, y : y + 28, x : x + 28] for y, x in ((2, 10), (0, 0), (0, 20), (4, 0), (4, 20))]
    with torch.no_grad():
        wanted = model(torch.stack(parts)).softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], expected(model, photo), atol=1e-4)


def test_views_that_cannot_be_are_refused(model):
    with pytest.raises(UserError, match=r"tta.*flip"):
        model.predict(a_photo(), tta="flop")
    whole = FineTuneModule("mnist_cnn", weights=None, classes=2, input={"resize": 28}).eval()
    with pytest.raises(UserError, match="the whole enters this network; give flip"):
        whole.predict(a_photo(), tta="crops")


def test_image_is_judged_by_its_first_view(model):
    features = []
    with head_inputs(model.head) as seen:
        model.predict(a_photo())
        features.append(seen[0])
    model.calibration = Calibration(references=features[0].half(), farthest=1e-3)
    assert model.predict(a_photo(), tta="flip")[0].unlike_training is False
    assert model.predict(a_photo(seed=5), tta="flip")[0].unlike_training is True
    model.calibration = None
