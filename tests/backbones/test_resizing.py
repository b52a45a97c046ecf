"""Images that are resized as a whole and padded; those of which the centre is cut out are in test_input_spec.py."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.resizing import PadToSquare, ResizeWhole, size_within

FILL = [124, 116, 104]  # 255 times the mean of ImageNet, to the nearest


def noisy(height, width, channels=3):
    generator = torch.Generator().manual_seed(height * 7 + width)
    return torch.randint(256, (channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (375, 500, (168, 224)),
        (500, 375, (224, 168)),
        (333, 500, (149, 224)),  # 149.2
        (334, 500, (150, 224)),  # 149.6
        (224, 224, (224, 224)),
        (1, 1, (224, 224)),
        (2, 3, (149, 224)),
        (1, 448, (1, 224)),
        (1, 20_000, (1, 224)),
        (20_000, 1, (224, 1)),
    ],
)
def test_longer_side_is_that_of_the_square(height, width, size):
    assert size_within(224, height, width) == size
    assert ResizeWhole(224, InterpolationMode.BILINEAR)(torch.zeros(3, height, width, dtype=torch.uint8)).shape[1:] == (
        torch.Size(size)
    )


def test_sides_are_to_the_nearest_pixel_at_all_ratios():
    for square in (7, 28, 224):
        for height in (*range(1, 40), 333, 1000):
            for width in (*range(1, 40), 500):
                found = size_within(square, height, width)
                exact = [square * side / max(height, width) for side in (height, width)]
                assert max(found) == square
                assert all(abs(a - max(1, b)) <= 0.5 for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize(("height", "width", "top", "left"), [(4, 9, 2, 0), (9, 4, 0, 2), (6, 9, 1, 0), (9, 9, 0, 0)])
def test_image_lies_in_the_middle_and_one_more_line_is_behind_it(height, width, top, left):
    image = noisy(height, width)
    found = PadToSquare(9, FILL)(image)
    assert found.shape == (3, 9, 9)
    assert found[:, top : top + height, left : left + width].equal(image)
    rest = torch.ones(9, 9, dtype=torch.bool)
    rest[top : top + height, left : left + width] = False
    assert (found[:, rest] == torch.tensor(FILL).view(3, 1)).all()


def test_padding_is_zero_after_the_normalisation_but_for_its_rounding():
    spec = InputSpec(16, fit="pad")
    made = spec.eval_transform()(noisy(4, 40))
    assert made[:, :6].abs().max() <= 0.5 / 255 / min(spec.std) + 1e-6
    assert made[:, :6].abs().max() > 0


def test_fractions_batches_and_pictures_of_pillow_are_padded_alike():
    pad, image = PadToSquare(8, FILL), noisy(3, 8)
    wanted = pad(image)
    assert pad(torch.stack([image, image.flip(-1)])).equal(torch.stack([wanted, wanted.flip(-1)]))
    assert pad(image / 255).equal(wanted / 255)
    pillow = pad(Image.fromarray(image.permute(1, 2, 0).numpy()))
    assert torch.from_numpy(np.array(pillow)).permute(2, 0, 1).equal(wanted)


def test_grey_image_is_padded_in_the_colours_of_the_network():
    image = noisy(3, 8, channels=1)
    assert PadToSquare(8, FILL)(image).equal(PadToSquare(8, FILL)(image.expand(3, -1, -1)))
    grey = PadToSquare(8, [33])
    assert grey(image)[0, 0].tolist() == [33] * 8
    assert grey(noisy(3, 8))[:, 0].unique().tolist() == [33]  # a photo, whose colours are mixed afterwards
    assert PadToSquare(8, [51, 102])(noisy(3, 8))[:, 0].unique().tolist() == [76]  # what does not fit is refused later


def test_raw_values_are_padded_with_their_own_mean():
    spec = InputSpec(16, fit="pad", bands="all", mean=(1200.5, -3.0), std=(100.0, 2.0))
    raw = torch.rand(2, 8, 32) * 1000
    made = spec.eval_transform()(raw)
    assert not made[:, :6].any()  # exactly
    assert made[:, 6:10].abs().min() > 0
    single = InputSpec(16, fit="pad", bands=(1,), mean=(7.0,), std=(2.0,))
    assert single.geometry()(raw[:1])[:, 0].unique().tolist() == [7.0]


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 60), (61, 40), (5, 160), (15, 15), (1, 1), (1, 33), (200, 3000), (300, 1)])
def test_whole_photo_is_in_the_square(mode, shape):
    spec, image = InputSpec(20, fit="pad", interpolation=mode), noisy(*shape)
    height, width = size_within(20, *shape)
    resized = F.resize(image, [height, width], InterpolationMode(mode), antialias=True)
    top, left = (20 - height) // 2, (20 - width) // 2
    found = spec.geometry()(image)
    assert found[:, top : top + height, left : left + width].equal(resized)
    assert found.shape == (3, 20, 20)


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (2, 4_000_000)])
def test_no_more_is_made_of_a_long_image_than_the_square(shape, monkeypatch):
    made = []
    resize = F.resize
    monkeypatch.setattr(F, "resize", lambda *args, **options: made.append(resize(*args, **options)) or made[-1])
    assert InputSpec(fit="pad").geometry()(torch.zeros(3, *shape, dtype=torch.uint8)).shape == (3, 224, 224)
    assert sorted(made[0].shape[1:]) == [1, 224]


def test_transform_is_told_apart_by_size_interpolation_and_colour():
    specs = [InputSpec(16, fit="pad"), InputSpec(17, fit="pad"), InputSpec(16, interpolation="bicubic", fit="pad")]
    specs.append(InputSpec(16, fit="pad", mean=(0.5, 0.5, 0.5)))
    assert len({str(spec.geometry()) for spec in specs}) == 4
    assert isinstance(InputSpec(fit="pad").geometry(), v2.Compose)
