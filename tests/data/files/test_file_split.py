import os
import pickle
from pathlib import Path

import torch

from lit_ft.data.files.file_split import FileSplit, PackedPaths

NAMES = ["a/1.jpg", "été/ß 漢字.png", os.fsdecode(b"not/utf8/\xff.jpg"), "/elsewhere/x.bmp", "b" * 200]


def test_paths_come_back_as_they_were():
    packed = PackedPaths.pack("/data", NAMES)
    assert list(packed) == [Path("/data", name) for name in NAMES]
    assert packed[3] == Path("/elsewhere/x.bmp")
    assert packed.name(1) == NAMES[1]
    assert len(PackedPaths.pack("/data", [])) == 0


def test_parts_share_the_text():
    packed = PackedPaths.pack("/data", NAMES)
    part = packed.part(torch.tensor([4, 1, 1]))
    assert [part.name(i) for i in range(3)] == [NAMES[4], NAMES[1], NAMES[1]]
    assert part.part(torch.tensor([1])).name(0) == NAMES[1]
    assert part.text is packed.text


def test_paths_can_be_pickled():
    assert list(pickle.loads(pickle.dumps(PackedPaths.pack("r", NAMES)))) == [Path("r", name) for name in NAMES]


def test_splits_of_different_folders_are_put_together():
    first = FileSplit(PackedPaths.pack("/train", ["a.png", "b.png"]), torch.tensor([0, 1]), torch.tensor([5, 6]))
    second = FileSplit(PackedPaths.pack("val", ["c.png"]), torch.tensor([2]), torch.tensor([7]))
    both = first.part(torch.tensor([1])).join(second)
    assert [both.paths.full(i) for i in range(2)] == ["/train/b.png", os.path.join("val", "c.png")]
    assert (both.targets.tolist(), both.groups.tolist()) == ([1, 2], [6, 7])
    assert first.join(FileSplit(second.paths, second.targets)).groups is None
