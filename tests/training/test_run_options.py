"""What a resumed run may have otherwise than the one that wrote its checkpoint, by hand and by the command line."""

from enum import Enum
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.cli.config.known_names import class_options
from lit_ft.data import (
    CIFAR10DataModule,
    DigitsDataModule,
    ImageFolderDataModule,
    ImageTableDataModule,
    MNISTToEMNISTDataModule,
    StreamDataModule,
)
from lit_ft.errors import UserError
from lit_ft.features.cache import FeatureCache
from lit_ft.model.module import FineTuneModule
from lit_ft.training.run_options import MAY_DIFFER, refuse_other_options, run_options
from lit_ft.unfreezing.callback import GradualUnfreezing


class Choice(Enum):
    FIRST = "first"


DATA = [
    CIFAR10DataModule, DigitsDataModule, ImageFolderDataModule, ImageTableDataModule, MNISTToEMNISTDataModule,
    StreamDataModule,
]  # fmt: skip


def test_each_exception_is_an_option_that_there_is():
    known = {f"trainer.{option}" for option in class_options(L.Trainer)}
    known |= {f"model.{option}" for option in class_options(FineTuneModule)} | {"model.source_weights"}
    known |= {f"data.{option}" for cls in DATA for option in class_options(cls)}
    assert known >= MAY_DIFFER


def test_defaults_are_those_of_the_class_and_its_parents():
    config = {"trainer": {}, "data": {"class_path": "lit_ft.data.DigitsDataModule", "init_args": {"shots": 3}}}
    found = run_options({**config, "seed_everything": 4})
    assert found["data"] == "lit_ft.DigitsDataModule"
    expected = {"shots": 3, "augment": "basic", "batch_size": 32, "split_seed": 0, "sampling": "shuffle"}
    assert {key: found[f"data.{key}"] for key in expected} == expected
    assert (found["seed_everything"], found["unfreeze"]) == (4, None)


def test_options_are_of_types_that_a_checkpoint_holds_and_the_same_in_every_process(tmp_path):
    given = {"size": (np.float64(0.5), 2), "choice": Choice.FIRST, "function": swap, "kind": FewDigits, "others": {3}}
    saved = run_options({"trainer": given})
    assert {key.removeprefix("trainer."): value for key, value in saved.items() if "callbacks" not in key} == {
        "seed_everything": None, "model": None, "data": None, "unfreeze": None,
        "size": [0.5, 2], "choice": "first", "function": f"{__name__}.swap", "kind": "small_runs.FewDigits",
        "others": "{3}",
    }  # fmt: skip
    torch.save(saved, tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True) == saved


def test_length_of_the_last_phase_may_differ():
    found = []
    for last, first in ((3, 1), (5, 1), (3, 2)):
        phases = [{"train": ["head"], "epochs": first}, {"train": ["*"], "epochs": last}]
        unfreeze = {"class_path": "lit_ft.GradualUnfreezing", "init_args": {"strategy": "phases", "phases": phases}}
        found.append(run_options({"trainer": {}, "unfreeze": unfreeze}))
    refuse_other_options("x.ckpt", found[0], found[1])
    with pytest.raises(UserError, match=r"^ckpt_path: x.ckpt is of a run with unfreeze.phases \[.*, but this one"):
        refuse_other_options("x.ckpt", found[0], found[2])


def test_callbacks_that_average_weights_may_not_differ_and_others_may():
    path = "lightning.pytorch.callbacks"
    averaging = {"class_path": f"{path}.EMAWeightAveraging", "init_args": {"decay": 0.9}}
    monitor = {"class_path": f"{path}.LearningRateMonitor"}
    plain, shown, averaged = (
        run_options({"trainer": {"callbacks": given}}) for given in (None, [monitor], [monitor, averaging])
    )
    refuse_other_options("x.ckpt", plain, shown)
    with pytest.raises(UserError, match=r"trainer.callbacks \[\], but this one has \[.*EMAWeightAveraging"):
        refuse_other_options("x.ckpt", shown, averaged)


def test_option_that_an_earlier_version_did_not_save_may_be_any():
    refuse_other_options("x.ckpt", {"seed_everything": 1}, {"seed_everything": 1, "trainer.gradient_clip_val": 2.0})


PHOTOS = ("--data", "ImageFolderDataModule", "--data.num_workers", 0, "--model.weights", "null")
SMALL = ("--model.input.size", 28, "--unfreeze.strategy", "full", "--data.batch_size", 4, "--seed_everything", 5)


