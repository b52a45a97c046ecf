import re
import warnings

import pytest
import torch
from small_runs import small_module, small_trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_ft.errors import UserError
from lit_ft.evaluation.run_report import RunReport
from lit_ft.model.first_batch import check_images, check_pair
from lit_ft.model.module import FineTuneModule
from lit_ft.model.preprocessing import Normalise
from lit_ft.tasks.task import Task

IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
CLASSES = torch.arange(4)
IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), torch.channels_last)
UNIFORM = torch.linspace(0, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)

PAIR = "expected a pair of images (B, C, H, W) and targets (B,)"
WANTED = "expected uint8 or normalised float (B, 3, H, W)"
CLASSES_WANTED = "expected int64 (B,) from 0 to 3, or shares (B, 4)"


@pytest.mark.parametrize(
    ("task", "batch", "told"),
    [
        ("multiclass", {"image": IMAGES, "label": CLASSES}, f"a batch is a dict of image, label, {PAIR}"),
        ("multiclass", (IMAGES, CLASSES, CLASSES), f"a batch is a tuple of 3, {PAIR}"),
        ("multiclass", IMAGES, f"a batch is uint8 (4, 3, 8, 8), {PAIR}"),
        ("multiclass", ([1, 2], CLASSES), f"images are a list of 2, {WANTED}"),
        ("multiclass", (IMAGES.long(), CLASSES), f"images are int64 (4, 3, 8, 8), {WANTED}"),
        ("multiclass", (IMAGES[:, 0], CLASSES), f"images are uint8 (4, 8, 8), {WANTED}"),
        (
            "multiclass", (IMAGES.permute(0, 2, 3, 1), CLASSES),
            f"images are uint8 (4, 8, 8, 3), {WANTED}, with the channels first",
        ),
        ("multiclass", (IMAGES, CLASSES[:3]), "a batch has 4 images and 3 targets, expected one for each"),
        ("multiclass", (IMAGES, ["a"] * 4), "targets are a list of 4, expected a tensor (B,)"),
        ("multiclass", (IMAGES, CLASSES + 1), "targets run from 1 to 4, expected 0 to 3; count classes from 0"),
        ("multiclass", (IMAGES, CLASSES - 1), "targets run from -1 to 2, expected 0 to 3"),
        ("multiclass", (IMAGES, CLASSES.float()), f"targets are float32 (4,), {CLASSES_WANTED}"),
        ("multiclass", (IMAGES, CLASSES.view(4, 1)), f"targets are int64 (4, 1), {CLASSES_WANTED}"),
        ("multilabel", (IMAGES, CLASSES), "targets are int64 (4,), expected (B, 4) from 0 to 1"),
        ("multilabel", (IMAGES, torch.full((4, 4), 2)), "targets run to 2, expected (B, 4) from 0 to 1"),
        ("regression", (IMAGES, torch.zeros(4, 3)), "targets are float32 (4, 3), expected numbers (B, 4)"),
        ("regression", (IMAGES, torch.full((4, 4), torch.inf)), "targets have values that are not finite"),
        (
            "regression", (IMAGES, torch.zeros(4, 4, dtype=torch.bfloat16)),
            "targets are bfloat16, which has too few digits, and so rounds them; expected float32 or float64: give "
            "trainer.precision bf16-mixed or 16-mixed instead of bf16-true or 16-true",
        ),
        (
            "multiclass", (255 * UNIFORM, CLASSES),
            "images are float from 0 to 255, expected uint8, or float that is normalised, which lies within -2.12 and "
            "2.64",
        ),
        ("multiclass", (UNIFORM / 0, CLASSES), "images have values that are not finite"),
    ],
)  # fmt: skip
def test_batch_that_cannot_be_is_told_with_what_is_expected(task, batch, told):
    with pytest.raises(UserError, match=f"^val_dataloader: {re.escape(told)}$"):
        check_pair(batch, "val", Task(task, 4), IMAGENET)


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        ("multiclass", CLASSES),
        ("multiclass", CLASSES.to(torch.uint8)),
        ("multiclass", torch.eye(4)),
        ("multiclass", torch.eye(4).long()),
        ("multilabel", torch.eye(4).bool()),
        ("multilabel", torch.eye(4).double()),
        ("regression", torch.randn(4, 4)),
        ("regression", torch.arange(16).view(4, 4)),
    ],
)
@pytest.mark.parametrize("images", [IMAGES, IMAGES[:, :1], IMAGENET(IMAGES), IMAGENET(IMAGES).half(), 4 * UNIFORM - 2])
def test_batch_that_is_as_expected_is_taken_without_a_word(task, targets, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pair([images, targets], "train", Task(task, 4), IMAGENET)


def test_numbers_of_one_target_need_no_second_dimension():
    check_pair((IMAGES, torch.arange(4.0)), "train", Task("regression", 1), IMAGENET)


@pytest.mark.parametrize(("images", "high"), [(UNIFORM, "1"), (10 * UNIFORM, "10")])
def test_floats_that_may_not_be_normalised_are_warned_of(images, high):
    text = rf"^train_dataloader: images are float from 0 to {high}, as if they were not normalised; expected uint8, or "
    with pytest.warns(UserWarning, match=text):
        check_images(images, "train", IMAGENET)


def test_floats_are_judged_by_the_normalisation_of_the_model():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_images(UNIFORM, "train", Normalise((0.0,) * 3, (1.0,) * 3, torch.channels_last))
        check_images(255 * UNIFORM, "train", Normalise((0.0,) * 3, (1 / 255,) * 3, torch.channels_last))


# In runs


def images_of(num, channels=1):
    return torch.zeros(num, channels, 28, 28, dtype=torch.uint8)


def loader(*tensors, **options):
    return DataLoader(TensorDataset(*tensors), **{"batch_size": 4, **options})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sanity", [0, 2])
def test_first_batch_of_a_run_is_checked_before_anything_else_looks_at_it(sanity, tmp_path):
    dicts = [{"image": images_of(4), "label": CLASSES}]
    split = "val" if sanity else "train"
    trainer = small_trainer(1, RunReport(), num_sanity_val_steps=sanity, logger=True, default_root_dir=tmp_path)
    with pytest.raises(UserError, match=f"^{split}_dataloader: a batch is a dict of image, label, "):
        trainer.fit(small_module(classes=10), DataLoader(dicts, batch_size=None), DataLoader(dicts, batch_size=None))


@pytest.mark.filterwarnings("ignore")
def test_class_that_there_is_none_of_is_found_in_any_batch_on_a_cpu():
    data = loader(images_of(8), torch.tensor([1, 2, 3, 4, 5, 6, 7, 10]))
    with pytest.raises(UserError, match=r"^train_dataloader: targets run from 5 to 10, expected 0 to 9; count classes"):
        small_trainer(1).fit(small_module(classes=10), data)


@pytest.mark.filterwarnings("ignore")
def test_predicted_images_are_checked():
    with pytest.raises(UserError, match=r"^predict_dataloader: images are uint8 \(4, 28, 28, 1\), expected .*first$"):
        small_trainer(1).predict(small_module(classes=10), loader(images_of(4).permute(0, 2, 3, 1)))


@pytest.mark.filterwarnings("ignore")
def test_step_of_a_subclass_takes_what_batches_it_likes(tmp_path):
    class Own(FineTuneModule):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["image"], batch["label"]), batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step((batch["image"], batch["label"]), batch_idx)

    dicts = DataLoader([{"image": images_of(4), "label": CLASSES}], batch_size=None)
    trainer = small_trainer(1, RunReport(), logger=True, default_root_dir=tmp_path)
    trainer.fit(Own("mnist_cnn", weights=None, classes=10), dicts, dicts)
    assert trainer.global_step == 1


