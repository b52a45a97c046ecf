"""Exported programs against the models that they were made of."""

import ast
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.errors import UserError
from lit_ft.export import build
from lit_ft.export.build import build_export, describe_export, verify_built
from lit_ft.export.description import FileOutputs
from lit_ft.export.examples import draw_for, draw_images, shrink_examples
from lit_ft.export.inference_model import InferenceModel, predict_pixels, resize_by_file
from lit_ft.export.model_card import CardFacts, render_card
from lit_ft.export.predictor import ExportedModel
from lit_ft.export.runtime import open_exported
from lit_ft.model.calibration import Calibration, distances_to_nearest
from lit_ft.model.module import FineTuneModule
from lit_ft.model.prediction import head_inputs
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import Task


def model_of(task="multiclass", **options):
    torch.manual_seed(0)
    given = {"weights": None, "classes": ["a", "b", "c"], "task": task, **options}
    module = FineTuneModule("mnist_cnn", **given)
    torch.nn.init.normal_(module.head[-1].weight)  # so that no image is as likely to be of each class
    if task == "regression":
        module.task = Task(task, 3, standardisation=Standardisation((1e6, 0.0, -5.0), (2.0, 1e-4, 1.0)))
    return module.eval()


def images_for(module, channels=3):
    return shrink_examples(draw_images(channels, module.input_spec.resize), module.input_spec)


def arrays(images):
    return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]


def features_of(module, images):
    with head_inputs(module.head) as seen:
        predict_pixels(module, images)
    return torch.cat(seen)


RAW = {"bands": [4, 1], "mean": [3000.0, -0.5], "std": [60.0, 0.01]}


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_file_of_raw_values_takes_the_bands_of_files(tmp_path, suffix):
    module = model_of(input=RAW)
    images = shrink_examples(draw_for(module.input_spec, 2), module.input_spec)
    assert abs(float(images[0][0].mean()) - 3000) < 60
    built = build_export(module, suffix, describe_export(module, images, "mnist_cnn"))
    (tmp_path / f"m{suffix}").write_bytes(built.content)
    wanted = "images: float32 (B, H, W, 2), raw values of the bands 4, 1 of the files, of any size"
    assert built.description.input_format.startswith(wanted)
    assert np.array_equal(built.description.examples[1].pixels, arrays(images)[1])
    model = ExportedModel(tmp_path / f"m{suffix}")
    values = np.random.default_rng(0).normal([-0.5, 0, 0, 3000], [0.01, 1, 1, 60], (40, 50, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    for picture in (values, str(tmp_path / "a.npy")):
        [found], [expected] = model.predict(picture, top_k=3), module.predict(picture, top_k=3)
        assert dict(found.top_k) == pytest.approx(dict(expected.top_k), abs=1e-4)
    with pytest.raises(UserError, match=r"it has 2 bands, its shape .* read as .*, and band 4 is asked for"):
        model.predict(values[..., :2])
    card = render_card(CardFacts(f"m{suffix}", module, None, Path("x")), built.description)
    assert 'image = np.float32(tifffile.imread("image.tif"))[..., [3, 0]]' in card


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({}, 3),  # of a grey network
        ({"input": {"channels": 3, "resize": 32}}, 3),
        ({"input": {"channels": 4, "fit": "squash"}}, 4),
        ({"input": {"channels": 3, "fit": "pad"}}, 3),
        ({"input": {"fit": "pad"}}, 3),
        ({"task": "multilabel", "input": {"interpolation": "bicubic", "resize": 40}}, 3),
        ({"task": "regression"}, 3),
    ],
)
def test_whole_model_gives_what_predict_gives(options, channels):
    module = model_of(**options)
    images = images_for(module, channels)
    wanted = predict_pixels(module, images).outputs
    with torch.no_grad():
        found = np.concatenate(
            [InferenceModel(module)(torch.from_numpy(one[None]))[0].numpy() for one in arrays(images)]
        )
    units = np.array(module.task.standardisation.scale) if module.task.standardisation else 1.0
    # Pixels may differ by one level where torch rounds once; float32 alone would be 100 times as close.
    assert np.abs((found - wanted) / units).max() < 0.05
    assert np.ptp(wanted / units, axis=0).max() > 0.2
    assert found.dtype == wanted.dtype
    if options.get("task") != "regression":
        labels = [dict(one.top_k) for one in module.predict(images, top_k=3)]
        assert wanted == pytest.approx(np.array([[one[name] for name in "abc"] for one in labels]), abs=1e-5)


def test_numbers_that_were_never_standardised_are_float64_too():
    module = FineTuneModule("mnist_cnn", weights=None, classes=["a"], task="regression").eval()
    with torch.no_grad():
        (found,) = InferenceModel(module)(torch.zeros(1, 9, 9, 3, dtype=torch.uint8))
    assert found.dtype == torch.float64


@pytest.fixture(scope="module")
def exported():
    """A regression on grey images that are padded, as torch.export writes it: numbers that float32 cannot resolve."""
    module = model_of("regression", input={"fit": "pad"})
    images = images_for(module)
    module.calibration = Calibration().with_references(features_of(module, images[:4]).repeat(6, 1))
    built = build_export(module, ".pt2", describe_export(module, images, "mnist_cnn"))
    return module, images, built, open_exported("a.pt2", built.content)


