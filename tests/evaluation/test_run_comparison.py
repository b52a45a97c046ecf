"""Comparison of runs."""

import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image

from lit_ft.errors import UserError
from lit_ft.evaluation.comparison import compare_runs
from lit_ft.evaluation.comparison_report import (
    format_comparison,
    format_pair,
    list_caveats,
    render_comparison,
    tabulate_runs,
)
from lit_ft.evaluation.paired_images import bootstrap_differences, find_p_value
from lit_ft.evaluation.predicted_images import PredictedImages
from lit_ft.evaluation.run_files import is_tested_on_validation
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
    assert (accuracy.interval[1], pair.verdict) == (0.0, "no clear difference")
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
    for pair, verdict in ((compare_runs(runs).pairs[0], said) for runs, said in (
        ([first, other], "better"), ([other, first], "worse")
    )):  # fmt: skip
        assert (pair.main, pair.verdict) == ("acc", verdict)
        assert all(one.excludes_zero for one in pair.differences.values())
    # Of numbers the smaller mean of squares is better.
    numbers = [
        write_run(tmp_path / f"n{k}", [f"{row}.jpg,1,{1 + k},{k * k}" for row in range(9)],
                  head="path,age,predicted of age,loss")
        for k in range(2)
    ]  # fmt: skip
    assert [compare_runs(runs).pairs[0].verdict for runs in (numbers, numbers[::-1])] == ["worse", "better"]


