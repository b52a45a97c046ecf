"""Data modules and modules of the user's own by the command line."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

pytestmark = [pytest.mark.usefixtures("lit_ft"), pytest.mark.filterwarnings("ignore")]

OWN = """
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.model.module import FineTuneModule


class Numbered(L.LightningDataModule):
    num_classes = 3

    def train_dataloader(self):
        images = torch.zeros(6, 1, 28, 28, dtype=torch.uint8)
        return DataLoader(TensorDataset(images, torch.arange(6) % 3), batch_size=3)

    val_dataloader = train_dataloader


class NamedInSetup(Numbered):
    num_classes = None

    def setup(self, stage):
        self.class_names = ["ant", "bee", "cat"]


class Tested(NamedInSetup):
    test_dataloader = Numbered.train_dataloader


class TooFew(Numbered):
    def train_dataloader(self):
        images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
        return DataLoader(TensorDataset(images, torch.arange(2)), batch_size=3, drop_last=True)


class FromOne(Numbered):
    def train_dataloader(self):
        images = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
        return DataLoader(TensorDataset(images, torch.arange(3) + 1), batch_size=3)


class Wide(Numbered):
    def train_dataloader(self):
        images = torch.zeros(6, 1, 32, 32, dtype=torch.uint8)
        return DataLoader(TensorDataset(images, torch.arange(6) % 3), batch_size=3)

    val_dataloader = train_dataloader


class Faulty(Numbered):
    @property
    def num_classes(self):
        return self.missing


class Worded(Numbered):
    num_classes = "3"


class Fixed(FineTuneModule):
    def __init__(self, rate: float = 1e-3):
        super().__init__("mnist_cnn", weights=None, lr=rate)


class Numeric(FineTuneModule):
    def __init__(self, rate: float = 1e-3):
        super().__init__("mnist_cnn", weights=None, lr=rate, task="regression")


class Own(FineTuneModule):
    def __init__(self, alpha: float = 0.5, **options):
        super().__init__(**options)
        self.alpha = alpha
"""

QUICK = ("--trainer.max_epochs", 2, "--model.weights", "null", "--report.num_images", 0)
RUN = Path("logs/run/version_0")


@pytest.fixture
def own(monkeypatch, tmp_path):
    """The name of a module of the user's own."""
    (tmp_path / "own_classes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_classes"


@pytest.mark.parametrize("data", ["Numbered", "NamedInSetup", "Tested"])
def test_own_data_module_is_planned_finetuned_and_perhaps_tested(run, own, data):
    given = ("--data", f"{own}.{data}")
    assert " 387 (0.1%) " in run("plan", *given, *QUICK)  # a head of 128 x 3 weights and 3 biases
    printed = run("finetune", *given, *QUICK)
    assert f"Best model   {RUN / 'checkpoints/best.ckpt'}  (val/acc " in printed
    assert ("test/acc" in printed) is (data == "Tested")
    names = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]["classes"]
    assert names == (["0", "1", "2"] if data == "Numbered" else ["ant", "bee", "cat"])


@pytest.mark.parametrize("data", ["Numbered", "Tested"])
def test_command_that_tests_is_printed_for_data_that_can_be_tested(run, own, data):
    printed = run("fit", "--data", f"{own}.{data}", *QUICK, "--unfreeze", "null")
    assert f"Predict      lit-ft predict {RUN / 'checkpoints/best.ckpt'} PHOTOS" in printed
    assert ("Test         lit-ft test " in printed) is (data == "Tested")


def test_command_that_tests_is_printed_where_there_are_test_images(run, photo_root):
    photos = ("--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.num_workers", 0)
    for fraction in (0, 0.2):
        printed = run("fit", *photos, *QUICK, "--unfreeze", "null", "--data.test_fraction", fraction)
        assert ("Test         lit-ft test " in printed) is (fraction > 0)


def test_data_that_cannot_be_trained_on_ends_in_one_line(refused, own):
    line = refused("finetune", "--data", f"{own}.TooFew", *QUICK)
    assert line == (
        "lit-ft: train_dataloader: nothing was trained, as drop_last leaves no batch: 2 images make none of 3; give a "
        "smaller batch_size, or set drop_last to false"
    )
    line = refused("finetune", "--data", f"{own}.FromOne", *QUICK)
    assert line == "lit-ft: train_dataloader: targets run from 1 to 3, expected 0 to 2; count classes from 0"


@pytest.mark.long
def test_own_module_is_trained_and_predicts(run, own):
    options = ("--model", f"{own}.Own", "--model.alpha", 0.75, "--model.backbone", "mnist_cnn")
    run("fit", *options, "--trainer.max_epochs", 1, "--model.weights", "null", "--unfreeze", "null")
    assert yaml.safe_load((RUN / "hparams.yaml").read_text())["alpha"] == 0.75
    run("predict", "--config", RUN / "config.yaml", "--ckpt_path", RUN / "checkpoints/best.ckpt")
    assert len((RUN / "predictions.csv").read_text().splitlines()) > 100


