from dataclasses import dataclass, field

from lightning import LightningDataModule

import lit_ft.data  # noqa: F401 - whose classes are then known
from lit_ft.cli.config.known_names import class_names, class_options


@dataclass
class Part:
    size: int = 1
    names: list[str] = field(default_factory=list)


class Base:
    def __init__(self, seed: int = 0) -> None:
        pass


class Whole(Base):
    def __init__(self, lr: float, part: Part = Part(), *rest: int, **common: int) -> None:  # noqa: B008
        pass


def test_options_of_a_class_hold_those_of_its_dataclasses_and_parents():
    assert class_options(Whole) == ["lr", "part", "part.size", "part.names", "seed"]
    assert class_options(Base) == ["seed"]


def test_classes_that_cannot_be_made_are_not_offered():
    names = class_names(LightningDataModule)
    assert "DigitsDataModule" in names
    assert not {"ImageDataModule", "PhotoDataModule", "ArrayDataModule"} & set(names)
