from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from lit_ft.data.datasets.items import Items, ItemSplit, Reader, plain_value, stack_values
from lit_ft.errors import UserError
from lit_ft.own_code import UserCodeError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
FIRST = torch.from_numpy(PIXELS).permute(2, 0, 1)
FORMS = {
    "Pillow": Image.fromarray(PIXELS),
    "array": PIXELS,
    "array, channels first": np.ascontiguousarray(PIXELS.transpose(2, 0, 1)),
    "tensor": FIRST,
    "tensor, channels last": torch.from_numpy(PIXELS),
    "fractions": FIRST / 255,
    "fractions in an array": PIXELS / 255,
}


def reader(items):
    return Reader(items, "mine.Set", "train")


@pytest.mark.parametrize("form", FORMS)
def test_images_of_all_kinds_are_the_same_photo(form):
    assert reader([]).to_photo(FORMS[form], 0).equal(FIRST)


@pytest.mark.parametrize("image", [PIXELS[..., 0], torch.from_numpy(PIXELS[..., :1]), Image.fromarray(PIXELS[..., 0])])
def test_grey_images_have_three_equal_channels(image):
    assert reader([]).to_photo(image, 0).equal(FIRST[:1].expand(3, -1, -1))


def test_transparent_image_is_white_where_it_shows_nothing():
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    assert reader([]).to_photo(clear, 0).unique().tolist() == [255]


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        ("a.jpg", "is of type str; give one of Pillow, numpy or torch"),
        (PIXELS.astype(np.int64), "is of type int64; images are uint8"),
        (FIRST / 255 - 0.5, "is float with values from -0.5.*before they are normalised"),
        (np.zeros((5, 7, 2), np.uint8), r"is of shape \(1, 5, 7, 2\)"),
        (torch.full((3, 5, 7), torch.nan), "has values that are no numbers"),
    ],
)
def test_other_images_are_refused_by_their_item(image, fault):
    with pytest.raises(UserError, match=rf"^data.dataset: the image of item 4 of Set \(train\) {fault}"):
        reader([]).to_photo(image, 4)


def test_items_are_read_with_the_targets_that_they_had():
    pairs = [[PIXELS + number, torch.tensor(number)] for number in range(4)]
    items = Items(reader(pairs), np.arange(4))
    assert items[2].equal(FIRST + 2)
    pairs[2][1] = torch.tensor(3)
    with pytest.raises(UserError, match=r"item 2 of Set \(train\) now has the target tensor\(3\), and had .*2.* bef"):
        _ = items[2]


def test_splits_of_two_data_sets_are_joined_in_order():
    parts = [
        ItemSplit(Items(reader([(PIXELS + k, k)] * 3), np.full(3, k)), "s", torch.arange(3), torch.full((3,), k))
        for k in (0, 1)
    ]
    both = parts[0].part(torch.tensor([2, 0])).join(parts[1].part(torch.tensor([1])))
    assert both.targets.tolist() == [0, 0, 1]
    assert [both.image(row).equal(FIRST + k) for row, k in enumerate((0, 0, 1))] == [True] * 3
    within = parts[0].part(torch.tensor([2])).join(parts[0].part(torch.tensor([0])))
    assert (within.rows.tolist(), within.items) == ([2, 0], parts[0].items)
    assert both.indexed().targets.tolist() == [0, 1, 2]


def test_stamp_changes_with_images_rows_and_targets():
    def stamp(add=0, rows=(0, 1), targets=(0, 1)):
        items = Items(reader([(PIXELS + add, 0), (PIXELS, 0)]), np.zeros(2))
        return ItemSplit(items, "s", torch.tensor(rows), torch.tensor(targets)).stamp()

    assert len({stamp(), stamp(add=1), stamp(rows=(1, 0)), stamp(targets=(1, 1))}) == 4
    assert stamp() == stamp()


class Wrapping(list):
    @property
    def labels(self):
        return self.inner.labels

    @property
    def targets(self):
        return [1 / 0]

    def __getattr__(self, name):
        raise AttributeError(name)


def test_attributes_that_fail_are_told_and_those_that_are_missing_are_none():
    assert reader(Wrapping()).attribute("classes") is None
    assert reader([]).attribute("classes") is None
    with pytest.warns(
        UserWarning, match=r"labels of Set \(train\) raised AttributeError \(labels\), so it is taken for m"
    ):
        assert reader(Wrapping()).attribute("labels") is None
    with pytest.raises(
        UserCodeError, match=r"^data.dataset: mine.Set raised ZeroDivisionError at targets of train: div"
    ):
        reader(Wrapping()).attribute("targets")


class Library:
    """As of a library: no frame of it is in the user's files."""

    __getitem__ = staticmethod(partial(int, "x", base=3))


def test_items_that_a_library_cannot_read_are_told_without_a_traceback():
    with pytest.raises(UserError, match=r"^data.dataset: item 2 of Set \(train\) cannot be read \(") as caught:
        reader(Library()).read(2)
    assert not isinstance(caught.value, UserCodeError)


def test_targets_of_all_kinds_are_one_array():
    values = [plain_value(target) for target in (torch.tensor(1), np.int64(2), 3, np.array(4))]
    assert stack_values(values, "s").tolist() == [1, 2, 3, 4]
    assert stack_values([[0, 1], np.array([1, 1])], "s").tolist() == [[0, 1], [1, 1]]
    assert stack_values(["a", "b"], "s").tolist() == ["a", "b"]
    assert stack_values([None, None], "s") is None


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ([1, None, 2], "1 items of s have no target, first item 1"),
        ([{"box": 1}] * 2, "the targets of s are not numbers, names or rows of numbers"),
        ([1, "a"], "the targets of s are not .*some are numbers, others text"),
        ([[1], [1, 2]], "the targets of s are not"),
        ([np.zeros((2, 2))] * 2, "the targets of s are not"),
    ],
)
def test_targets_of_several_kinds_are_refused(values, fault):
    with pytest.raises(UserError, match=f"^data.dataset: {fault}"):
        stack_values(values, "s")


def test_bytes_are_text_and_arrays_that_are_not_to_be_written_are_copied():
    reader = Reader([(np.asarray(Image.new("L", (4, 4), 7)), "Käfer".encode())], "s", "train")
    assert reader.read_value(0) == "Käfer"
    assert reader.to_photo(reader.read(0)[0], 0).unique().tolist() == [7]  # torch's warning would be an error
    assert plain_value(np.array(["Käfer".encode(), b"Biene"])).tolist() == ["Käfer", "Biene"]
    with pytest.raises(UserError, match=r"^data.dataset: item 0 of s \(train\) cannot be read \('utf-8' codec"):
        Reader([(np.zeros((4, 4), np.uint8), b"\xff")], "s", "train").read_value(0)