@pytest.fixture
def resume(run, photo_root):
    """The command that resumes a run of one epoch on photos, and what was saved of it."""
    args = ("fit", *PHOTOS, "--data.root", photo_root, *SMALL)
    run(*args, "--trainer.max_epochs", 1)
    path = Path("logs/run/version_0/checkpoints/last.ckpt")
    return (*args, "--trainer.max_epochs", 2, "--ckpt_path", path), torch.load(path, weights_only=True)


def test_run_is_resumed_with_what_may_differ(resume, run, photo_root, tmp_path):
    args, saved = resume
    assert saved["run_options"]["data.augment"] == "basic"
    photo_root.rename(tmp_path / "moved")
    more = ("--data.root", tmp_path / "moved", "--data.batch_size", 5, "--trainer.accumulate_grad_batches", 2)
    run(*args, *more, "--data.cache", tmp_path / "cache", "--trainer.precision", "bf16-mixed", "--report", "null")
    assert torch.load(args[-1], weights_only=True)["epoch"] == 1


OTHERS = [
    (("--data.augment", "none"), "--data.augment basic, but this one has none"),
    (("--data.val_fraction", 0.3), "--data.val_fraction 0.2, but this one has 0.3"),
    (("--data.groups", "([0-9])"), "--data.groups null, but this one has ([0-9])"),
    (("--unfreeze.frozen_norm", "train"), "--unfreeze.frozen_norm eval, but this one has train"),
    (("--unfreeze", "null"), "--unfreeze lit_ft.GradualUnfreezing, but this one has null"),
    (("--seed_everything", 6), "--seed_everything 5, but this one has 6"),
    (("--trainer.gradient_clip_val", 1), "--trainer.gradient_clip_val null, but this one has 1"),
    (("--model.lr", 0.5), "--model.lr 0.001, but this one has 0.5"),
    (("--optimizer", "SGD"), "--model.optimizer AdamW, but this one has {'class_path': 'torch.optim.SGD'"),
]


@pytest.mark.long
def test_run_is_not_resumed_with_another_option(resume, refused):
    args, before = resume
    for changed, told in OTHERS:
        line = refused(*args, *changed)
        assert f"--ckpt_path: {args[-1]} is of a run with {told}" in line
        assert line.endswith(f"; give the same, or start from its weights with --model.weights {args[-1]}")
        assert torch.load(args[-1], weights_only=True)["global_step"] == before["global_step"]


def swap(photo_root):
    for source, target in (("ant", "spare"), ("bee", "ant"), ("spare", "bee")):
        (photo_root / source).rename(photo_root / target)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda root: (root / "bee" / "3.png").unlink(),
            "is of a run with 10 images of bee, but now there are 9;",
        ),
        (swap, "is of a run in which ant and bee were the other way round; give the same"),
    ],
    ids=["photo_missing", "classes_swapped"],
)
def test_run_is_not_resumed_with_other_images(resume, refused, photo_root, change, told):
    change(photo_root)
    assert told in refused(*resume[0])


def test_checkpoint_of_an_earlier_version_is_resumed_as_far_as_it_can_be_compared(resume, run, refused):
    args, saved = resume
    for key in ("run_options", "images", "epoch_steps"):
        del saved[key]
    torch.save(saved, args[-1])
    assert "--model.lr 0.001, but this one has 0.5" in refused(*args, "--model.lr", 0.5)
    run(*args)


@pytest.mark.filterwarnings("ignore")
def test_fit_from_python_is_not_resumed_with_other_images_or_classes(tmp_path):
    trainer = small_trainer(1, GradualUnfreezing("full"), FeatureCache(), limit_val_batches=1)
    trainer.fit(small_module(), datamodule=FewDigits())
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(UserError, match=r"run.ckpt is of a run with \d+ images of 0, but now there are \d+; give the"):
        small_trainer(2).fit(small_module(), datamodule=FewDigits(shots=3), ckpt_path=path)

    class Renamed(FewDigits):
        @property
        def class_names(self):
            return [str(9 - digit) for digit in range(10)]

    with pytest.raises(UserError, match=r"run.ckpt is of a run with the classes \['0', '1', .*, not \['9', '8', '7'"):
        small_trainer(2).fit(small_module(), datamodule=Renamed(), ckpt_path=path)
    small_trainer(2, GradualUnfreezing("full")).fit(small_module(), datamodule=FewDigits(batch_size=7), ckpt_path=path)
