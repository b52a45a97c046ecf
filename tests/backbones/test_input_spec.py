import resource

import forked
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.errors import UserError

SPEC = InputSpec(size=200, resize=250)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (InputConfig(), SPEC),
        (InputConfig(size=100), InputSpec(size=100, resize=125)),
        (InputConfig(size=100, resize=100), InputSpec(size=100, resize=100)),
        (InputConfig(resize=300), InputSpec(size=200, resize=300)),
        (InputConfig(interpolation="bicubic"), InputSpec(200, 250, "bicubic")),
        (InputConfig(fit="crop"), SPEC),
        (InputConfig(fit="pad"), InputSpec(200, 200, fit="pad")),
        (InputConfig(fit="squash", size=100), InputSpec(100, 100, fit="squash")),
        (InputConfig(fit="squash", resize=250), InputSpec(200, 250, fit="squash")),
        (InputConfig(mean=[0, 0.5, 1], std=[1, 2, 3]), InputSpec(200, 250, mean=(0.0, 0.5, 1.0), std=(1.0, 2.0, 3.0))),
    ],
)
def test_spec_changes_only_in_what_is_given(config, expected):
    assert config.applied_to(SPEC) == expected


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (InputConfig(mean=[0.5]), r"model.input.mean: model.input.channels says 3 channels, got \[0.5\]"),
        (InputConfig(std=[1, 0, 1]), r"model.input.std: must be above 0, got \[1.0, 0.0, 1.0\]"),
        (InputConfig(size=0), r"model.input.size: must be between 1 and resize \(0\), got 0"),
        (InputConfig(size=100, resize=99), r"model.input.size: must be between 1 and resize \(99\), got 100"),
        (InputConfig(fit="nix"), r"model.input.fit: unknown fit 'nix' \(choose from crop, pad, squash\)"),
        (
            InputConfig(fit="pad", resize=250),
            "model.input.resize: 250, but with the fit pad the longer side is resized to model.input.size, 200; leave "
            "it out",
        ),
    ],
)
def test_impossible_images_are_refused(config, text):
    with pytest.raises(UserError, match=f"^{text}$"):
        config.applied_to(SPEC)


def test_fit_of_published_weights_keeps_its_margin_unless_another_is_given():
    squashed = InputSpec(180, 200, fit="squash")
    assert InputConfig(size=90).applied_to(squashed) == InputSpec(90, 100, fit="squash")
    assert squashed.with_fit("squash") is squashed.with_fit(None) is squashed
    assert squashed.with_fit("pad") == InputSpec(180, 180, fit="pad")
    assert SPEC.with_fit("squash").with_fit("crop") == InputSpec(200, 200)


@pytest.mark.parametrize(
    ("config", "fit", "text"),
    [
        (InputConfig(), "pad", None),
        (InputConfig(fit="pad"), None, None),
        (InputConfig(fit="pad", resize=200), "pad", None),
        (InputConfig(resize=250), "crop", None),
        (InputConfig(size=200, resize=200), "squash", None),
        (InputConfig(fit="crop"), "pad", "data.fit: pad, but model.input.fit is crop; leave one of them out"),
        (
            InputConfig(resize=250),
            "squash",
            "model.input.resize: 250, but with data.fit squash the whole photo is resized to model.input.size; leave "
            "it out",
        ),
    ],
)
def test_another_fit_of_the_data_is_refused(config, fit, text):
    if text is None:
        config.refuse_fit(fit, "data.fit")
    else:
        with pytest.raises(UserError, match=f"^{text}$"):
            config.refuse_fit(fit, "data.fit")


def test_options_of_the_first_release_are_read():
    old = {"size": 112, "resize": 128, "squash": True, "mean": [0.5], "std": [0.5]}
    assert InputConfig.read(old) == InputConfig(112, 128, mean=[0.5], std=[0.5], fit="squash")
    assert InputConfig.read({**old, "squash": False}).fit == "crop"
    assert InputConfig.read({"squash": None}) == InputConfig.read(None) == InputConfig()
    assert InputSpec.read({**old, "interpolation": "bicubic"}) == InputSpec(
        112, 128, "bicubic", (0.5,), (0.5,), "squash"
    )
    assert InputSpec.read(SPEC) is SPEC
    assert InputSpec.read(None) is None


def test_geometry_in_words():
    assert SPEC.in_words == "shorter side to 250, bilinear, then the centre 200 x 200"
    assert SPEC.with_fit("pad").in_words == "longer side to 200, bilinear, padded to 200 x 200 with the mean colour"
    assert SPEC.with_fit("squash").in_words == "whole, squeezed into 200 x 200, bilinear"


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_there_are_no_corners_beside_the_whole(fit):
    spec, image = InputSpec(16, 16, fit=fit), picture(20, 50)
    whole, mirrored = spec.views("flip")(image)
    assert whole.equal(spec.geometry()(image))
    assert mirrored.equal(whole.flip(-1))
    with pytest.raises(UserError, match="the whole enters this network; give flip"):
        spec.views("crops")


def test_channels_are_those_of_the_normalisation():
    assert (InputSpec().channels, InputSpec(mean=(0.5,), std=(0.5,)).channels) == (3, 1)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"mean": [123.7, 116.3, 103.5]},
            r"model.input.mean: is on a scale from 0 to 1, got \[123.7, .*divide by 255",
        ),
        ({"interpolation": "foo"}, r"model.input.interpolation: unknown interpolation 'foo'"),
    ],
)
def test_values_that_cannot_be_are_refused(given, text):
    with pytest.raises(UserError, match=f"^{text}"):
        InputConfig(**given).applied_to(InputSpec())


