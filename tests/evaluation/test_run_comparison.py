"""Comparison of runs."""

import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image

from lit_ft.errors import UserError
from lit_ft.evaluation.comparison import bootstrap_differences, compare_runs, find_p_value
from lit_ft.evaluation.comparison_report import format_comparison, render_comparison
from lit_ft.evaluation.predicted_images import PredictedImages
from lit_ft.runs import Run

HEAD = "path,class,predicted,probability,loss"


def write_run(folder, rows, split="test", head=HEAD, lr=0.1, metrics=None):
    run = Run(folder)
    folder.mkdir(parents=True)
    data = {"class_path": "lit_ft.ImageFolderDataModule", "init_args": {"root": "photos"}}
    run.config.write_text(yaml.safe_dump({"name": folder.name, "model": {"lr": lr}, "data": data}))
    run.metrics.write_text(json.dumps(metrics or {}))
    run.result_table("predictions", split).write_text("\n".join([head, *rows]) + "\n")
    return run


def rows_of(predicted, folder="photos", true="ab" * 10):
    return [
        f"{folder}/{row}.jpg,{own},{said},0.75,{0.3 if own == said else 1.4}"
        for row, (own, said) in enumerate(zip(true, predicted, strict=True))
    ]


def test_runs_are_compared_image_by_image(tmp_path):
    first = write_run(tmp_path / "x", rows_of("ab" * 10), metrics={"test": {"test/acc": 1.0}})
    other = write_run(tmp_path / "y", rows_of("aa" * 2 + "ab" * 8), lr=0.2)
    found = compare_runs([first, other])
    assert found.split == "test"
    assert found.options == {"model.lr": [0.1, 0.2]}
    (pair,) = found.pairs
    assert (pair.num_images, pair.note) == (20, "20 images of both")
    accuracy = pair.differences["acc"]
    assert accuracy.value == pytest.approx(-0.1)
    assert accuracy.interval[0] == pytest.approx(-0.25, abs=0.051)  # two of twenty, in steps of a twentieth
    assert (accuracy.interval[1], accuracy.verdict) == (0.0, "no clear difference")
    assert pair.differences["loss"].value == pytest.approx(0.11)
    assert list(pair.first_right) == ["photos/1.jpg", "photos/3.jpg"]
    assert pair.first_right["photos/1.jpg"] == ("b", "b (75%)", "a (75%)")
    assert pair.other_right == {}
    assert pair.p_value == find_p_value(2, 0) == 0.5


def test_images_whose_losses_differ_most_come_first(tmp_path):
    first = write_run(tmp_path / "x", [f"{row}.jpg,a,a,0.5,{row / 10}" for row in range(3)])
    other = write_run(tmp_path / "y", [f"{row}.jpg,a,b,0.5,{loss}" for row, loss in enumerate((1.0, 3.0, 2.0))])
    assert list(compare_runs([first, other]).pairs[0].first_right) == ["1.jpg", "2.jpg", "0.jpg"]
    assert list(compare_runs([other, first]).pairs[0].other_right) == ["1.jpg", "2.jpg", "0.jpg"]


def test_clear_differences_are_told_by_which_value_is_best(tmp_path):
    first = write_run(tmp_path / "x", rows_of("ba" * 10))
    other = write_run(tmp_path / "y", rows_of("ab" * 10))
    found = compare_runs([first, other])
    assert {name: one.verdict for name, one in found.pairs[0].differences.items()} == dict.fromkeys(
        ("acc", "precision", "recall", "f1", "loss"), "better"
    )
    assert compare_runs([other, first]).pairs[0].differences["loss"].verdict == "worse"


def test_images_are_matched_by_their_paths_or_within_their_folders(tmp_path):
    first = write_run(tmp_path / "x", rows_of("ab" * 10, "/here/photos"))
    moved = write_run(tmp_path / "y", rows_of("ab" * 10, "elsewhere"))
    fewer = write_run(tmp_path / "z", rows_of("ab" * 10, "/here/photos")[:15])
    relabelled = write_run(tmp_path / "r", rows_of("ab" * 10, "/here/photos", "aa" + "ab" * 9))
    others = write_run(tmp_path / "o", [f"/here/photos/other{row}.jpg,a,a,1,0" for row in range(3)])
    notes = [pair.note for pair in compare_runs([first, moved, fewer, relabelled, others]).pairs]
    assert notes == [
        "20 images of both; matched by their names within /here/photos and elsewhere",
        "15 images of both of 20 and 15",
        "19 images of both of 20 and 20 without 1 whose class is another",
        "not compared image by image: the two share no images",
    ]


