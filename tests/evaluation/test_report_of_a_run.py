"""The page of a run."""

import base64
import json
import re

import pytest
import yaml
from PIL import Image

from lit_ft.errors import UserError
from lit_ft.evaluation.report import read_run, render_report
from lit_ft.evaluation.report_charts import find_unfreezings
from lit_ft.runs import Run
from lit_ft.training.history import append_row

BAD = "<script>alert(1)</script>"
CONFIG = {
    "seed_everything": 7,
    "model": {"class_path": "lit_ft.FineTuneModule", "init_args": {"backbone": "squeezenet1_1", "lr": 0.01}},
    "data": {"class_path": "lit_ft.data.ImageFolderDataModule", "init_args": {"root": "photos <1>"}},
    "unfreeze": {"class_path": "lit_ft.GradualUnfreezing", "init_args": {"strategy": "gradual"}},
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {}},
}


@pytest.fixture
def run(tmp_path):
    """A run of two classes, one of which has a hostile name, that has been tested."""
    run = Run(tmp_path / "pets" / "version_3")
    run.folder.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump(CONFIG))
    rates = ((0.1, 0.0), (0.1, 0.05), (0.05, 0.02))
    for epoch, (head, stem) in enumerate(rates):
        losses = {"train/loss": 1.0 / (epoch + 1), "val/loss": 1.2 / (epoch + 1), "val/acc": 0.5 + 0.1 * epoch}
        append_row(run.history, {"epoch": epoch, "step": 9 * epoch, "lr/head": head, "lr/stem": stem, **losses})
    entry = {"checkpoint": None, "test/acc": 0.75, "test/loss": 0.5, "intervals": {"test/acc": [0.6, 0.9]}}
    choice = {
        "chosen": "epoch 2",
        "split": "val",
        "monitor": "val/acc",
        "candidates": {"linear probe": {"val/acc": 0.6}, "epoch 2": {"val/acc": None}},
    }
    facts = {"seconds": {"training": 3.0, "test": 1.0}, "images": {"train": 9, "test": 4}, "device": "1 x cpu",
             "versions": {"torch": "2.14"}}  # fmt: skip
    calibration = {"temperature": 1.5, "ece_before": 0.5, "ece_after": 0.25, "images": 9}
    run.metrics.write_text(json.dumps({"val": {"val/acc": 0.7}, "test": entry, "selection": choice, "run": facts,
                                       "calibration": calibration}))  # fmt: skip
    Image.new("RGB", (300, 200), "red").save(photo := tmp_path / "wrong.jpg")
    bad = BAD
    rows = [("a.jpg", "ant", "ant", 0.9, 0.1), (photo, "ant", bad, 0.8, 1.6), ("gone.jpg", bad, "ant", 0.7, 2.5),
            ("d.jpg", bad, bad, 0.6, 0.5)]  # fmt: skip
    lines = ["path,class,predicted,probability,loss", *(",".join(map(str, row)) for row in rows)]
    run.result_table("predictions", "test").write_text("\n".join(lines) + "\n")
    run.result_table("confusion", "test").write_text(f"class,ant,{bad}\nant,1,1\n{bad},1,1\n")
    table = f"class,images,predicted,precision,recall,f1\nant,2,2,0.5,0.5,0.5\n{bad},2,2,0.5,0.5,0.5\n"
    run.result_table("per_class", "test").write_text(table)
    return run


