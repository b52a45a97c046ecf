import pytest

from lit_ft.data.datasets.labelled import find_class_names


@pytest.mark.parametrize(
    ("held", "names"),
    [
        ({"classes": ["a", "b"]}, ["a", "b"]),
        ({"classes": [("a", "A"), ("b",)]}, ["a, A", "b"]),
        ({"classes": ["a", "b", "a"]}, ["a (0)", "b", "a (2)"]),  # as ImageNet has two cranes
        ({"classes": [0, 1], "categories": ["a", "b"]}, ["a", "b"]),
        ({"class_to_idx": {"b": 1, "a": 0}}, ["a", "b"]),
        ({"class_to_idx": {"b": 1, "a": 3}}, None),
        ({"attr_names": ["bald", "young", ""]}, ["bald", "young"]),  # as CelebA has them
        ({}, None),
    ],
)
def test_class_names_are_found_by_their_usual_names(held, names):
    assert find_class_names(held.get) == names
