from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_files import noise, save_photo
from PIL import Image

from lit_ft.data.datasets.classes import DatasetClass
from lit_ft.data.datasets.forms import read_arrays, read_files, read_targets, source_file, takes_paths
from lit_ft.data.datasets.items import Reader


class Held:
    """Images in memory, of which items may be other ones."""

    def __init__(self, data, turned=False, **others):
        self.data, self.turned = data, turned
        vars(self).update(others)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image = np.asarray(self.data[index])
        return Image.fromarray(image.T if self.turned else image), index % 3


@pytest.mark.parametrize("data", [noise(9), torch.from_numpy(noise(9))])
def test_images_in_memory_are_taken_if_items_are_the_same(data):
    assert read_arrays(Reader(Held(data), "s", "train")).shape == (9, 1, 28, 28)
    assert read_arrays(Reader(Held(data, turned=True), "s", "train")) is None  # as those of EMNIST are not


@pytest.mark.parametrize("data", ["text here", noise(9).astype(float), noise(9)[:, 0]])
def test_other_data_of_that_name_is_no_images(data):
    held = Held(noise(9))
    held.data = data
    held.__class__ = type("Other", (Held,), {"__getitem__": lambda self, i: (None, 0), "__len__": lambda self: 9})
    assert read_arrays(Reader(held, "s", "train")) is None


def test_public_targets_are_taken_if_items_have_the_same():
    right, wrong = [number % 3 for number in range(9)], [0] * 9
    for others in ({"targets": right}, {"labels": np.array(right)}, {"targets": wrong, "y": torch.tensor(right)}):
        held = Held(noise(9), **others)
        held.read = 0
        assert read_targets(Reader(held, "s", "train"), others_key(others), None).tolist() == right


def others_key(others):
    return sorted(others)


def test_targets_of_items_are_read_where_there_are_no_public_ones():
    assert read_targets(Reader(Held(noise(9), targets=[0] * 9), "s", "train"), "wrong", None).tolist() == [0, 1, 2] * 3


def test_targets_of_ones_own_class_are_read_each_time():
    """As they may come from anywhere, such as a table that is corrected."""
    assert source_file(DatasetClass("test_forms.Held", Held)) is None
    data = noise(30)
    for shift in (0, 1):
        turned = type("Turned", (Held,), {"__getitem__": lambda self, i, s=shift: (data[i], int(i == 1) * s)})
        assert sum(read_targets(Reader(turned(data), "s", "train"), "cell", None)) == shift  # row 1 is not looked at


def test_frames_after_the_first_are_not_taken_for_their_file(tmp_path):
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 100, 200)]
    frames[0].save(tmp_path / "all.tif", save_all=True, append_images=frames[1:])

    class Frames(Held):
        def __getitem__(self, index):
            image = Image.open(tmp_path / "all.tif")
            image.seek(index)
            return image, index

    reader = Reader(Frames(noise(3)), "s", "train")
    assert read_files(reader) is None
    assert [int(reader.to_photo(reader.read(i)[0], i)[0, 0, 0]) for i in range(3)] == [0, 100, 200]


def test_files_are_found_by_their_path_or_as_pillow_has_opened_them(tmp_path):
    for number in range(3):
        save_photo(tmp_path / "a" / f"{number}.png")
    paths = sorted((tmp_path / "a").iterdir())
    opened = SimpleNamespace(get=lambda index: (Image.open(paths[index]), index))
    for get in (opened.get, lambda index: (str(paths[index]), index), lambda index: (paths[index], index)):
        found, values = read_files(Reader(Listed(get), "s", "train"))
        assert [found.full(index) for index in range(3)] == [str(path) for path in paths]
        assert list(found.names()) == ["0.png", "1.png", "2.png"]
        assert values.tolist() == [0, 1, 2]
    for change in (lambda image: image.convert("L"), lambda image: image.load() and image, np.asarray):
        changed = Listed(lambda index, change=change: (change(Image.open(paths[index])), index))
        assert read_files(Reader(changed, "s", "train")) is None


class Listed:
    def __init__(self, get):
        self.get = get

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.get(index)


@pytest.mark.parametrize(
    ("name", "takes"),
    [("Flowers102", True), ("ImageFolder", True), ("ImageNet", True), ("Omniglot", True), ("GTSRB", False)],
)
def test_classes_with_torchvisions_loader_can_leave_it_out(name, takes):
    assert takes_paths(DatasetClass.find(name)) == takes
