import torch

from lit_ft.evaluation.confusion import draw_confusion

MATRIX = torch.tensor([[3, 1, 0], [0, 5, 0], [0, 0, 0]])


def test_confusion_figure_has_counts_shares_and_names():
    [axes] = draw_confusion(MATRIX, ["ant", "bee", "cat"]).axes
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "3", (1, 0): "1", (1, 1): "5"}
    colors = {text.get_position(): text.get_color() for text in axes.texts}
    assert colors == {(0, 0): "white", (1, 0): "black", (1, 1): "white"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["ant", "bee", "cat"]
    [image] = axes.images
    assert image.get_array().tolist() == [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert image.get_clim() == (0.0, 1.0)


def test_confusion_figure_of_many_classes_has_no_numbers():
    [axes] = draw_confusion(torch.eye(31), [str(i) for i in range(31)]).axes
    assert len(axes.texts) == 0
    assert len(axes.get_xticklabels()) == 31