class Stream(IterableDataset):
    def __init__(self, num):
        self.num = num

    def __iter__(self):
        return iter([(images_of(1)[0], 0)] * self.num)


class Sized(Stream):
    def __len__(self):
        return self.num


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            loader(images_of(3), CLASSES[:3], drop_last=True),
            "nothing was trained, as drop_last leaves no batch: 3 images make none of 4; give a smaller batch_size, or "
            "set drop_last to false",
        ),
        (DataLoader(Stream(0)), "nothing was trained, as it gives no batch"),
    ],
)
@pytest.mark.parametrize("schedule", [None, "StepLR"])
def test_run_in_which_nothing_is_trained_is_an_error(data, told, schedule):
    schedule = schedule and {"class_path": schedule, "init_args": {"step_size": 1}}
    module = small_module(classes=10, lr_scheduler=schedule)
    with pytest.raises(UserError, match=f"^train_dataloader: {told}$"):
        small_trainer(2).fit(module, data)


@pytest.mark.filterwarnings("ignore")
def test_run_of_no_epochs_is_as_it_was_asked_for():
    small_trainer(0).fit(small_module(classes=10, lr_scheduler=None), loader(images_of(4), CLASSES))


@pytest.mark.filterwarnings("ignore")
def test_stream_is_scheduled_by_its_length_or_by_epochs_or_as_is_advised():
    def steps(stream, schedule="WarmupCosine", **options):
        trainer = small_trainer(3, **options)
        trainer.fit(small_module(classes=10, lr_scheduler=schedule), DataLoader(stream, batch_size=2))
        return trainer.lr_scheduler_configs[0].scheduler.total_steps, trainer.global_step

    assert steps(Sized(8)) == (12, 12)
    assert steps(Stream(8)) == (3, 12)  # a step of the schedule is an epoch
    with pytest.raises(UserError, match=r"OneCycleLR needs the number of steps, .* set trainer.max_steps, or take W"):
        steps(Stream(8), "OneCycleLR")
    assert steps(Stream(8), "OneCycleLR", max_steps=5) == (5, 5)
    assert steps(Stream(8), limit_train_batches=3) == (9, 9)
