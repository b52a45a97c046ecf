"""What a check shows of a set without faults."""

import json

import torch
from image_files import save_photo

from lit_ft import DigitsDataModule, ImageFolderDataModule
from lit_ft.data.checks.check_data import check
from lit_ft.data.checks.findings import Inspected
from lit_ft.data.checks.overview import choose_samples, describe_files
from lit_ft.data.checks.report import format_json, render_check


def test_samples_of_each_class_are_spread_over_its_images():
    targets = torch.tensor([0] * 21 + [1] * 2)
    assert choose_samples(targets, ["ant", "bee", "cat"]) == {"ant": [0, 4, 8, 12, 16, 20], "bee": [21, 22], "cat": []}
    labels = torch.tensor([[1, 0], [1, 1], [0, 1]])
    assert choose_samples(labels, ["sun", "sea"]) == {"sun": [0, 1], "sea": [1, 2]}
    assert choose_samples(torch.rand(100, 2), ["age", "size"])[""][::23] == [0, 99]
    assert {len(rows) for rows in choose_samples(torch.arange(1000) % 250, [str(k) for k in range(250)]).values()} == {
        1
    }


def test_files_are_described_by_format_and_size():
    seen = [Inspected("", 1500, "JPEG", 40, 30), Inspected("", 2500, "PNG", 60, 30), Inspected("gone")]
    assert describe_files([*seen, Inspected("", 1000, "JPEG", 50, 30)]) == {
        "formats": "JPEG 2, PNG 1", "width": "40 to 60 pixels, median 50", "height": "30 pixels", "all files": "5.0 kB",
    }  # fmt: skip


def test_page_of_a_clean_set_has_its_folder_and_samples_of_each_class(tmp_path):
    for name in ("ant", "<b>bee"):
        for split, hue in (("train", 0), ("val", 99), ("test", 180)):
            for k in range(3):
                save_photo(tmp_path / split / name / f"{k}.jpg", (hue, 20 * k + len(name), 60), (40, 30))
    checked = check(ImageFolderDataModule(root=str(tmp_path)))
    assert checked.source == str(tmp_path)
    page = render_check(checked)
    assert f"<h1>{tmp_path}</h1>" in page
    assert "<h3>&lt;b&gt;bee</h3>" in page
    assert page.partition("id='samples'")[2].count("<img") == 12
    told = json.loads(format_json(checked))
    assert [item["split"] for item in told["samples"]["ant"]].count("train") == 2
    assert told["facts"]["formats"] == "JPEG 18"


def test_images_in_memory_have_pictures_on_the_page_alone():
    checked = check(DigitsDataModule())
    page, told = render_check(checked), json.loads(format_json(checked))
    assert page.count("<img") == 60
    assert (checked.source, told["pictures"], len(told["samples"])) == ("DigitsDataModule", {}, 10)
