import logging
import re
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from sklearn.utils.class_weight import compute_class_weight
from small_runs import small_module, small_trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.errors import UserError
from lit_ft.evaluation.run_report import RunReport
from lit_ft.features.cache import FeatureCache
from lit_ft.model.module import TakeClasses
from lit_ft.tasks.classes import balanced_weights, read_classes
from lit_ft.tasks.task import check_task
from lit_ft.unfreezing.callback import GradualUnfreezing

pytestmark = pytest.mark.filterwarnings("ignore")


class Numbered(L.LightningDataModule):
    """Somebody's own, with the number of its classes."""

    num_classes = 3

    def train_dataloader(self):
        images = torch.zeros(6, 1, 28, 28, dtype=torch.uint8)
        return DataLoader(TensorDataset(images, torch.arange(6) % 3), batch_size=3)

    val_dataloader = test_dataloader = train_dataloader


class NumberedInSetup(Numbered):
    num_classes = None

    def setup(self, stage):
        self.num_classes = np.int64(3)


class NamedInSetup(Numbered):
    num_classes = None
    class_names = ()

    def setup(self, stage):
        self.class_names = ("ant", "bee", "cat")


class CountedAndNumbered(NumberedInSetup):
    def counts(self):
        return {"train": [2, 2, 2]}


NAMES = {NamedInSetup: ["ant", "bee", "cat"]}
DATA = [Numbered, NumberedInSetup, NamedInSetup, CountedAndNumbered]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: [GradualUnfreezing("gradual"), FeatureCache(), RunReport()],
        lambda: [EMAWeightAveraging(decay=0.5), GradualUnfreezing("gradual")],
    ],
    ids=["usual", "averaged"],
)
def test_classes_of_any_data_module_are_known_to_every_callback(data, callbacks, tmp_path):
    module, callbacks = small_module(), callbacks()
    trainer = small_trainer(3, *callbacks, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data())
    assert module.class_names == NAMES.get(data, ["0", "1", "2"])
    assert module.head[-1].out_features == 3
    assert trainer.global_step == 6
    if hasattr(callbacks[0], "_average_model"):
        averaged = callbacks[0]._average_model.module.head[-1].weight
        assert averaged.shape == (3, 128)


@pytest.mark.parametrize("data", DATA)
def test_classes_of_any_data_module_are_enough_to_evaluate(data):
    module = small_module()
    results = small_trainer(1).validate(module, datamodule=data(), verbose=False)[0]
    assert "val/acc" in results
    assert module.class_names == NAMES.get(data, ["0", "1", "2"])


def test_classes_are_asked_for_where_there_are_none():
    class Nothing(Numbered):
        num_classes = None

    with pytest.raises(UserError, match=r"^classes: the data module names no classes; give FineTuneModule\(classes="):
        small_trainer(1, GradualUnfreezing()).fit(small_module(), datamodule=Nothing())


@pytest.mark.parametrize("number", [3, np.int64(3), torch.tensor(3)])
def test_number_of_classes_may_be_anybodys_whole_number(number):
    class Data:
        class_names = None
        num_classes = number

    assert read_classes(Data()) == 3
    assert type(read_classes(Data())) is int


class Another(L.LightningModule):
    def test_step(self, batch):
        pass


def test_what_makes_the_head_comes_first_and_once():
    trainer = small_trainer(1, GradualUnfreezing("full"))
    for _ in range(2):
        trainer.fit(small_module(), datamodule=Numbered())
    trainer.test(Another(), Numbered().test_dataloader(), verbose=False)  # which needs no classes
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds[0] is TakeClasses
    assert kinds.count(TakeClasses) == 1


class Uneven(Numbered):
    """Validation images of the first two classes alone."""

    def val_dataloader(self):
        images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
        return DataLoader(TensorDataset(images, torch.tensor([0, 1, 1, 0])), batch_size=3)


def test_classes_without_an_image_are_told_once_for_each_split():
    trainer = small_trainer(3, num_sanity_val_steps=1)
    with pytest.warns(UserWarning, match="classes") as caught:
        trainer.fit(small_module(), datamodule=Uneven())
    told = [str(warning.message) for warning in caught if "no image of" in str(warning.message)]
    assert told == ["val: no image of 1 of 3 classes (2); they are left out of the means of f1, precision, recall"]


def test_many_classes_without_an_image_are_counted():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with pytest.warns(UserWarning, match=r"^val: no image of 9,998 of 10,000 classes \(2, 3, 4, 5, 6, …\); they are"):
        small_trainer(1).validate(small_module(classes=10_000), Uneven().val_dataloader(), verbose=False)


ANIMALS = ["ant", "bee", "cat"]


class Data:
    """What a data module tells of its training images."""

    def __init__(self, counts, num_train=None):
        self._counts = counts
        if num_train is not None:
            self.sizes = lambda: {"train": num_train}

    def counts(self):
        return {"val": [1, 1, 1], **({"train": self._counts} if self._counts else {})}


def test_weights_of_one_class_an_image_are_those_of_scikit_learn():
    targets = np.repeat(np.arange(3), [6, 3, 1])
    found = balanced_weights("multiclass", Data([6, 3, 1]), ANIMALS)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=targets))


def test_weights_of_labels_let_those_with_and_those_without_weigh_alike():
    found = balanced_weights("multilabel", Data([8, 2, 5], num_train=10), ANIMALS)
    assert found.tolist() == [0.25, 4.0, 1.0]


def test_equal_classes_have_the_weight_one():
    assert balanced_weights("multiclass", Data([7, 7, 7]), ANIMALS).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("task", "data", "text"),
    [
        ("multiclass", None, "the data module has no counts() of the training images of each class; add that method"),
        ("multiclass", SimpleNamespace(), "the data module has no counts() of the training images of each class"),
        ("multiclass", SimpleNamespace(sampling="balanced"), "data.sampling balanced already lets all classes count"),
        ("multiclass", Data(None), "the data module has no counts() of the training images of each class"),
        ("multiclass", Data([5, 0, 0]), "no training image of bee, cat; leave such classes out, or set class_weight"),
        ("multilabel", Data([5, 0, 1], 9), "no training image of bee; leave such classes out, or set class_weight to"),
        ("multilabel", Data([5, 9, 1], 9), "every training image has bee; leave such classes out, or set class_weight"),
        ("multilabel", Data([5, 4, 1]), "the data module has no sizes() of the number of images of each split; add"),
    ],
)
def test_weights_that_nobody_knows_are_refused(task, data, text):
    with pytest.raises(UserError, match=f"^model.class_weight: {re.escape(text)}"):
        balanced_weights(task, data, ANIMALS)


def test_of_many_classes_without_images_five_are_named():
    with pytest.raises(UserError, match=r"no training image of 0, 1, 2, 3, 4, …; leave"):
        balanced_weights("multiclass", Data([0] * 9 + [1]), [str(i) for i in range(10)])


@pytest.mark.parametrize(
    ("given", "task", "text"),
    [
        ("balancd", "multiclass", "model.class_weight: unknown weight 'balancd'; nearest: balanced (choose from bal"),
        (
            "balanced",
            "regression",
            "model.class_weight: is for model.task multiclass or multilabel, not regression",
        ),
    ],
)
def test_weights_that_cannot_be_are_refused(given, task, text):
    with pytest.raises(UserError, match=f"^{re.escape(text)}"):
        check_task(task, 0.0, given)


@pytest.mark.parametrize(
    ("given", "task"), [(None, "regression"), ("balanced", "multiclass"), ("balanced", "multilabel")]
)
def test_weights_that_can_be_are_not_refused(given, task):
    check_task(task, 0.0, given)
