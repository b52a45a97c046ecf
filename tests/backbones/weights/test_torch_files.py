"""Files of torch, whatever is in them."""

import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.backbones.weights import torch_files
from lit_ft.backbones.weights.torch_files import is_plain, plain
from lit_ft.model.preprocessing import MixConfig
from lit_ft.training.checkpoint_io import AtomicCheckpointIO


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    trainer = small_trainer(1, limit_val_batches=0)
    trainer.fit(small_module(lr_scheduler=None), datamodule=FewDigits())
    trainer.save_checkpoint(path)
    return path


def packed(path, place):
    """The same file, with records that are compressed."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as made:
        for record in archive.infolist():
            made.writestr(record.filename, archive.read(record))
    return place


def test_compressed_records_are_refused_and_torch_would_unpack_them(checkpoint, tmp_path):
    place = packed(checkpoint, tmp_path / "packed.ckpt")
    assert torch.load(place, weights_only=True).keys() == torch_files.load(checkpoint).keys()
    with pytest.raises(ValueError, match=r"packed\.ckpt: its records are compressed, which torch.save never does"):
        torch_files.load(place)


@pytest.mark.parametrize("option", ["--ckpt_path", "--model.weights"])
def test_command_refuses_compressed_records_in_one_line(checkpoint, tmp_path, refused, option):
    place = packed(checkpoint, tmp_path / "packed.ckpt")
    line = refused("fit", "--data", "DigitsDataModule", option, place)
    reason = "is not a checkpoint, or it is damaged" if option == "--ckpt_path" else "damaged, or not written by torch"
    assert line.startswith(f"lit-ft: {option}: ")
    assert reason in line


class Runs:
    """Runs code when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


@pytest.mark.parametrize("path", ["{}", "file://{}"])
def test_resume_runs_no_code_whatever_torch_does_by_default(tmp_path, monkeypatch, path):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as releases of Lightning ask for, too
    torch.save({"epoch": 3}, tmp_path / "good.ckpt")
    torch.save({"callbacks": Runs(tmp_path / "ran")}, tmp_path / "bad.ckpt")
    io = AtomicCheckpointIO()
    assert io.load_checkpoint(path.format(tmp_path / "good.ckpt")) == {"epoch": 3}
    with pytest.raises(Exception, match="Weights only load failed"):
        io.load_checkpoint(path.format(tmp_path / "bad.ckpt"))
    assert not (tmp_path / "ran").exists()
    io.load_checkpoint(tmp_path / "bad.ckpt", weights_only=False)["callbacks"].close()
    assert (tmp_path / "ran").exists()


def test_plain_values():
    given = {"a": (1, np.float32(0.5)), "b": MixConfig(mixup=0.25), "c": plain, "d": PurePosixPath("x/y"), "e": dict}
    assert plain(given) == {
        "a": [1, 0.5],
        "b": {"mixup": 0.25, "cutmix": 0.0, "erase": 0.0},
        "c": "lit_ft.backbones.weights.torch_files.plain",
        "d": "x/y",
        "e": "builtins.dict",
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [([1, {"a": None}], True), ("x", True), (np.float32(1), False), ({"a": [torch.zeros(1)]}, False), ((1,), False)],
)
def test_plain_values_are_of_types_that_yaml_has(value, expected):
    assert is_plain(value) == expected