def test_page_shows_what_was_run_and_what_came_of_it(run):
    page = read_run(run)
    assert page.title == "pets/version_3"
    assert page.facts == {
        "backbone": "squeezenet1_1", "data": "photos <1>", "strategy": "gradual",
        "optimizer": "SGD, learning rate 0.01",
        "epochs": "3", "seed": "7", "device": "1 x cpu", "versions": "torch 2.14", "images": "train 9, test 4",
        "weights": "squeezenet1_1 IMAGENET1K_V1; https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth; "
        "licence not stated; https://github.com/pytorch/vision/pull/49#issuecomment-277560717",
    }  # fmt: skip
    assert page.metrics == [
        ["metric", "linear probe, val", "val", "test"],
        ["accuracy", "60.0%", "70.0%", "75.0% (60.0% to 90.0%)"],
        ["loss", "", "", "0.5000"],
    ]
    assert [(tile.name, tile.value, tile.note) for tile in page.tiles] == [
        ("accuracy, test", "75.0%", "60.0% to 90.0%, 4 images"),
        ("accuracy, val", "70.0%", ""),
        ("accuracy, val", "60.0%", "of the linear probe"),
        ("loss, test", "0.5000", "4 images"),
    ]
    assert page.candidates == [["candidate", "accuracy"], ["linear probe", "60.0%"], ["epoch 2", ""]]
    assert list(page.charts) == [
        "Loss", "Scores", "Learning rates", "Reliability", "Accuracy of the most probable", "Precision",
    ]  # fmt: skip
    assert page.plan.count("<rect class='bar'") == 2
    assert page.seconds == [("training steps", "3.0s", 0.75), ("test", "1.0s", 0.25), ("all", "4.0s", 1.0)]
    assert page.drift == {}
    assert "unfrozen: stem" in page.charts["Loss"]
    assert page.matrix == [("ant", [1, 1]), ("<script>alert(1)</script>", [1, 1])]
    # In bins of 0.6, 0.7, 0.8 and 0.9, of which the middle two are wrong: (0.4 + 0.7 + 0.8 + 0.1) / 4.
    assert page.calibration.startswith("Expected calibration error 50.0% of 4 predictions")
    assert page.calibration.endswith(
        "a temperature of 1.5 changed the error from 50.0% to 25.0% on 9 validation images."
    )
    # An image of the class is recognised with 0.9 on average, and one of the hostile name with 0.6.
    assert [image.path.rpartition("/")[2] for image in page.suspects] == ["wrong.jpg"]
    assert (page.suspects[0].true, page.suspects[0].split) == ("ant", "test")
    assert [image.path for image in page.mistakes] == ["gone.jpg"]
    assert [image.predicted for image in page.samples] == ["", f"{BAD} (80%)", "ant (70%)", ""]
    assert page.config.endswith("version_3/config.yaml")


def test_page_has_the_training_images_of_the_run_if_there_are_some(run):
    assert "Training images" not in render_report(run)
    run.train_images.write_text("no picture")
    assert "Training images" not in render_report(run)
    Image.new("RGB", (960, 540), "blue").save(run.train_images)
    html = render_report(run)
    assert f"base64,{base64.b64encode(run.train_images.read_bytes()).decode()}'" in html


def test_photo_that_is_gone_is_a_box_that_says_so(run):
    html = render_report(run)
    gone = html.partition("id='mistakes'")[2].partition("</figure>")[0]
    assert "<div class='none'>missing, damaged or too large</div>" in gone


def test_page_is_one_file_without_foreign_scripts_or_anything_from_elsewhere(run):
    html = render_report(run)
    assert html.count("<script") == 1  # that sorts tables
    assert "alert" not in html.rpartition("<script>")[2]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "photos &lt;1&gt;" in html
    assert not re.search(r"(src|href)=['\"](?!data:|#)", html)
    assert (
        html.count("data:image/jpeg;base64,") == 2
    )  # of the photo that is still there, as a suspect and in the sample
    assert "Handed back: epoch 2, chosen on the val images by val/acc." in html
    assert set(re.findall("href='#([a-z]+)'", html)) == set(re.findall("<h2 id='([a-z]+)'", html))
    assert ">50%<" in html


def test_run_that_was_not_tested_has_the_rest(run):
    for file in (*run.folder.glob("*_test.csv"), run.metrics):
        file.unlink()
    page = read_run(run)
    assert [page.metrics, page.matrix, page.mistakes, page.classes, page.candidates, page.tiles] == [[]] * 6
    assert "<script" not in render_report(run)
    assert "Loss" in page.charts
    run.history.unlink()
    assert not read_run(run).charts
    assert "pets/version_3" in render_report(run)


def test_images_that_chose_the_model_and_were_tested_on_are_no_test(run):
    assert "the test images have not" in read_run(run).note
    table = run.result_table("predictions", "test").read_text()
    run.result_table("predictions", "val").write_text(table)
    assert read_run(run).note.startswith("There were no test images: the validation images")
    run.result_table("predictions", "val").write_text(table.replace("a.jpg", "b.jpg"))
    assert "the test images have not" in read_run(run).note


