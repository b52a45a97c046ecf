from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import FewDigits

from lit_ft.data import ImageFolderDataModule
from lit_ft.evaluation import pictures
from lit_ft.evaluation.figures import draw_images
from lit_ft.evaluation.pictures import caption, describe_target, draw_first_images, read_images, read_sprites
from lit_ft.runs import Run
from lit_ft.tasks.task import Task
from lit_ft.training.selected import ValidationOutputs

FIRST = SimpleNamespace(is_global_zero=True)


def model_of(task, names):
    return SimpleNamespace(task=Task(task, len(names)), class_names=names)


@pytest.mark.parametrize(
    ("task", "names", "target", "expected"),
    [
        ("multiclass", ["ant", "bee\n"], torch.tensor(1), r"bee\n"),
        ("multiclass", ["ant", "bee", "cat"], torch.tensor([0.3, 0.0, 0.7]), "cat 70%\nant 30%"),
        ("multiclass", ["ant", "bee"], torch.tensor([0.0, 1.0]), "bee 100%"),
        ("multilabel", ["ant", "bee", "cat"], torch.tensor([1, 0, 1]), "ant, cat"),
        ("multilabel", ["ant", "bee"], torch.tensor([0, 0]), "none"),
        ("regression", ["age"], torch.tensor(41.5), "41.5"),
    ],
)
def test_target_in_words(task, names, target, expected):
    assert describe_target(target, model_of(task, names)) == expected


def test_caption_has_what_is_true_and_what_is_predicted():
    logits = torch.tensor([[0.0, 2.0]])
    outputs = ValidationOutputs(logits, torch.tensor([0]), None, torch.empty(0), {})
    assert caption(outputs, 0, model_of("multiclass", ["ant", "a very long name of a bee"])) == [
        "ant",
        "→ a very long… 88%",
    ]
    outputs = ValidationOutputs(logits, torch.tensor([[1, 1]]), None, torch.empty(0), {})
    assert caption(outputs, 0, model_of("multilabel", ["ant", "bee"])) == ["ant, bee", "→ bee"]


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(pictures, "takes_pictures", lambda trainer: True)
    monkeypatch.setattr(pictures, "draw_images", lambda images, captions: (images, captions))


@pytest.mark.usefixtures("drawn")
def test_training_images_are_shown_as_the_network_sees_them_with_their_labels():
    class Darkens:
        task, class_names = Task("multiclass", 2), ["ant", "bee"]

        def pictured(self, batch, batch_idx):
            return batch[0] // 2, 1 - batch[1]

    batch = torch.full((6, 3, 448, 224), 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 0, 0, 0])
    images, captions = draw_first_images(FIRST, Darkens(), batch, 2, None)
    assert captions == [["bee"], ["ant"]]
    assert images.shape == (2, 3, 112, 56)
    assert images.eq(4).all()


@pytest.mark.parametrize("batch", [{"image": 1}, (torch.zeros(2, 3, 8, 8), torch.zeros(2)), torch.zeros(1)])
@pytest.mark.usefixtures("drawn")
def test_other_batches_have_no_picture(batch, tmp_path):
    assert draw_first_images(FIRST, None, batch, 2, Run(tmp_path)) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_first", [True, False])
def test_training_images_are_in_the_folder_of_the_run_also_without_a_logger(tmp_path, is_first):
    trainer, run = SimpleNamespace(loggers=[], is_global_zero=is_first), Run(tmp_path / "run")
    batch = torch.full((6, 3, 224, 224), 90, dtype=torch.uint8), torch.tensor([0, 1, 0, 0, 0, 0])
    draw_first_images(trainer, model_of("multiclass", ["ant", "bee"]), batch, 6, run)
    assert run.train_images.is_file() == is_first
    if is_first:
        with Image.open(run.train_images) as picture:
            assert (picture.format, picture.size) == ("JPEG", (6 * 120, 112 + 8 + 15))
            assert abs(picture.getpixel((660, 60))[0] - 90) < 5
        draw_first_images(trainer, model_of("multiclass", ["ant", "bee"]), batch, 6, None)  # as in a trial run
        assert [file.name for file in run.folder.iterdir()] == ["train_images.jpg"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_stand_in_rows_with_captions_below(channels):
    images = torch.zeros(3, channels, 32, 24, dtype=torch.uint8)
    images[2] = 200
    pixels = np.array(draw_images(images, [["$a_1$"], ["b", "c"], ["猫\n"]], columns=2))
    height, width = 3 * 32 + 8 + 30, 112 + 8  # three times as large, in columns as wide as captions
    assert pixels.shape == (2 * height, 2 * width, 3)
    assert (pixels[4:100, 24:96] == 0).all()
    assert (pixels[height + 4 : height + 100, 24:96] == 200).all()
    assert (pixels[height:, width:] == 255).all()  # no fourth image
    assert (pixels[101:height, :width] < 128).any()


def test_photos_are_read_as_they_are_evaluated_and_as_sprites(photo_root):
    data = ImageFolderDataModule(str(photo_root), num_workers=0)
    data.setup()
    rows = torch.tensor([2, 0])
    images = read_images(data, rows)
    assert (images.shape[0], max(images.shape[2:])) == (2, 112)
    sprites = read_sprites(data, torch.arange(3))
    assert sprites.shape == (3, 3, 48, 48)
    assert (images[0].amax(dim=(1, 2)).int() - sprites[2].amax(dim=(1, 2)).int()).abs().max() <= 2


def test_sprites_have_the_pixels_that_the_network_gets(photo_root):
    files = sorted(photo_root.glob("*/*.png"))
    for file in files[::2]:
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(file)
    for file in files[1::2]:
        Image.fromarray(np.full((8, 8), 100 * 256, np.uint16)).save(file)
    data = ImageFolderDataModule(str(photo_root), num_workers=0)
    with pytest.warns(UserWarning, match="of 16 bits"):
        data.setup()
    values = {int(sprite.max()) for sprite in read_sprites(data, torch.arange(len(data.splits["val"])))}
    assert values == {100, 255}


def test_arrays_have_sprites_in_three_channels():
    data = FewDigits()
    data.setup()
    sprites = read_sprites(data, torch.arange(4))
    assert sprites.shape == (4, 3, 48, 48)
    assert sprites[:, 0].equal(sprites[:, 2])