def test_file_has_its_description_and_its_examples(exported):
    module, images, _, file = exported
    found = file.description
    assert (found.task, found.classes, found.channels) == ("regression", ["a", "b", "c"], 3)
    assert found.fit == "pad"
    assert found.input_format.endswith(", of any size; resized and padded inside")
    assert found.tolerance == pytest.approx([2e-3, 1e-7, 1e-3])
    assert [example.pixels.shape for example in found.examples] == [one.shape for one in arrays(images)]
    outputs = np.array([one.outputs for one in found.examples])
    assert np.array_equal(
        outputs[[0, 2]], predict_pixels(module, [images[0], images[2]]).outputs
    )  # which are not resized
    assert np.array_equal(outputs, predict_pixels(module, images, resize=resize_by_file).outputs)


def test_distances_are_those_from_the_nearest_reference(exported):
    module, images, _, file = exported
    assert file.description.farthest == module.calibration.farthest
    found = file.run_each(arrays(images)).distances
    assert found[0] < 1e-3  # itself, but for its float16
    assert found[4:].min() > 0.01
    wanted = distances_to_nearest(features_of(module, images), module.calibration.references)
    assert found[[0, 2]] == pytest.approx(wanted[[0, 2]].numpy(), abs=1e-5)  # which are not resized
    noted = np.array([one.distance for one in file.description.examples])
    assert np.abs(noted - found).max() < 1e-3


def test_large_images_are_run_one_by_one(exported, monkeypatch):
    sizes = []
    file = replace(exported[3], run=lambda images: sizes.append(len(images)) or FileOutputs(np.zeros((len(images), 1))))
    monkeypatch.setattr("lit_ft.export.runtime._MOST_PIXELS", 30)
    images = [np.zeros((3, 5, 3), np.uint8)] * 5 + [np.zeros((6, 6, 3), np.uint8)] * 2
    assert file.run_each(images).outputs.shape == (7, 1)
    assert sizes == [2, 2, 1, 1, 1]


def test_file_runs_batches_of_any_number_and_size(exported):
    module, images, _, file = exported
    pixels = arrays(images)
    alone = np.concatenate([file.run(one[np.newaxis]).outputs for one in pixels])
    assert np.abs(file.run(np.stack([pixels[0], pixels[4], pixels[0]])).outputs - alone[[0, 4, 0]]).max() < 1e-3
    assert np.abs(file.run_each([pixels[0], pixels[0], pixels[1]]).outputs - alone[[0, 0, 1]]).max() < 1e-3
    for height, width in ((1, 1), (1, 300), (300, 2), (28, 28)):
        one = np.full((1, height, width, 3), 100, np.uint8)
        wanted = predict_pixels(module, [torch.from_numpy(one[0]).permute(2, 0, 1)]).outputs
        assert file.run(one).outputs == pytest.approx(wanted, abs=1e-3)


def test_file_names_no_path_of_this_machine(exported):
    built = exported[2]
    for path in (os.path.dirname(os.path.dirname(build.__file__)), os.path.dirname(torch.__file__)):
        assert path.encode() not in built.content


@pytest.mark.long
def test_code_in_the_card_of_a_program_runs(exported, tmp_path, monkeypatch, capsys):
    module, _, built, _ = exported
    card = render_card(CardFacts("model.pt2", module, None, tmp_path / "best.ckpt"), built.description)
    monkeypatch.chdir(tmp_path)
    Path("model.pt2").write_bytes(built.content)
    photo = draw_images(3, 20)[0]
    to_pil_image(photo).save("photo.jpg", format="PNG")
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    (wanted,) = module.predict(photo)
    assert ast.literal_eval(capsys.readouterr().out) == pytest.approx(wanted.values, abs=0.05, rel=1e-7)


def test_other_outputs_than_the_models_are_refused(exported, monkeypatch):
    file = exported[3]
    for shift in (FileOutputs(np.array([0.0, 2e-7, 0.0]), 0.0), FileOutputs(0.0, 2e-3)):

        def run(images, shift=shift):
            return FileOutputs(*(one + by for one, by in zip(file.run(images), shift, strict=True)))

        monkeypatch.setattr(build, "open_exported", lambda *_, run=run: replace(file, run=run))
        with pytest.raises(UserError, match=r"nothing was written: torch .* something else than the model \(largest"):
            verify_built(b"", ".pt2")


def test_other_resizing_than_the_models_is_refused(exported, monkeypatch):
    module, images, _, _ = exported
    monkeypatch.setattr(InputSpec, "geometry", lambda spec: v2.Compose([v2.CenterCrop(spec.size)]))
    describe_export(module, images[:1], "mnist_cnn")  # of that size
    with pytest.raises(UserError, match=r"nothing was written: the file resizes images by \d+ levels of 255 otherwise"):
        describe_export(module, images, "mnist_cnn")


def test_file_that_is_cut_short_or_of_another_program_is_refused(exported):
    built = exported[2]
    for content in (built.content[:1000], b"", b"\0" * 100):
        with pytest.raises(UserError, match=r"^a\.pt2: cannot be opened; it is damaged"):
            open_exported("a.pt2", content)
    with pytest.raises(UserError, match=r"a\.pt: must end in \.onnx or \.pt2"):
        open_exported("a.pt")
    with pytest.raises(UserError, match=r"a\.pt2: cannot be read \(No such file"):
        open_exported("a.pt2")
