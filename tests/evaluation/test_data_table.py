from types import SimpleNamespace

import pytest

from lit_ft.evaluation.data_table import format_data_table


def test_data_table_shows_classes_and_images_of_each_split():
    class Digits:
        class_names = ("zero", "one")

        def counts(self):
            return {"train": [1000, 1000], "val": [7, 5]}

    assert format_data_table(Digits()).splitlines() == [
        "Data  Digits: 2 classes (zero, one)",
        "  train     2,000 images, 1000 a class",
        "  val          12 images, 5 to 7 a class",
    ]


def test_data_table_of_many_classes_shows_the_first_ten():
    data = SimpleNamespace(class_names=list("abcdefghijkl"), counts=dict)
    assert format_data_table(data) == "Data  SimpleNamespace: 12 classes (a, b, c, d, e, f, g, h, i, j, …)"


def test_data_table_of_labels_and_numbers():
    data = SimpleNamespace(
        task="multilabel", class_names=["a", "b"], counts=lambda: {"train": [7, 3]}, sizes=lambda: {"train": 8}
    )
    assert format_data_table(data).splitlines() == [
        "Data  SimpleNamespace: 2 labels (a, b)",
        "  train         8 images, 3 to 7 a label",
        "  labels  'a' 7, 'b' 3",
    ]
    data.class_names = [f"label, {i}" for i in range(102)]
    data.counts = lambda: {"train": list(range(102))}
    assert format_data_table(data).splitlines()[-1].startswith("  labels  'label, 0' 0, 'label, 1' 1, ")
    assert format_data_table(data).splitlines()[-1].endswith(", 'label, 99' 99, and 2 more")
    data.task, data.class_names = "regression", ["age"]
    assert format_data_table(data).splitlines() == ["Data  SimpleNamespace: 1 number (age)", "  train         8 images"]


@pytest.mark.parametrize("data", [None, SimpleNamespace(num_classes=3)])
def test_data_table_of_loaders(data):
    assert format_data_table(data) == "Data: given as loaders"