def test_images_without_files_are_matched_by_their_number(tmp_path):
    runs = [write_run(tmp_path / name, [f"{row},a,a,0.5,0.5" for row in range(4)]) for name in "xy"]
    assert compare_runs(runs).pairs[0].num_images == 4
    others = write_run(tmp_path / "z", [f"{row},{'ab'[row == 2]},a,0.5,0.5" for row in range(4)])
    (pair,) = compare_runs([runs[0], others]).pairs
    assert (pair.num_images, pair.note) == (0, "not compared image by image: the two share no images")


def test_labels_and_numbers_are_compared(tmp_path):
    head = "path,sun,sea,probability of sun,probability of sea,loss"
    good, bad = "0.9,0.1,0.1", "0.1,0.1,1.2"
    labels = [
        write_run(tmp_path / f"l{k}", [f"{row}.jpg,1,0,{good if row > k else bad}" for row in range(9)], head=head)
        for k in range(2)
    ]
    pair = compare_runs(labels).pairs[0]
    assert pair.differences["acc"].value == pytest.approx(-1 / 18)  # one label of two of one image of nine
    assert pair.first_right == {"1.jpg": ("sun", "sun", "no label")}
    numbers = [
        write_run(tmp_path / f"n{k}", [f"{row}.jpg,1,{1 + k},{k * k}" for row in range(9)],
                  head="path,age,predicted of age,loss")
        for k in range(2)
    ]  # fmt: skip
    pair = compare_runs(numbers).pairs[0]
    assert {name: one.value for name, one in pair.differences.items()} == {"mse": 1.0, "mae": 1.0, "loss": 1.0}
    assert len(pair.first_right) == 9
    assert math.isnan(pair.p_value)
    assert compare_runs([labels[0], numbers[0]]).pairs[0].note.endswith("they predict different things")


def test_runs_without_predictions_of_one_split_are_compared_by_the_rest(tmp_path):
    runs = [write_run(tmp_path / split, rows_of("ab" * 10), split) for split in ("test", "val")]
    found = compare_runs(runs)
    assert found.split == ""
    assert found.pairs[0].note == "not compared image by image: one of the two has no predictions; test it"
    assert "No split was predicted by each run" in render_comparison(found)
    assert format_comparison(found).endswith("The configs are equal.")
    runs[0].result_table("predictions", "val").write_text("\n".join([HEAD, *rows_of("ab" * 10)]))
    assert compare_runs(runs).split == "val"


def test_damaged_table_is_named(tmp_path):
    runs = [write_run(tmp_path / name, ["a,b,b,high,1"]) for name in "xy"]
    with pytest.raises(UserError, match=r"predictions_test.csv: is damaged"):
        compare_runs(runs)


def test_page_and_lines_have_names_and_thumbnails_but_no_markup(tmp_path):
    Image.new("RGB", (30, 20), "red").save(photo := tmp_path / "<i>.jpg")
    bad = "<script>x</script>"
    first = write_run(tmp_path / "x", [f"{photo},{bad},{bad},1,0.5"])
    other = write_run(tmp_path / "y", [f"{photo},{bad},ant,1,1.5"], lr="<b>")
    found = compare_runs([first, other])
    page = render_comparison(found)
    assert "<script" not in page
    assert "&lt;script&gt;x&lt;/script&gt; (100%)" in page
    assert "<b></td>" not in page
    assert page.count("data:image/jpeg;base64,") == 1
    lines = format_comparison(found).splitlines()
    assert f"B less A: {tmp_path}/y less {tmp_path}/x" in lines
    assert "1 images are right in A alone, 0 in B alone (McNemar's exact test: p = 1)" in lines
    assert any(line.split() == ["acc", "-1.0000", "-1.0000", "to", "-1.0000", "worse"] for line in lines)


def simulate(generator, num=150):
    """Two models of equal accuracy that are right on mostly the same images, and lose as much."""
    both = generator.random(num) < 0.6
    right = np.where(both, True, generator.random((2, num)) < 0.5)
    loss = generator.gamma(2.0, 0.3, num) + generator.normal(0, 0.2, (2, num))
    names, paths, none = ["a", "b"], [""] * num, np.empty(0)
    return [
        PredictedImages("multiclass", paths, np.zeros(num), (~right[k]).astype(float), none, loss[k], names)
        for k in range(2)
    ]


def test_interval_of_equal_models_covers_zero_in_most_cases():
    generator, num = np.random.default_rng(0), 250
    covered = {"acc": 0, "loss": 0}
    for _ in range(num):
        found = bootstrap_differences(*simulate(generator), num_samples=300)
        for name in covered:
            low, high = found[name].interval
            covered[name] += low <= 0 <= high
    # With a chance of 0.95 the share of 250 trials has a standard error of 0.0138, three of which are allowed for.
    for name, times in covered.items():
        assert times / num == pytest.approx(0.95, abs=0.042), name
