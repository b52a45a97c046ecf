"""Maps on photos: in the right place, of the right target, for any task, and without leaving a trace."""

import sys

import numpy as np
import pytest
import torch
from evidence import centre_detector
from PIL import Image
from small_runs import small_module

import lit_ft
from lit_ft.errors import UserError
from lit_ft.evaluation.explanations import maps
from lit_ft.evaluation.explanations.maps import choose_quick_method, explain, explain_classes, place


def photo(size, box):
    """A black photo of a height and width with a white box: top, left, bottom, right."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[box[0] : box[2], box[1] : box[3]] = 255
    return Image.fromarray(pixels)


def share_inside(found, box, margin=0):
    """The share of the evidence for the target that is within a box, or so many pixels around it."""
    top, left, bottom, right = box
    above = np.clip(found, 0, None)
    inside = above[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]
    return inside.sum() / above.sum()


@pytest.mark.parametrize(
    ("size", "box"),
    [((600, 900), (60, 210, 160, 310)), ((900, 600), (620, 430, 720, 530)), ((560, 560), (20, 440, 120, 540))],
)
@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients"])
def test_bright_patch_of_a_large_photo_lights_up_where_it_is(size, box, method):
    (found,) = explain(centre_detector(), photo(size, box), "white", [method])
    on_photo = found.on_photo(method)
    assert on_photo.shape == size
    assert on_photo.dtype == np.float32
    # A pixel of the network's image is 20 of the photo, and a cell of Grad-CAM's map 40.
    assert share_inside(on_photo, box, 45) > 0.95
    row, column = np.unravel_index(on_photo.argmax(), size)
    assert box[0] - 20 <= row < box[2] + 20
    assert box[1] - 20 <= column < box[3] + 20


def test_what_is_cut_off_has_no_evidence():
    (found,) = explain(centre_detector(), photo((200, 600), (50, 0, 150, 150)), "white")
    assert found.seen == (0.0, 200.0, 200.0, 400.0)
    for method in found.maps:
        on_photo = found.on_photo(method)
        assert not on_photo[:, :200].any()
        assert not on_photo[:, 400:].any()
        assert not np.clip(on_photo, 0, None).any()  # within, all is black


def test_squashed_photo_is_seen_as_a_whole():
    module = centre_detector(input={"fit": "squash"})
    (found,) = explain(module, photo((200, 600), (50, 0, 150, 150)), "white")
    assert found.seen == (0.0, 0.0, 200.0, 600.0)
    assert share_inside(found.on_photo("integrated_gradients"), (50, 0, 150, 150), 25) > 0.95


@pytest.mark.parametrize("size", [(200, 600), (600, 200)])
def test_object_at_the_end_of_a_padded_photo_is_found_there(size):
    box = (50, 0, 150, 100) if size == (200, 600) else (500, 50, 600, 150)
    (found,) = explain(centre_detector(input={"fit": "pad"}), photo(size, box), "white")
    end = 19 * 200 / 9  # 9 rows of 28 are the photo's, 9 of the padding are before and 10 after them
    assert found.seen == ((-200.0, 0.0, end, 600.0) if size == (200, 600) else (0.0, -200.0, 600.0, end))
    on_photo = found.on_photo("integrated_gradients")
    assert on_photo.shape == size
    assert share_inside(on_photo, box, 45) > 0.95


def test_turned_photo_is_explained_upright(tmp_path):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    photo((300, 500), (30, 120, 90, 180)).save(path, exif=exif, quality=95)
    (found,) = explain(centre_detector(), path, "white")
    assert (found.size, found.prediction.path) == ((500, 300), str(path))
    # What is in row r and column c comes to row c and column 300 - r.
    assert share_inside(found.on_photo(), (120, 210, 180, 270), 30) > 0.95


def test_map_of_a_photo_that_was_resized_since_keeps_its_place():
    (found,) = explain(centre_detector(), photo((400, 600), (100, 250, 200, 350)), "white")
    small = found.on_photo("grad_cam", (100, 150))
    assert small.shape == (100, 150)
    assert share_inside(small, (25, 62, 50, 88), 9) > 0.95


def test_a_map_is_laid_over_a_part_by_the_middles_of_its_pixels():
    across = place(np.array([[0.0, 4.0]], np.float32), (1.0, 2.0, 3.0, 10.0), (4, 12), outside=-1.0)
    assert across[0].tolist() == [-1.0] * 12
    assert across[1].tolist() == pytest.approx([-1, -1, 0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4, -1, -1])
    assert np.array_equal(across[1], across[2])
    down = place(np.array([[0.0], [4.0]], np.float32), (2.0, 1.0, 10.0, 3.0), (12, 4), outside=-1.0)
    assert down.tolist() == across.T.tolist()


@pytest.mark.parametrize("grey", [0, 34, 60, 120, 255])
def test_images_of_any_brightness_are_explained_also_on_the_way_to_them(grey):
    # With a share of its normalised values, a bright image looks as if it were from 0 to 1.
    (found,) = explain(centre_detector(), np.full((28, 28), grey, np.uint8), "white")
    difference = found.maps["integrated_gradients"].sum()
    assert (difference > 0) == (grey > 0.1307 * 255)


def test_photos_are_explained_together_as_one_by_one():
    photos = [photo((56, 56), (4, 4, 20, 20)), photo((28, 84), (2, 30, 20, 50)), photo((56, 56), (0, 0, 56, 56))]
    pixels = [(f"{i}.png", torch.from_numpy(np.array(one)).permute(2, 0, 1)) for i, one in enumerate(photos)]
    model = centre_detector()
    found = explain_classes(model, pixels, ["white", "white", "black"])
    assert [one.prediction.path for one in found] == ["0.png", "1.png", "2.png"]
    for one, given, name in zip(found, photos, ("white", "white", "black"), strict=True):
        (alone,) = explain(model, given, name, ["grad_cam"])
        assert (one.target, one.size, one.seen) == (name, alone.size, alone.seen)
        np.testing.assert_allclose(one.maps["grad_cam"], alone.maps["grad_cam"], rtol=1e-5)
    assert not found[2].maps["grad_cam"].any()


@pytest.mark.parametrize(
    ("allowed", "method"),
    [
        (["grad_cam", "integrated_gradients"], "grad_cam"),
        (["attention_rollout", "integrated_gradients"], "attention_rollout"),
        (["integrated_gradients"], None),
    ],
)
def test_quick_method_is_of_one_pass(monkeypatch, allowed, method):
    monkeypatch.setattr(maps, "_list_possible", lambda model: allowed)
    assert choose_quick_method(None) == method


def test_quick_method_needs_no_captum(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model = centre_detector()
    assert choose_quick_method(model) == "grad_cam"
    assert explain(model, photo((56, 56), (4, 4, 20, 20)), "white", ["grad_cam"])[0].maps["grad_cam"].max() > 0
    with pytest.raises(UserError, match=r"needs captum"):
        explain(model, photo((56, 56), (4, 4, 20, 20)))


def test_target_is_the_predicted_class_or_the_one_that_is_named():
    module = centre_detector()
    white, black = photo((28, 28), (5, 5, 20, 20)), photo((28, 28), (0, 0, 0, 0))
    assert [one.target for one in explain(module, [white, white])] == ["white", "white"]
    # Nothing but the bias speaks for either, and the first is taken.
    assert explain(module, black)[0].target == "black"
    named = explain(module, white, "black")[0]
    assert (named.target, named.prediction.label) == ("black", "white")
    assert not named.maps["grad_cam"].any()
    with pytest.raises(UserError, match=r"^target: unknown class 'whit'; nearest: white \(choose from black, white\)$"):
        explain(module, white, "whit")


@pytest.mark.parametrize(("task", "classes"), [("multilabel", ["black", "white"]), ("regression", ["brightness"])])
def test_labels_and_numbers_are_explained(task, classes):
    module = centre_detector(task=task, classes=classes)
    (found,) = explain(module, photo((280, 280), (50, 50, 110, 110)))
    assert found.target == classes[-1]
    assert share_inside(found.on_photo(), (50, 50, 110, 110), 25) > 0.95
    if task == "regression":
        assert found.prediction.values["brightness"] > 0
    with pytest.raises(UserError, match=f"unknown {'label' if task == 'multilabel' else 'number'} 'x'"):
        explain(module, [], "x")


def test_all_methods_of_a_network_are_taken_and_others_are_refused():
    module, image = centre_detector(), photo((28, 28), (5, 5, 20, 20))
    assert list(explain(module, image)[0].maps) == ["grad_cam", "integrated_gradients"]
    only = explain(module, image, methods=["integrated_gradients"])[0]
    assert list(only.maps) == ["integrated_gradients"]
    assert only.maps["integrated_gradients"].shape == (28, 28)
    with pytest.raises(UserError, match=r"^method: unknown method 'grad_cam'"):
        only.on_photo("grad_cam")
    refused = r"attention_rollout needs tokens that all attend .* mnist_cnn has not; possible: grad_cam, integrated"
    with pytest.raises(UserError, match=refused):
        explain(module, image, methods=["attention_rollout"])
    with pytest.raises(UserError, match=r"^methods: unknown method 'gradcam'; nearest: grad_cam"):
        explain(module, image, methods=["gradcam"])


def test_colours_of_a_coloured_network_and_grey_pictures_go_together():
    module = small_module(weights=None, input={"channels": 3}, classes=3)
    grey, colour = np.full((30, 40), 90, np.uint8), np.full((40, 30, 3), 90, np.uint8)
    found = explain(module, [grey, colour], methods=["integrated_gradients"])
    assert [one.on_photo("integrated_gradients").shape for one in found] == [(30, 40), (40, 30)]


def test_model_is_left_as_it_was_whatever_the_caller_does():
    module, image = small_module(classes=3), photo((30, 40), (5, 5, 20, 20))
    module.set_trainable(["head"])
    module.train()
    modes = [part.training for part in module.modules()]
    free = explain(module, image)[0]
    with torch.inference_mode():
        frozen = explain(module, image)[0]
    assert [part.training for part in module.modules()] == modes
    assert all(parameter.grad is None for parameter in module.parameters())
    for method, values in free.maps.items():
        assert np.array_equal(values, frozen.maps[method])
        assert np.isfinite(values).all()


def test_explanation_is_public():
    assert lit_ft.explain is explain
    assert lit_ft.Explanation.__module__ == explain.__module__
