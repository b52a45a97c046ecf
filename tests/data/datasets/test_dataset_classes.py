import pytest
from torch.utils.data import Dataset

from lit_ft.data.datasets.classes import (
    DatasetClass,
    constructor_parameters,
    is_of_torchvision,
    refuse_foreign_dataset,
)
from lit_ft.errors import UserError


class Whole(Dataset):
    def __init__(self, size=3):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return None, index


class Anything(Whole):
    def __init__(self, **given):
        super().__init__(**given)


class AnythingAtAll(Dataset):
    def __init__(self, root, *rest, **given):
        pass


class HandsOn(Whole):
    def __init__(self, root, kind, **kwargs):
        super().__init__(**kwargs)


def test_parameters_are_those_of_parents_as_far_as_these_get_them():
    assert list(constructor_parameters(HandsOn)) == ["root", "kind", "size"]
    assert list(constructor_parameters(Anything)) == ["size"]
    assert list(constructor_parameters(AnythingAtAll)) == ["root", "rest", "given"]
    assert list(constructor_parameters(Dataset)) == []
    names = constructor_parameters(DatasetClass.find("EMNIST").made_by)
    assert list(names)[:3] == ["root", "split", "train"]


def test_classes_are_found_by_name_and_by_path():
    assert DatasetClass.find("SVHN") == DatasetClass.find("torchvision.datasets.SVHN")
    assert not DatasetClass.find("SVHN").is_own
    own = DatasetClass.find(f"{__name__}.Whole")
    assert (own.name, own.is_own) == ("Whole", True)


def test_checkpoint_may_name_data_sets_of_torchvision_alone():
    refuse_foreign_dataset(None, None)
    refuse_foreign_dataset("torchvision.datasets.SVHN", None)
    refuse_foreign_dataset("own.Set", "own.Set")
    for path in (
        "own.Set",
        "torchvision.datasets.mnist.MNIST",
        "torchvision.transforms.Compose",
        "os.system",
        "set_image",
    ):
        assert not is_of_torchvision(path)
        with pytest.raises(
            UserError, match=f"ckpt_path: the checkpoint names the data set {path}, whose code would run"
        ):
            refuse_foreign_dataset(path, "another.Set")