def test_verdict_is_that_of_the_exact_test_and_says_why_an_interval_is_otherwise(tmp_path):
    first = write_run(tmp_path / "x", rows_of("ab" * 8 + "ba" * 2))
    for num, p_value, verdict in ((4, 0.125, "no clear difference"), (6, 0.03125, "better")):
        first = write_run(tmp_path / f"x{num}", rows_of("ab" * 7 + "ba" * (num // 2) + "ab" * (3 - num // 2)))
        found = compare_runs([first, write_run(tmp_path / f"y{num}", rows_of("ab" * 10))])
        (pair,) = found.pairs
        assert pair.differences["acc"].excludes_zero
        assert (pair.p_value, pair.verdict) == (p_value, verdict)
        line = format_pair(found, 1)[0]
        assert line.startswith(
            "B is better than A in acc, by McNemar's exact test, p = 0.031"
            if num == 6
            else "No clear difference in acc, by McNemar's exact test, p = 0.12; its interval excludes 0, but is by"
        )
        assert ("few images (4) differ: the test decides" in line) == (num == 4)
        assert "The verdict is by acc alone, by McNemar's exact test at 5%." in format_comparison(found)
        assert f"<b>{line.partition(chr(39))[0]}" in render_comparison(found)
        assert render_comparison(found).count("The verdict is by acc alone") == 1


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


def test_numbers_are_compared_on_one_scale_whatever_each_run_was_trained_on(tmp_path):
    # The second run is closer by half, and was trained on numbers with a tenth of the deviation.
    runs = [
        write_run(tmp_path / f"n{k}", [f"{row}.jpg,{row},{row + off},{off * off * scale}" for row in range(9)],
                  head="path,age,predicted of age,loss")
        for k, (off, scale) in enumerate([(2, 0.01), (1, 1.0)])
    ]  # fmt: skip
    (pair,) = compare_runs(runs).pairs
    assert (len(pair.first_right), len(pair.other_right)) == (0, 9)
    assert pair.differences["loss"].value == pytest.approx((1 - 4) / np.var(range(9)))
    assert pair.note == "9 images of both; loss of numbers standardised by these"


def test_runs_without_predictions_of_one_split_are_compared_by_the_rest(tmp_path):
    runs = [write_run(tmp_path / split, rows_of("ab" * 10), split) for split in ("test", "val")]
    found = compare_runs(runs)
    assert found.split == ""
    assert found.pairs[0].note == "not compared image by image: one of the two has no predictions; test it"
    assert "No split was predicted by each run, so that images are not compared" in render_comparison(found)
    assert "! No split was predicted by each run" in format_comparison(found)
    assert format_comparison(found).endswith("The configs are equal.")
    runs[0].result_table("predictions", "val").write_text("\n".join([HEAD, *rows_of("ab" * 10)]))
    found = compare_runs(runs)
    assert found.split == "val"
    told = "Compared on validation images, which have chosen the models: there are no test predictions of"
    assert list_caveats(found) == [f"{told} {tmp_path}/val"]


def write_classes(run, names, split="test"):
    rows = ["class,images,predicted,precision,recall,f1", *(f"{name},1,1,1,1,1" for name in names)]
    run.result_table("per_class", split).write_text("\n".join(rows) + "\n")
    return run


def test_numbers_of_images_and_classes_are_told_and_which_classes_one_run_alone_has(tmp_path):
    facts = {"run": {"images": {"train": 1234, "val": 5}}}
    first = write_classes(write_run(tmp_path / "x", rows_of("ab" * 10), metrics=facts), ["a", "b", *"cdefgh", "<i>"])
    other = write_classes(write_run(tmp_path / "y", rows_of("ab" * 10)[:15]), ["b", "a", "'=1"])
    same = write_classes(write_run(tmp_path / "z", rows_of("ab" * 10)), ["a", "b", *"cdefgh", "<i>"])
    found = compare_runs([first, other, same])
    rows = {name: cells for name, *cells in tabulate_runs(found)}
    assert rows["images"] == ["20", "15", "20"]
    assert rows["classes"] == ["9", "3", "9"]
    assert rows["trained on"] == ["1,234", "", ""]
    assert format_pair(found, 1)[2] == (
        "Their classes differ: A alone has c, d, e, f, g and 2 more, B alone has =1. They are compared on images of "
        "the classes of both, which are easier to tell for a model of fewer classes"
    )
    assert not [line for line in format_pair(found, 2) if "classes" in line]
    assert [line.partition(",")[0] for line in list_caveats(found)] == ["B: not measured on the same images as A"]
    assert "Their classes differ: A alone has c" in render_comparison(found)


@pytest.mark.parametrize(
    ("metrics", "splits", "caveat"),
    [
        ({"test": {"split": "val"}}, "train,test", "A: its test images are the validation images, which have chosen"),
        ({"test": {"split": "test"}}, "train,val", ""),
        ({}, "train,val", "A: its test images are the validation images, which have chosen the model: its figures are"),
        ({}, "train,test", ""),
        ({}, "", ""),
        (
            {"test": {"is_before_refit": True, "split": "test"}},
            "",
            "A: its figures are those of the model before the r",
        ),
        (
            {"test": {"checkpoint": "checkpoints/last.ckpt"}},
            "test",
            "A: its figures are those of checkpoints/last.ckpt",
        ),
        ({"test": {"checkpoint": "checkpoints/best.ckpt"}}, "test", ""),
    ],
)
def test_what_the_figures_are_worth_is_told_in_print_and_on_the_page(tmp_path, metrics, splits, caveat):
    runs = [
        write_run(tmp_path / "x", rows_of("ab" * 10), metrics=metrics),
        write_run(tmp_path / "y", rows_of("ab" * 10)),
    ]
    runs[0].checkpoints.mkdir()
    runs[0].checkpoint("best").touch()
    if splits:
        runs[0].split_table.write_text("path,label,split\n" + "".join(f"{s},a,{s}\n" for s in splits.split(",")))
    found = compare_runs(runs)
    told = list_caveats(found)
    assert len(told) == bool(caveat)
    for line in told:
        assert line.startswith(caveat)
        assert f"! {line}" in format_comparison(found)
        assert f"<li>{line}.</li>" in render_comparison(found)


def test_same_predictions_for_test_and_validation_show_that_these_are_the_same_images(tmp_path):
    run = write_run(tmp_path / "x", rows_of("ab" * 10))
    assert not is_tested_on_validation(run, {})
    run.result_table("predictions", "val").write_text("\n".join([HEAD, *rows_of("ba" * 10)]))
    assert is_tested_on_validation(run, {})


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
    assert "1 images are right in A alone, 0 in B alone" in lines
    assert any(line.split() == ["acc", "-1.0000", "-1.0000", "to", "-1.0000"] for line in lines)


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


@pytest.mark.long
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


def test_model_that_was_fitted_again_is_named_with_the_images_of_that(tmp_path):
    refit = {"checkpoint": "checkpoints/best.ckpt", "images": 180}
    facts = {"selection": {"chosen": "linear probe"}, "refit": refit, "run": {"images": {"train": 120}}}
    after, before = (
        write_run(tmp_path / name, rows_of("ab" * 10), metrics={**facts, "test": {"checkpoint": checkpoint}})
        for name, checkpoint in (("after", refit["checkpoint"]), ("before", None))
    )
    rows = {name: cells for name, *cells in tabulate_runs(compare_runs([after, before]))}
    assert rows["trained on"] == ["180", "120"]
    assert rows["handed back"] == ["linear probe, refit", "linear probe"]


def test_models_without_a_class_in_common_are_not_said_to_be_compared(tmp_path):
    runs = [write_run(tmp_path / kind, rows_of(kind * 10, true=kind * 10)) for kind in ("ab", "cd")]
    for run, kind in zip(runs, ("ab", "cd"), strict=True):
        run.result_table("per_class", "test").write_text("class,images\n" + "".join(f"{name},10\n" for name in kind))
    assert format_pair(compare_runs(runs), 1) == [
        "not compared image by image: they predict different things",
        "Their classes differ: A alone has a, b, B alone has c, d",
    ]