MODES = ["nearest", "bilinear", "bicubic"]


def picture(height, width, seed=0):
    """Noise, uint8 ``(3, H, W)``, of so little contrast that no interpolation goes beyond 0 and 255."""
    values = np.random.default_rng(seed).integers(64, 192, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(values)


def expected(spec, image):
    """Resized as a whole, and then cut."""
    resized = F.resize(image, [spec.resize], InterpolationMode(spec.interpolation), antialias=True)
    return F.center_crop(resized, [spec.size])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape", [(40, 60), (60, 40), (5, 160), (200, 3000), (21, 21 * 40), (21 * 40, 21), (1, 32), (15, 15), (20, 900)]
)
def test_ordinary_images_have_the_very_pixels_of_the_whole(mode, shape):
    spec = InputSpec(16, 20, mode)
    image = picture(*shape)
    assert spec.geometry()(image).equal(expected(spec, image))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [(16, 20), (15, 20), (20, 20), (7, 18)])
@pytest.mark.parametrize("shape", [(1, 33), (1, 500), (3, 200), (7, 801), (19, 19 * 33)])
@pytest.mark.parametrize("tall", [False, True])
def test_long_images_have_the_centre_of_the_whole(mode, sizes, shape, tall):
    spec = InputSpec(*sizes, mode)
    image = picture(*shape)
    image = image.transpose(1, 2).contiguous() if tall else image
    found = spec.geometry()(image)
    assert found.shape == (3, spec.size, spec.size)
    assert found.dtype == torch.uint8
    if mode == "nearest":
        assert found.equal(expected(spec, image))
        return
    # Of fractions: torch mixes up the pixels of uint8 images that are one pixel wide. Each of two directions rounds by
    # half a step, the weights by little; the first is enlarged by the second's weights, whose sizes add up to 1.25.
    whole = expected(spec, image.float())
    assert (found - whole).abs().max() <= 0.5 * 1.25 + 0.5 + 0.12


def test_long_images_of_pillow_and_of_fractions():
    spec = InputSpec(16, 20)
    image = picture(2, 301)
    pixels = spec.geometry()(image)
    pillow = spec.geometry()(Image.fromarray(image.permute(1, 2, 0).numpy()))
    assert torch.from_numpy(np.array(pillow)).permute(2, 0, 1).equal(pixels)
    fractions = image / 255
    torch.testing.assert_close(spec.geometry()(fractions), expected(spec, fractions), rtol=0, atol=1e-4)
    grey = spec.geometry()(image[:1])
    assert grey.equal(pixels[:1])


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (2, 4_000_000)])
def test_no_more_is_made_of_a_long_image_than_is_used(shape, monkeypatch):
    made = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *args: made.append(resize(*args)) or made[-1])
    monkeypatch.setattr(F, "resize", None)
    assert InputSpec().geometry()(picture(*shape)).shape == (3, 224, 224)
    assert {image.size for image in made} == {(224, 224)}


def test_squashed_images_are_seen_whole():
    image = torch.zeros(3, 1, 2000, dtype=torch.uint8)
    image[..., 1000:] = 255
    out = InputSpec(16, 16, fit="squash").geometry()(image)
    assert out[0, 8].tolist()[:7] == [0] * 7
    assert out[0, 8].tolist()[9:] == [255] * 7


def memory_of_a_long_image():
    """By how many kB it raises the peak of the process."""
    image = torch.zeros(3, 1, 20_000, dtype=torch.uint8)
    InputSpec().geometry()(image[:, :, :30])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    InputSpec().geometry()(image)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


@pytest.mark.slow
def test_memory_of_a_long_image():
    """8.7 GB were taken for it."""
    assert forked.call(memory_of_a_long_image) < 50_000


def test_transform_is_told_apart_by_its_sizes():
    found = {str(InputSpec(*sizes).geometry()) for sizes in ((16, 20), (15, 20), (16, 21))}
    assert len(found) == 3
    assert all(isinstance(step, (v2.Resize, v2.CenterCrop)) for step in InputSpec().geometry().transforms)


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (77, 401), (64, 64), (40, 90), (20, 2000), (1000, 31)])
@pytest.mark.parametrize(
    "spec",
    [
        InputSpec(56, 64),
        InputSpec(64, 64),
        InputSpec(56, 64, fit="squash"),
        InputSpec(50, 63),
        InputSpec(64, fit="pad"),
        InputSpec(57, fit="pad"),
    ],
)
def test_part_that_is_seen_is_where_the_eval_transform_cuts(spec, size):
    height, width = size
    rows = torch.arange(height, dtype=torch.float32)[:, None].expand(size)
    columns = torch.arange(width, dtype=torch.float32).expand(size)
    top, left, bottom, right = spec.seen_part(height, width)
    middles = (torch.arange(spec.size) + 0.5) / spec.size
    for place, start, end in ((rows, top, bottom), (columns, left, right)):
        cut = spec.geometry()(place[None].clone())[0]
        middle = (spec.size - 1) // 2  # where a photo of one line is, too
        line = cut[:, middle] if place is rows else cut[middle]
        wanted = start + middles * (end - start) - 0.5
        # The value of a pixel is its place. At the rim of a photo the mean is of the pixels that there are, and
        # elsewhere the middle of the few that are weighed is off by some hundredths; a pixel too far would be 1.
        scale = max(1.0, (end - start) / spec.size)
        inside = (wanted > scale) & (wanted < len(place if place is rows else place[0]) - 1 - scale)
        torch.testing.assert_close(line[inside], wanted[inside], rtol=1e-4, atol=0.15 * scale)
        assert inside.any() or min(spec.resized(height, width)) < 4
