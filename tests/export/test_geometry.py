"""The geometry in exported files against torchvision's and Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.export.geometry import SquareResize

SIZES = [(60, 90), (91, 40), (17, 17), (30, 301), (1, 5), (256, 200), (3, 200), (1, 1), (1, 99), (28, 28)]


def pixels(height, width, channels=3):
    """Smooth colours with some noise, so that neither rounding nor antialiasing is hidden."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, channels, 5, 5, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    noise = torch.randint(-40, 40, smooth.shape, generator=generator)
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


def resized(spec, image):
    return SquareResize(spec)(image.permute(1, 2, 0).unsqueeze(0))[0]


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("size", "resize"), [(28, 32), (23, 23), (32, 40)])
def test_result_is_that_of_the_eval_transform(interpolation, fit, size, resize):
    spec = InputSpec(size, resize, interpolation, fit=fit)
    for height, width in SIZES:
        image = pixels(height, width)
        found, wanted = resized(spec, image), spec.geometry()(image).float()
        assert found.shape == wanted.shape
        # CPUs without AVX2 round once, at the end; here it is twice, which a weight below 0 makes a little more.
        most = {"nearest": 0, "bilinear": 1, "bicubic": 2}[interpolation]
        assert (found - wanted).abs().max() <= most, (height, width)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_raw_values_are_not_rounded(interpolation, fit):
    spec = InputSpec(28, 32, interpolation, fit=fit, bands="all", mean=(0.0, 1.5, -7000.25, 4e4), std=(1.0,) * 4)
    for height, width in SIZES:
        image = pixels(height, width, 4).float() * 200 - 7000.25
        torch.testing.assert_close(resized(spec, image), spec.geometry()(image), atol=0.3, rtol=0)  # of 51,000


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_result_is_that_of_pillow_but_for_its_finer_weights(interpolation):
    spec = InputSpec(28, 32, interpolation)
    mode = Image.Resampling[interpolation.upper()]
    differing, total = 0, 0
    for height, width, whole in ((60, 90, (48, 32)), (200, 300, (48, 32)), (333, 211, (32, 50))):
        image = pixels(height, width)
        made = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(whole, mode)
        left, top = (round((side - 28) / 2) for side in whole)
        wanted = torch.from_numpy(np.array(made.crop((left, top, left + 28, top + 28)))).permute(2, 0, 1).float()
        difference = (resized(spec, image) - wanted).abs()
        assert difference.max() <= 1
        differing += int((difference > 0).sum())
        total += difference.numel()
    assert differing / total < 0.02  # weights of 16 bits rather than 22; .5 % of torch's own pixels differ


@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="torch rounds once on other CPUs")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_torch_where_it_rounds_twice(interpolation):
    spec = InputSpec(56, 64, interpolation)
    images = [pixels(height, width) for height, width in ((60, 90), (269, 272), (91, 40))]
    differing = torch.cat([(resized(spec, one) != spec.geometry()(one)).flatten() for one in images])
    assert differing.float().mean() < 1e-3  # weights that are not rounded as torch's would move one in a hundred


def test_images_of_the_size_that_is_resized_to_are_cut_alone():
    image = pixels(32, 45)
    assert torch.equal(resized(InputSpec(28, 32), image), image[:, 2:30, 8:36].float())
    assert torch.equal(resized(InputSpec(28, 28), image[:, 2:30, 8:36]), image[:, 2:30, 8:36].float())


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (31, 4001)])
def test_long_images_are_padded_as_by_the_eval_transform(shape):
    spec, image = InputSpec(56, fit="pad"), pixels(*shape)
    assert (resized(spec, image) - spec.geometry()(image)).abs().max() <= 1


def test_padding_has_the_mean_colour_of_each_channel():
    image = pixels(10, 40)
    found = resized(InputSpec(40, fit="pad", mean=(0.1, 0.5, 0.9)), image)
    assert found[:, 15:25].equal(image.float())
    assert found[:, [0, 14, 25, 39]].unique(dim=2).flatten(1).unique(dim=1).flatten().tolist() == [26, 128, 230]
    assert resized(InputSpec(40, fit="pad", mean=(0.5,), std=(0.5,)), image)[:, 0].unique().tolist() == [128]


def test_images_of_a_batch_and_any_number_of_channels_are_resized_each_by_itself():
    spec = InputSpec(20, 24)
    images = torch.stack([pixels(50, 33, 4), pixels(50, 33, 4).flip(0)])
    together = SquareResize(spec)(images.permute(0, 2, 3, 1))
    for image, found in zip(images, together, strict=True):
        assert torch.equal(found, resized(spec, image))
