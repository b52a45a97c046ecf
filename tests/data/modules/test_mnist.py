import numpy as np
import pytest
import torch
from image_files import noise

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import DigitsDataModule, MNISTToEMNISTDataModule
from lit_ft.data.modules.mnist import mnist_format
from lit_ft.errors import UserError

GREY = InputSpec(size=28, resize=28, mean=(0.13,), std=(0.31,))


def make(root, **options):
    options = {"spec": GREY, "val_fraction": 0.2, **options}
    data = MNISTToEMNISTDataModule(str(root), **options)
    data.setup()
    return data


def test_letters_are_upright_and_their_targets_start_at_0(letters_root):
    data = make(letters_root, split="letters")
    images = torch.cat([x for x, _ in data.test_dataloader()])
    targets = torch.cat([y for _, y in data.test_dataloader()])
    assert np.array_equal(images[:, 0].numpy(), noise(52).transpose(0, 2, 1))
    assert targets.tolist() == [i // 2 for i in range(52)]
    assert (images.dtype, targets.dtype) == (torch.uint8, torch.int64)
    assert data.class_names == list("abcdefghijklmnopqrstuvwxyz")


def test_mnist_is_left_as_it_is(mnist_root):
    data = make(mnist_root, domain="source")
    images = torch.cat([x for x, _ in data.test_dataloader()])
    assert np.array_equal(images[:, 0].numpy(), noise(30))
    assert data.class_names == list("0123456789")
    assert data.counts() == {"train": [8] * 10, "val": [2] * 10, "test": [3] * 10}


def test_folds_are_of_the_training_images_alone(mnist_root):
    folds = [make(mnist_root, domain="source", folds=5, fold=fold) for fold in range(1, 6)]
    assert [data.counts() for data in folds] == [{"train": [8] * 10, "val": [2] * 10, "test": [3] * 10}] * 5
    held = torch.cat([data.splits["val"].rows for data in folds])
    assert held.sort().values.tolist() == list(range(100))
    assert not set(folds[1].splits["train"].rows.tolist()) & set(folds[1].splits["val"].rows.tolist())


def test_folds_of_digits_leave_the_test_images_apart():
    folds = [DigitsDataModule(spec=GREY, shots=None, folds=3, fold=fold) for fold in (1, 2, 3)]
    for data in folds:
        data.setup()
    held = torch.cat([data.splits["val"].rows for data in folds])
    tested = folds[0].splits["test"].rows
    assert torch.cat([held, tested]).sort().values.tolist() == list(range(1797))
    assert torch.equal(tested, folds[2].splits["test"].rows)


def test_training_and_validation_images_are_apart(mnist_root):
    data = make(mnist_root, domain="source")
    train, val = (
        {bytes(image.numpy()) for images, _ in loader for image in images}
        for loader in (data.train_dataloader(), data.val_dataloader())
    )
    assert len(train) == 80
    assert len(val) == 20
    assert not train & val


@pytest.mark.parametrize(
    ("split", "number", "some"),
    [
        ("byclass", 62, {0: "0", 10: "A", 36: "a", 61: "z"}),
        ("bymerge", 47, {35: "Z", 36: "a", 38: "d", 46: "t"}),
        ("balanced", 47, {46: "t"}),
        ("letters", 26, {0: "a", 25: "z"}),
        ("digits", 10, {9: "9"}),
        ("mnist", 10, {9: "9"}),
    ],
)
def test_class_names_are_known_without_files(split, number, some):
    data = MNISTToEMNISTDataModule("nowhere", split=split)
    assert data.num_classes == number == len(set(data.class_names))
    assert {i: data.class_names[i] for i in some} == some


def test_prediction_batches_hold_indices_into_the_names(letters_root):
    data = make(letters_root, split="letters", batch_size=20)
    batches = list(data.predict_dataloader())
    assert torch.cat([i for _, i in batches]).tolist() == list(range(52))
    assert data.predict_paths[17] == "EMNIST/letters/test/17"
    assert batches[0][0].equal(next(iter(data.test_dataloader()))[0])


def test_images_take_the_size_of_the_spec(letters_root):
    data = make(letters_root, split="letters", spec=InputSpec(size=40, resize=48))
    assert next(iter(data.val_dataloader()))[0].shape == (26, 1, 40, 40)


def test_shots_leave_validation_and_test_whole(mnist_root):
    data = make(mnist_root, domain="source", shots=3)
    assert data.counts() == {"train": [3] * 10, "val": [2] * 10, "test": [3] * 10}


def test_basic_augmentation_shifts_and_none_does_not(mnist_root):
    def train(augment):
        data = make(mnist_root, domain="source", augment=augment, batch_size=80)
        data.order_seed = 3
        return next(iter(data.train_dataloader()))

    (plain, targets), (moved, same_targets) = train("none"), train("basic")
    assert targets.equal(same_targets)
    still = [i for i in range(80) if plain[i].equal(moved[i])]
    assert len(still) < 15  # 1 in 25 is shifted by nothing
    originals = {bytes(image) for image in noise(100)}
    assert all(bytes(image.numpy()) in originals for image in plain[:, 0])


def test_missing_file_tells_where_and_how(tmp_path):
    data = MNISTToEMNISTDataModule(str(tmp_path), split="letters")
    data.prepare_data()  # nothing is fetched unasked
    expected = rf"missing file {tmp_path}/EMNIST/raw/emnist-letters-train-images-idx3-ubyte .*data.download true"
    with pytest.raises(UserError, match=expected):
        data.setup()


def test_download_asks_torchvision_and_tells_of_failure(tmp_path, monkeypatch):
    asked = {}

    def fake(**options):
        asked.update(options)
        raise OSError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.EMNIST", fake)
    data = MNISTToEMNISTDataModule(str(tmp_path), split="letters", download=True)
    with pytest.raises(UserError, match=r"^data.download: failed \(no network\); .* in .*EMNIST/raw$"):
        data.prepare_data()
    assert asked == {"root": str(tmp_path), "split": "letters", "download": True}


def test_download_leaves_present_files_alone(letters_root, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.EMNIST", None)
    MNISTToEMNISTDataModule(str(letters_root), split="letters", download=True).prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "letter"}, "data.split: unknown split 'letter'; nearest: letters"),
        ({"domain": "mnist"}, "data.domain: unknown domain 'mnist'.*source, target"),
        ({"augment": "flip"}, "data.augment: unknown augment 'flip'"),
        ({"batch_size": 0}, "data.batch_size: 0 is less than 1"),
        ({"val_fraction": 0.0}, "data.val_fraction: 0.0 is not a fraction between 0 and 1"),
        ({"val_fraction": 1.0}, "data.val_fraction: 1.0 is not"),
        ({"shots": 0}, "data.shots: 0 is less than 1"),
        ({"split_seed": -1}, "data.split_seed: -1 is not between 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        MNISTToEMNISTDataModule("nowhere", **options)


def make_digits(**options):
    data = DigitsDataModule(spec=GREY, **options)
    data.setup()
    return data


def test_digits_are_drawn_in_the_middle_box_at_full_scale():
    drawn = mnist_format(np.full((1, 8, 8), 16.0))
    assert drawn.shape == (1, 1, 28, 28)
    assert drawn.dtype == torch.uint8
    assert drawn[0, 0, 4:24, 4:24].unique().tolist() == [255]
    assert int(drawn.sum()) == 255 * 20 * 20


def test_sizes_of_the_splits_of_digits():
    assert {name: sum(n) for name, n in make_digits(shots=None).counts().items()} == {
        "train": 497,
        "val": 300,
        "test": 1000,
    }
    assert make_digits().counts()["train"] == [10] * 10


def test_splits_of_digits_depend_on_the_split_seed_alone():
    def test_images(seed):
        torch.manual_seed(seed + 7)
        return next(iter(make_digits(split_seed=seed).test_dataloader()))[0]

    assert test_images(0).equal(test_images(0))
    assert not test_images(0).equal(test_images(1))


def test_shots_of_digits_nest():
    def train(shots):
        return {bytes(x.numpy()) for xs, _ in make_digits(shots=shots, augment="none").train_dataloader() for x in xs}

    assert len(train(1)) == 10
    assert train(1) < train(5)


def test_targets_belong_to_the_digits():
    # Nearest neighbours recognise 19 of 20 of these digits: targets in another order would give 1 in 10.
    data = make_digits(shots=None, augment="none", batch_size=1000)
    (x, y), (test_x, test_y) = next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))
    nearest = torch.cdist(test_x.flatten(1).float(), x.flatten(1).float()).argmin(1)
    assert (y[nearest] == test_y).float().mean() > 0.9


def test_too_many_shots_of_digits():
    with pytest.raises(UserError, match=r"data.shots: class '\d' has 4\d images to train on, 60 were asked"):
        make_digits(shots=60)
