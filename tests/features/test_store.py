import pytest

from lit_ft.features.store import choose_recomputed


@pytest.mark.parametrize("views", [1, 2, 5])
@pytest.mark.parametrize("images", [range(20), range(7, 47), range(10_000)])
def test_at_most_one_feature_of_twenty_is_computed_again(images, views):
    chosen = [choose_recomputed(images, view, views).tolist() for view in range(views)]
    total = sum(map(len, chosen))
    assert len({row for rows in chosen for row in rows}) == total  # other images in each view
    assert views <= total <= min(16, views * len(images) / 20)
    assert all(row in images for rows in chosen for row in rows)


def test_images_that_are_computed_again_lie_evenly_between_the_first_and_the_last():
    assert choose_recomputed(range(20), 0, 1).tolist() == [10]
    assert choose_recomputed(range(60, 100), 0, 1).tolist() == [70, 90]
    assert choose_recomputed(range(3), 1, 4).tolist() == [1]
    assert choose_recomputed(range(0), 0, 1).tolist() == []  # of a process without images
