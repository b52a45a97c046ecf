import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageFolderDataModule
from lit_ft.data.images.transforms import ShiftFlip, policy, resize_square, train_transform


def dot(row, col, size=5):
    image = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    image[..., row, col] = 200
    return image


@pytest.mark.parametrize(
    ("drawn", "where"),
    [
        ((2, 2, 0), (1, 3)),  # the middle of the offsets is no shift
        ((3, 2, 0), (0, 3)),
        ((2, 1, 0), (1, 4)),
        ((2, 2, 1), (1, 1)),
        ((1, 1, 1), (2, 0)),  # cropped first, then mirrored
    ],
)
def test_shift_and_flip_move_a_pixel(drawn, where):
    moved = ShiftFlip(2, flip=True)(dot(1, 3), torch.tensor([drawn]))
    assert moved.equal(dot(*where))


def test_what_leaves_the_image_is_gone_and_zeros_come_in():
    assert ShiftFlip(2)(dot(0, 0), torch.tensor([[4, 4, 0]])).sum() == 0


def test_each_image_of_a_batch_has_its_own_shift():
    batch = torch.cat([dot(1, 3), dot(1, 3)]).expand(2, 3, 5, 5)
    moved = ShiftFlip(1)(batch, torch.tensor([[1, 1, 0], [0, 1, 0]]))
    assert moved.equal(torch.cat([dot(1, 3), dot(2, 3)]).expand(2, 3, 5, 5))


@pytest.mark.parametrize(
    ("shift", "flip", "shape"), [(4, True, (3, 32, 32)), (2, False, (1, 28, 28)), (1, True, (1, 5, 9))]
)
def test_shift_and_flip_are_torchvisions_at_the_same_parameters(shift, flip, shape):
    steps = range(2 * shift + 1)
    drawn = torch.tensor([(top, left, m) for top in steps for left in steps for m in range(1 + flip)])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(drawn), *shape), dtype=torch.uint8, generator=generator)
    given = images.clone()
    moved = ShiftFlip(shift, flip)(images, drawn)
    assert images.equal(given)
    for image, (top, left, mirrored), out in zip(images, drawn.tolist(), moved, strict=True):
        expected = F.crop(F.pad(image, [shift]), top, left, *shape[1:])
        assert out.equal(F.horizontal_flip(expected) if mirrored else expected)


def test_drawn_values_cover_all_shifts_and_mirror_half():
    drawn = ShiftFlip(2, flip=True).draw(2000, torch.Generator().manual_seed(0))
    assert drawn[:, 0].unique().tolist() == drawn[:, 1].unique().tolist() == [0, 1, 2, 3, 4]
    assert 0.45 < drawn[:, 2].float().mean() < 0.55
    assert ShiftFlip(2).draw(50, torch.Generator().manual_seed(0))[:, 2].sum() == 0


def test_resize_square_brings_uint8_to_the_size():
    images = torch.full((2, 1, 28, 28), 77, dtype=torch.uint8)
    resized = resize_square(images, InputSpec(size=40, resize=40, interpolation="bicubic"))
    assert resized.shape == (2, 1, 40, 40)
    assert resized.dtype == torch.uint8
    assert resized.unique().tolist() == [77]
    assert resize_square(images, InputSpec(size=28, resize=28)) is images


def test_eval_transform_cuts_the_centre_of_the_resized_photo():
    photo = torch.zeros(3, 20, 60, dtype=torch.uint8)
    photo[:, :, 20:40] = 90  # the middle third
    out = InputSpec(size=10, resize=20).geometry()(photo)
    assert out.shape == (3, 10, 10)
    assert out.unique().tolist() == [90]


def test_train_transform_has_the_size_and_varies():
    photo = torch.arange(40 * 60 * 3).view(3, 40, 60).remainder(256).to(torch.uint8)
    transform = train_transform(InputSpec(size=16, resize=20), "basic")
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(transform(photo))
    assert outs[0].shape == (3, 16, 16)
    assert outs[0].dtype == torch.uint8
    assert outs[0].equal(outs[1])
    assert not outs[0].equal(outs[2])


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_parts_to_train_on_are_of_the_square_that_is_evaluated(fit):
    photo = torch.randint(0, 256, (3, 20, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # At half the area, a part of 23 x 23 pixels has those of the network.
    square = InputSpec(23, 23, fit=fit).geometry()(photo)
    torch.manual_seed(5)
    wanted = v2.RandomHorizontalFlip()(v2.RandomResizedCrop(16, (0.5, 1.0), antialias=True)(square))
    torch.manual_seed(5)
    assert train_transform(InputSpec(16, 16, fit=fit), "basic")(photo).equal(wanted)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_end_of_a_long_photo_is_trained_on_where_it_is_evaluated(fit):
    photo = torch.zeros(3, 20, 80, dtype=torch.uint8)
    photo[..., 70:] = 255
    transform, seen = train_transform(InputSpec(16, 16, fit=fit), "basic"), []
    for seed in range(40):
        torch.manual_seed(seed)
        seen.append(bool((transform(photo) > 128).any()))
    assert np.mean(seen) == 0 if fit == "crop" else np.mean(seen) > 0.4


@pytest.mark.parametrize(
    ("augment", "last"), [("trivial", v2.TrivialAugmentWide), ("rand", v2.RandAugment), ("augmix", v2.AugMix)]
)
def test_photos_take_the_policy_after_crop_and_flip(augment, last):
    photo = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = InputSpec(size=16, resize=20)
    torch.manual_seed(3)
    expected = last()(train_transform(spec, "basic")(photo))
    torch.manual_seed(3)
    out = train_transform(spec, augment)(photo)
    assert out.equal(expected)
    assert (out.dtype, out.shape) == (torch.uint8, (3, 16, 16))
    assert policy("none") is policy("basic") is None


def test_sets_of_photos_take_the_policy_of_the_option(photo_root):
    data = ImageFolderDataModule(str(photo_root), num_workers=0, augment="rand", batch_size=24, spec=InputSpec(16, 18))
    loader = data.train_dataloader()
    images = next(iter(loader))[0]
    data.augment = "basic"
    basic = next(iter(data.train_dataloader()))[0]
    assert images.shape == basic.shape
    assert not images.equal(basic)
