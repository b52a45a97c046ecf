import numpy as np
import pytest
import torch

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import DigitsDataModule
from lit_ft.data.modules.digits import mnist_format
from lit_ft.errors import UserError

GREY = InputSpec(size=28, resize=28, mean=(0.13,), std=(0.31,))


def make(**options):
    data = DigitsDataModule(spec=GREY, **options)
    data.setup()
    return data


def test_digits_are_drawn_in_the_middle_box_at_full_scale():
    drawn = mnist_format(np.full((1, 8, 8), 16.0))
    assert drawn.shape == (1, 1, 28, 28)
    assert drawn.dtype == torch.uint8
    assert drawn[0, 0, 4:24, 4:24].unique().tolist() == [255]
    assert int(drawn.sum()) == 255 * 20 * 20


def test_sizes_of_the_splits():
    assert {name: sum(n) for name, n in make(shots=None).counts().items()} == {"train": 497, "val": 300, "test": 1000}
    assert make().counts()["train"] == [10] * 10


def test_splits_depend_on_the_split_seed_alone():
    def test_images(seed):
        torch.manual_seed(seed + 7)
        return next(iter(make(split_seed=seed).test_dataloader()))[0]

    assert test_images(0).equal(test_images(0))
    assert not test_images(0).equal(test_images(1))


def test_shots_nest():
    def train(shots):
        return {bytes(x.numpy()) for xs, _ in make(shots=shots, augment="none").train_dataloader() for x in xs}

    assert len(train(1)) == 10
    assert train(1) < train(5)


def test_targets_belong_to_the_images():
    # Nearest neighbours recognise 19 of 20 of these digits: targets in another order would give 1 in 10.
    data = make(shots=None, augment="none", batch_size=1000)
    (x, y), (test_x, test_y) = next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))
    nearest = torch.cdist(test_x.flatten(1).float(), x.flatten(1).float()).argmin(1)
    assert (y[nearest] == test_y).float().mean() > 0.9


def test_too_many_shots():
    with pytest.raises(UserError, match=r"data.shots: class '\d' has 4\d images to train on, 60 were asked"):
        make(shots=60)