@pytest.mark.parametrize("num", [30, 101])
def test_matrix_of_many_classes_is_a_picture_or_pairs_alone(run, num):
    names = [f"class {k}" for k in range(num)]
    rows = [
        ",".join([name, *(str(5 if j == k + 1 else 9 * (j == k)) for j in range(num))]) for k, name in enumerate(names)
    ]
    run.result_table("confusion", "test").write_text("\n".join([",".join(["class", *names]), *rows]) + "\n")
    page = read_run(run)
    assert page.matrix == []
    assert page.pairs[0] == ("class 0", "class 1", 5)
    assert len(page.pairs) == 15
    assert page.matrix_picture.count("class='hit'") == (30 if num == 30 else 0)
    assert page.matrix_picture.count("class 0, predicted class 1: 5 of 14") == (num == 30)


DAMAGES = {
    "metrics.json": [
        "[" * 100_000,
        '{"test": {"test/acc": 1, "intervals": [1, 2]}}',
        '{"test": {"test/acc": 1, "intervals": {"test/acc": ["a", "b"]}}}',
        '{"selection": {"candidates": {"epoch 1": 3}}}',
        f'{{"test": {{"test/acc": 1{"0" * 400}}}}}',
    ],
    "history.csv": [f"epoch,val/loss\n0,{'9' * 400}\n", "epoch,val/loss\n0,1e308\n1,-1e308\n"],
    "predictions_test.csv": [
        "a;b\n1;2\n",
        "path,class,predicted,probability,loss\na,b,c,high,1\n",
        "path\n" + "x" * 200_000,
    ],
    "confusion_test.csv": ["class,ant\nant,many\n", "class,ant\nant,1,2\n"],
    "config.yaml": ["[" * 20_000],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGES.items() for text in texts])
def test_file_edited_into_nonsense_is_named(run, name, text):
    (run.folder / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: (is damaged|cannot be read)"):
        render_report(run)


def test_tables_that_a_spreadsheet_has_saved_are_read(run):
    before = read_run(run)
    for file in run.folder.glob("*_test.csv"):
        file.write_text(file.read_text(), "utf-8-sig")
    assert read_run(run) == before


def test_class_may_have_the_name_of_a_column(run):
    run.result_table("confusion", "test").write_text("class,ant,class\nant,1,2\nclass,3,4\n")
    assert read_run(run).matrix == [("ant", [1, 2]), ("class", [3, 4])]


def test_number_may_have_the_name_of_a_column(run):
    head = "path,predicted,class,predicted of predicted,predicted of class,loss"
    run.result_table("predictions", "test").write_text(f"{head}\na.jpg,1,2,1.5,2.5,0.25\n")
    page = read_run(run)
    assert [(image.true, image.predicted) for image in page.mistakes] == [
        ("predicted 1, class 2", "predicted 1.5, class 2.5")
    ]
    assert list(page.charts)[-2:] == ["Predicted predicted", "Predicted class"]


def test_image_without_a_finite_loss_is_the_worst_mistake(run):
    table = run.result_table("predictions", "test")
    table.write_text(table.read_text() + "e.jpg,ant,bee,nan,nan\n")
    page = read_run(run)
    assert page.mistakes[0].path == "e.jpg"
    assert "of 4 predictions" in page.calibration


def test_stage_that_is_frozen_again_is_unfrozen_once_more():
    rows = [{"epoch": epoch, "lr/stem": rate} for epoch, rate in enumerate((0.0, 0.1, 0.1, 0.0, 0.1))]
    assert find_unfreezings(rows) == {1.0: "unfrozen: stem", 4.0: "unfrozen: stem"}


def test_what_is_no_run_or_damaged_is_told_in_a_line(run, tmp_path):
    with pytest.raises(UserError, match=r"pets: is not the folder of a run, as it has no config.yaml"):
        read_run(Run(tmp_path / "pets"))
    run.metrics.write_text("{")
    with pytest.raises(UserError, match=r"metrics.json: is damaged .*test the run again"):
        read_run(run)
    run.config.write_text("model: [")
    with pytest.raises(UserError, match=r"config.yaml: cannot be read"):
        read_run(run)