@pytest.mark.long
def test_own_module_without_the_options_of_its_base_is_trained_and_tested(run, own):
    options = ("--model", f"{own}.Fixed", "--model.rate", 0.01, "--data", f"{own}.Tested", "--report.num_images", 0)
    assert "test/acc" in run("finetune", *options, "--trainer.max_epochs", 2)
    assert yaml.safe_load((RUN / "hparams.yaml").read_text())["rate"] == 0.01
    assert "test/acc" in run("test", "--config", RUN / "config.yaml", "--ckpt_path", RUN / "checkpoints/best.ckpt")


@pytest.mark.long
def test_own_module_that_fixes_the_task_is_chosen_by_the_metric_of_that_task(run, refused, own):
    Path("photos").mkdir()
    rows = ["path,label"]
    for place in range(20):
        Image.new("L", (28, 28), 10 * place).save(f"photos/{place}.png")
        rows.append(f"{place}.png,{place / 20}")
    Path("photos/table.csv").write_text("\n".join(rows) + "\n")
    data = ("--data", "ImageTableDataModule", "--data.table", "photos/table.csv", "--data.task", "regression")
    given = ("--model", f"{own}.Numeric", *data, "--trainer.max_epochs", 2, "--report.num_images", 0)
    assert f"Best model   {RUN / 'checkpoints/best.ckpt'}  (val/mse " in run("finetune", *given)
    config = yaml.safe_load((RUN / "config.yaml").read_text())["checkpoint"]["init_args"]
    assert (config["monitor"], config["mode"]) == ("val/mse", "min")
    # It may log others, so that just a validation shows which.
    line = refused("finetune", *given, "--checkpoint.monitor", "val/acc")
    assert line.startswith("lit-ft: `ModelCheckpoint(monitor='val/acc')` could not find the monitored key in the")


@pytest.mark.long
def test_images_of_a_size_that_the_network_does_not_take_are_told_with_one_that_it_does(run, refused, own):
    given = ("--data", f"{own}.Wide", *QUICK)
    line = refused("finetune", *given)
    assert line == (
        "lit-ft: the images are 32 x 32, and the network, made for 28 x 28, does not take them (mat1 and mat2 shapes "
        "cannot be multiplied (3x7200 and 5408x128)); give those, or --model.input.size 32"
    )
    assert "Best model" in run("finetune", *given, "--model.input.size", 32)
    line = refused("finetune", *given, "--model.backbone", "vit_b_16")  # which asserts its size
    assert line.startswith("lit-ft: the images are 32 x 32, and the network, made for 224 x 224, does not take them (")


def test_fault_in_a_property_of_an_own_data_module_is_not_taken_for_no_classes(lit_ft, refused, own):
    with pytest.raises(AttributeError, match="missing"):
        lit_ft("finetune", "--data", f"{own}.Faulty", *QUICK)
    line = refused("finetune", "--data", f"{own}.Worded", *QUICK)
    assert line == "lit-ft: Worded.num_classes: expected a whole number, got '3'"


@pytest.fixture
def shades(photo_root):
    """The photos, with how bright each is, between two years."""
    path = photo_root / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "warm", "even", "year"])
        for kind in ("ant", "bee", "cat"):
            for i in range(10):
                writer.writerow([f"{kind}/{i}.png", int(kind == "ant"), 1 - i % 2, 1990 - i])
    return path


@pytest.mark.parametrize(("task", "columns"), [("multilabel", "[warm, even]"), ("regression", "[year]")])
def test_recipe_with_label_smoothing_takes_any_task_and_tells_what_is_left_out(lit_ft, shades, task, columns):
    recipe = Path(__file__).parents[2] / "configs" / "image_folder_gradual.yaml"
    data = ("--data", "ImageTableDataModule", "--data.table", shades, "--data.label_columns", columns)
    quick = ("--trainer.fast_dev_run", 2, "--model.backbone", "mnist_cnn", "--model.weights", "null")
    with pytest.warns(UserWarning, match="`model.label_smoothing`: 0.1 is left out, as it is for `model.task` multicl"):
        code, _, lines = lit_ft("finetune", "--config", recipe, *data, *quick, "--model.task", task)
    assert code == 0, lines


def test_diverged_run_ends_in_one_line(refused, shades):
    data = ("--data", "ImageTableDataModule", "--data.table", shades, "--data.label_columns", "[year]")
    quick = ("--model.weights", "null", "--model.task", "regression", "--data.num_workers", 0, "--data.batch_size", 8)
    line = refused(
        "fit", *data, *quick, "--unfreeze", "null", "--optimizer", "SGD", "--lr_scheduler", "null", "--model.lr", 1e9
    )
    assert " is not finite in step " in line
    assert "(learning rate 1e+09, largest gradient in " in line
    assert "inf)" not in line
