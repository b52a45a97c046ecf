"""Raw values of bands in data modules, and in runs by the command line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from band_files import dicom, numbers, save_set, save_tiff
from PIL import Image

import lit_ft
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageFolderDataModule, ImageTableDataModule
from lit_ft.data.streaming.convert import convert
from lit_ft.errors import UserError
from lit_ft.evaluation.explanations.drawing import draw_small

RUN = Path("logs/run/version_0")
BEST = RUN / "checkpoints/best.ckpt"
# A head that is solved on the shipped network, whose first convolution takes four bands then.
FIT = (
    "fit", "--data", "ImageFolderDataModule", "--data.num_workers", 0, "--data.val_fraction", 0.3, "--name", "run",
    "--trainer.max_epochs", 1, "--unfreeze.strategy", "linear_probe", "--unfreeze.head_fit", "solved",
)  # fmt: skip
SIZE = InputSpec(28, 28)


@pytest.fixture
def root(tmp_path):
    return save_set(tmp_path / "set")


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def folder(root, **options):
    return ImageFolderDataModule(str(root), num_workers=0, spec=SIZE, **options)


def as_arrays(paths, folder):
    """Writes TIFF as arrays, in folders of the same names; gives their paths."""
    written = []
    for path in paths:
        written.append(folder / path.parent.name / f"{path.stem}.npy")
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        np.save(written[-1], tifffile.imread(path))
    return written


@pytest.mark.long
def test_what_only_the_full_depth_shows_is_learnt_and_kept(run, refused, root, tmp_path):
    assert "val/acc 1.0000" in run(*FIT, "--data.root", root, "--data.bands", "all")
    trained = [tifffile.imread(row["path"]) for row in rows(RUN / "split.csv") if row["split"] == "train"]
    pixels = np.concatenate([values.reshape(-1, 4) for values in trained]).astype(np.float64)
    saved = torch.load(BEST, weights_only=True)["hyper_parameters"]["input"]
    np.testing.assert_allclose(saved["mean"], pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(saved["std"], pixels.std(axis=0), rtol=1e-12)
    assert (saved["bands"], saved["channels"]) == ("all", 4)
    assert (RUN / "projector").is_dir()  # with a picture of each image

    # The training images are not needed any more, and the format does not matter.
    new = as_arrays(sorted(save_set(tmp_path / "new", each=4).rglob("*.tif")), tmp_path / "others")
    save_tiff(tmp_path / "three.tif", numbers((28, 28, 3)))
    run("predict", BEST, tmp_path / "others", tmp_path / "three.tif", "--out", "p.csv")
    *found, three = rows("p.csv")
    assert {row["path"]: row["class"] for row in found} == {str(path): path.parent.name for path in new}
    assert "it has 3 bands, and 4 are expected of each image" in three["error"]
    run("test", BEST, "--data.root", tmp_path / "others")
    assert json.loads((RUN / "metrics.json").read_text())["test_others"]["test/acc"] == 1.0
    model, values = lit_ft.load(BEST), np.load(new[0])
    for picture in (values, values.transpose(2, 0, 1), torch.from_numpy(values).movedim(2, 0), str(new[0])):
        assert model.predict(picture)[0].label == "calm"
    assert [one.label for one in model.predict(tmp_path / "others" / "rough")] == ["rough"] * 4

    evidence = lit_ft.explain(model, str(new[0]), methods=["grad_cam"])[0]
    assert evidence.on_photo("grad_cam").shape == (28, 28)
    assert draw_small(model.reader(new[0])).size == (224, 224)

    line = refused("test", BEST, "--data.root", tmp_path / "others", "--data.bands", "[4]")
    assert line == "lit-ft: --data.bands: [4], but the model takes all; leave it out"
    line = refused("test", BEST, "--data", "DigitsDataModule")
    assert "the model takes raw values of bands, and DigitsDataModule gives photos of 8 bits" in line


def test_in_8_bits_nothing_of_it_is_left(run, tmp_path):
    run(*FIT, "--data.root", save_set(tmp_path / "set", shift=8), "--data.bands", "all", "--report.num_images", 0)
    assert json.loads((RUN / "metrics.json").read_text())["val"]["val/acc"] < 0.8


@pytest.mark.long
def test_resumed_run_goes_on_with_the_bands_of_its_checkpoint(run, refused, root):
    options = (*FIT[:9], "--data.root", root, "--unfreeze", "null", "--data.augment", "none")
    run(*options, "--trainer.max_epochs", 1, "--data.bands", "all")
    with Image.open(RUN / "train_images.jpg") as picture:
        assert picture.convert("L").resize((64, 64)).crop((8, 8, 40, 40)).getextrema()[0] < 120  # not all white
    last = RUN / "checkpoints/last.ckpt"
    before = torch.load(last, weights_only=True)["hyper_parameters"]["input"]
    again = (*options, "--trainer.max_epochs", 2, "--ckpt_path", last)
    run(*again, "--data.bands", "all")
    after = torch.load(last, weights_only=True)
    assert (after["epoch"], after["hyper_parameters"]["input"]) == (1, before)
    assert "--data.bands all, but this one has [1, 2]" in refused(*again, "--data.bands", "[1, 2]")


def test_check_reads_all_bands_and_reports_what_photos_lose(lit_ft, root, tmp_path):
    save_tiff(root / "calm" / "99.tif", numbers((28, 28, 4)))
    save_tiff(root / "rough" / "99.tif", numbers((28, 28, 4)), compression="zlib")
    data = ("--data", "ImageFolderDataModule", "--data.root")
    code, printed, _ = lit_ft("check", *data, root, "--data.bands", "all", "--folder", "CHECKED")
    assert code == 1
    found = json.loads(Path("CHECKED/check.json").read_text())
    assert found["facts"]["formats"] == "TIFF 32"
    assert [kind for kind in (one["kind"] for one in found["findings"]) if kind != "tiny"] == ["contradiction"]
    assert Path("CHECKED/check.html").read_text().count("data:image/jpeg") > 4
    for kind in ("ant", "bee"):
        for i in range(3):
            save_tiff(tmp_path / "grey" / kind / f"{i}.tif", numbers((40, 40), seed=ord(kind[0]) + i))
    printed = lit_ft("check", *data, tmp_path / "grey")[1]
    assert "6 file(s) have more than 8 bits of three colours, and are reduced to that" in printed


@pytest.mark.long
def test_band_that_all_images_lack_is_refused_by_a_plan_and_a_fit_alike(run, refused, root):
    data = ("--data", "ImageFolderDataModule", "--data.root", root, "--data.bands")
    for command in (("plan",), FIT, (*FIT, "--data.on_bad_image", "skip")):
        line = refused(*command, *data, "[9]")
        assert line.startswith("lit-ft: --data.bands: [9], but the images have 4 bands, such as "), line
    assert "\n  bands     4, 2\n" in run("plan", *data, "[4, 2]")
    assert "\n  bands     all 4\n" in run("plan", *data, "all")


def test_dicom_with_low_white_and_low_black_is_warned_of_with_both_numbers(lit_ft, tmp_path):
    root = tmp_path / "scans"
    for number, kind in enumerate(["MONOCHROME1"] * 4 + ["MONOCHROME2"] * 8):
        place = root / f"{'ab'[number % 2]}" / f"{number:02d}"  # without a suffix
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(dicom(numbers((40, 40), seed=number), kind))
    for _ in range(2):  # the second time from what was kept
        with pytest.warns(UserWarning, match="inverted within the range") as caught:
            folder(root, bands="all").setup()
        [text] = [str(one.message) for one in caught]
        assert "4 DICOM images are MONOCHROME1, such as " in text
        assert "8 are MONOCHROME2, such as " in text
    line = lit_ft("check", "--data", "ImageFolderDataModule", "--data.root", root, "--data.bands", "all")[1]
    assert "4 file(s) are MONOCHROME1, where 8 are MONOCHROME2" in line
    for number in range(4):
        (root / "ab"[number % 2] / f"{number:02d}").unlink()
    folder(root, bands="all").setup()  # of which nothing is said


def test_probe_measures_the_bands(run, root):
    data = ("--data", "ImageFolderDataModule", "--data.root", root, "--data.num_workers", 0)
    assert "100.0%" in run("probe", *data, "--data.bands", "all", "--stages", "last")


# Data modules


def test_batches_are_raw_values_of_the_bands_that_are_asked_for(root):
    data = folder(root, bands=[4, 1], augment="none", batch_size=2)
    data.setup()
    images, _ = next(iter(data.val_dataloader()))
    first = tifffile.imread(data.splits["val"].paths[0])[..., [3, 0]]
    assert (images.dtype, images.shape) == (torch.float32, (2, 2, 28, 28))
    assert torch.equal(images[0], torch.from_numpy(first.astype(np.float32)).movedim(2, 0))
    found = data.measured_spec()
    assert (found.bands, found.channels, data.input_spec.mean) == ((4, 1), 2, (0.0, 0.0))
    assert 2816 < found.mean[0] < 3016


def test_crops_of_training_images_keep_the_depth(root):
    data = folder(root, bands="all", batch_size=8)
    data.setup()
    images, targets = next(iter(data.train_dataloader()))
    band = images[:, 3]
    assert images.shape == (8, 4, 28, 28)
    assert torch.equal(band.std(dim=(1, 2)) > 15, targets == 1)
    assert not torch.equal(band, band.round())


def test_policy_that_changes_colours_is_left_out_with_a_warning(root):
    data = folder(root, bands="all", augment="trivial")
    with pytest.warns(UserWarning, match="`data.augment`: trivial changes colours; raw values of bands get basic"):
        data.setup("fit")
    data.setup("fit")  # once
    folder(root, bands="all", augment="trivial").setup("test")  # nor where nothing is trained
    assert len(data.source("train", augment=True)._photos.transform.transforms) == 2


@pytest.mark.parametrize(
    "chosen", [(), ("--data.augment", "rand"), ("--config", "image_folder", "--config", "own.yaml")]
)
def test_policy_of_a_recipe_is_left_out_silently_and_one_that_was_chosen_with_a_warning(lit_ft, root, recwarn, chosen):
    Path("own.yaml").write_text("data: {init_args: {augment: augmix}}")
    code, _, errors = lit_ft("plan", root, "--data.bands", "all", "--model.backbone", "mnist_cnn", *chosen)
    assert code == 0, errors
    assert sum("changes colours" in str(one.message) for one in recwarn) == bool(chosen)


def test_photos_of_16_bits_are_read_as_ever_and_it_is_said_once(tmp_path, recwarn):
    for kind, value in (("ant", 5_000), ("bee", 60_000)):
        for i in range(6):
            save_tiff(tmp_path / "set" / kind / f"{i}.tif", np.full((28, 28), value + i, np.uint16))
    for _ in range(2):  # also where they have been read before
        data = folder(tmp_path / "set", augment="none")
        recwarn.clear()
        data.setup("fit")
        data.setup("test")
        [text] = [str(one.message) for one in recwarn if "bands" in str(one.message)]
        assert "`data.bands`: 12 of 12 images have more than 8 bits of three colours, such as" in text
        assert "of 16 bits, and are reduced to it; a model that is fitted with `data.bands` all takes" in text
    images, targets = next(iter(data.val_dataloader()))
    assert images.dtype == torch.uint8
    assert sorted({(int(t), int(i.max())) for i, t in zip(images, targets, strict=True)}) == [(0, 19), (1, 234)]


def test_bands_that_photos_have_not_are_refused_by_name(root):
    reason = "30 of 30 images cannot be read: .*.tif .a TIFF of bits, bands or a .* Pillow does not know; data.bands"
    with pytest.raises(UserError, match=reason):
        folder(root).setup()


def test_arrays_and_dicom_are_no_images_without_bands(tmp_path):
    for kind in ("ant", "bee"):
        as_path = tmp_path / "set" / kind
        as_path.mkdir(parents=True)
        np.save(as_path / "a.npy", numbers())
    with (
        pytest.warns(UserWarning, match="2 file.s. below .* are no images, and not used: 2 .npy; `data.bands` reads"),
        pytest.raises(UserError, match="no images in"),
    ):
        folder(tmp_path / "set").setup()


def test_files_that_differ_or_are_damaged_are_named_or_left_out(root):
    save_tiff(root / "calm" / "00.tif", numbers((28, 28, 3)))
    (root / "calm" / "01.tif").write_bytes((root / "calm" / "01.tif").read_bytes()[:900])
    (root / "rough" / "x.dcm").write_bytes(dicom(numbers((28, 28)), PixelData=None))
    np.save(root / "rough" / "y.npy", np.full((28, 28, 4), np.nan))
    with pytest.raises(UserError) as refusal:
        folder(root, bands=[4, 3]).setup()
    assert "4 of 32 images cannot be read" in str(refusal.value)
    for reason in ("00.tif (it has 3 bands, and band 4 is asked for)", "01.tif (its values would lie beyond its end",
                   "x.dcm (DICOM without pixels)", "y.npy (it has values that are not finite"):  # fmt: skip
        assert reason in str(refusal.value)
    data = folder(root, bands=[4, 3], on_bad_image="skip")
    with pytest.warns(UserWarning, match="4 of 32 images cannot be read: .* they are left out"):
        data.setup("fit")
    assert len(data.splits["train"]) + len(data.splits["val"]) == 28
    assert 2816 < data.measured_spec().mean[0] < 3016


@pytest.mark.parametrize("bands", [[0], [], [1.5], "none", [-1]])
def test_bands_that_can_be_none_are_refused(root, bands):
    with pytest.raises(UserError, match=r"data.bands: must be numbers of bands, from 1, such as \[4, 3, 2\], or all"):
        folder(root, bands=bands)


def test_cached_copies_are_the_same_values(root, tmp_path):
    batches = []
    for options in ({}, {"cache": str(tmp_path / "cache")}, {"cache": str(tmp_path / "cache")}):
        data = folder(root, bands=[4, 1], batch_size=64, **options)
        data.spec = InputSpec(20, 24)
        data.prepare_data()
        data.setup("fit")
        batches.append(next(iter(data.val_dataloader()))[0])
        assert next(iter(data.train_dataloader()))[0].shape == (24, 2, 20, 20)
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    folder(root, bands=[4], cache=str(tmp_path / "cache")).prepare_data()
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_convert_is_for_photos(root, tmp_path):
    with pytest.raises(UserError, match=r"data.bands: a streamed set is of photos; leave it out"):
        convert(folder(root, bands="all"), tmp_path / "set2")


def test_table_names_arrays(root, tmp_path):
    paths = as_arrays(sorted(root.rglob("*.tif")), tmp_path / "arrays")
    lines = ["path,label", *(f"{path},{path.parent.name}" for path in paths)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = ImageTableDataModule(str(tmp_path / "t.csv"), num_workers=0, spec=SIZE, bands="all", augment="none")
    data.setup("fit")
    images, _ = next(iter(data.val_dataloader()))
    assert torch.equal(
        images[0], torch.from_numpy(np.load(data.splits["val"].paths[0]).astype(np.float32)).movedim(2, 0)
    )


def test_dicom_without_suffix_is_found(tmp_path):
    for kind in ("ant", "bee"):
        for i in range(3):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            content = dicom(np.full((28, 28), 1000 + i, np.uint16), RescaleIntercept=-1024, RescaleSlope=1)
            (tmp_path / "set" / kind / f"IM{i:04}").write_bytes(content)
    data = folder(tmp_path / "set", bands="all", augment="none", val_fraction=0.4)
    data.setup("fit")
    assert data.measured_spec().channels == 1
    images, _ = next(iter(data.val_dataloader()))
    assert set(images.unique().tolist()) <= {-24.0, -23.0, -22.0}
