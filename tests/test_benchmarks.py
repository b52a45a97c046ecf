"""What the benchmarks make of their measurements, and, in the long run, that those without data and peers run."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _their_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def turn(contestant, number, seconds, accuracy=0.5, **asked):
    measured = {
        "seconds": seconds,
        "cpu_seconds": seconds / 2,
        "ends": [seconds / 2, 3 * seconds / 4, seconds],
        "accuracies": [0.0, accuracy, accuracy],
        "startup": 1.0,
        "peak_mb": 100.0,
        "weights": "published",
    }
    return {"contestant": contestant, "round": number, **measured, **asked}


def test_what_scripts_import_is_there():
    gone = []
    for script in sorted(FOLDER.rglob("*.py")):
        nodes = ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        for node in (
            one for one in nodes if isinstance(one, ast.ImportFrom) and (one.module or "").startswith("lit_ft")
        ):
            module = importlib.import_module(node.module)
            names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            lost = [name for name in names if importlib.util.find_spec(f"{node.module}.{name}") is None]
            gone += [f"{script.name}: {node.module}.{name}" for name in lost]
    assert not gone


def test_a_ratio_is_of_two_turns_of_the_same_round():
    from peers.table import row

    turns = [turn("lit_ft", 0, 2.0), turn("lit_ft", 1, 4.0), turn("peer", 0, 20.0, 0.8), turn("peer", 1, 20.0, 0.9)]
    cells = [cell.strip() for cell in row("peer", turns).strip("|").split("|")]
    assert cells[0:5] == ["peer", "20.0 / 20.0 / 20.0", "5.00 / 7.50 / 10.00", "10.0 / 10.0 / 10.0", cells[2]]
    assert cells[5:7] == ["10.00 / 10.00 / 10.00", "5.000 / 5.000 / 5.000"]  # the first epoch, and later ones
    assert cells[-1] == "80.0 / 85.0 / 90.0"


def test_turns_that_a_file_has_are_not_taken_again(tmp_path, monkeypatch):
    from peers import contest

    asked = [{"contestant": name, "round": i} for i in range(2) for name in ("a", "b")]
    (tmp_path / "r.jsonl").write_text(json.dumps({**asked[1], "seconds": 7}) + "\n")
    taken = []
    monkeypatch.setattr(contest, "take", lambda turn: taken.append(turn) or {"seconds": len(taken)})
    assert [found["seconds"] for found in contest.hold(tmp_path / "r.jsonl", asked)] == [1, 7, 2, 3]
    assert taken == [asked[0], asked[2], asked[3]]
    assert len(contest.hold(tmp_path / "r.jsonl", asked)) == 4
    assert len(taken) == 3


def test_turns_are_taken_by_what_is_given(tmp_path):
    from peers import contest

    assert contest.hold(tmp_path / "r.jsonl", [{"round": 3}], lambda asked: {"twice": 2 * asked["round"]}) == [
        {"round": 3, "twice": 6}
    ]


def test_no_image_is_in_two_parts_and_test_is_the_same_in_all_splits():
    from choice_sets import Target, draw

    target = Target(train=3, val=2, test=4, size=32, augment="none")
    train = {label: [Path(f"{label}{i}") for i in range(14)] for label in "ab"}
    first, second = (draw(train, None, target, split) for split in range(2))
    assert [len(first[part]["a"]) for part in ("train", "val", "test")] == [3, 2, 4]
    assert first["test"] == second["test"]
    used = [image for split in (first, second) for part in ("train", "val") for image in split[part]["a"]]
    assert len({*used, *first["test"]["a"]}) == 14
    with pytest.raises(SystemExit, match="a: 14 images are too few for split 2"):
        draw(train, None, target, 2)
    given = draw(train, {label: [Path(f"test{i}") for i in range(9)] for label in "ab"}, target, 1)
    assert given["test"]["b"] == [Path(f"test{i}") for i in range(4)]


def test_agreement_of_orders():
    import numpy as np
    from choice_table import agreement, lost, tau

    accuracies = np.array([0.25, 0.5, 0.75, 1.0])
    correct = np.tile(np.arange(40) % 4 < 4 * accuracies[:, None], (2, 1, 1))  # two equal splits
    assert agreement(np.tile(accuracies, (2, 1)), correct) == (1, 1, 1)
    assert agreement(np.tile(-accuracies, (2, 1)), correct) == (-1, -1, -1)
    assert tau(np.array([1, 3, 2, 4]), accuracies) == pytest.approx(4 / 6)  # one of six pairs is exchanged
    # The first split takes the worst, the second one the best.
    predicted = np.array([[9, 1, 2, 3], [1, 2, 3, 9]])
    assert lost(predicted, np.tile(accuracies, (2, 1))) == pytest.approx(0.75 / 2)


@pytest.mark.long
def test_tables_of_an_order_have_the_best_backbone_first_and_what_is_lost_by_each_order():
    from choice_table import order_tables

    common = {"split": 0, "probe": "1100"}
    worse = {
        **common,
        "backbone": "a",
        "score": 0.5,
        "loss": 1.0,
        "logme": 0.2,
        "gflops": 2.0,
        "last": "1111",
        "best": "0001",
    }
    better = {
        **common,
        "backbone": "b",
        "score": 0.6,
        "loss": 0.9,
        "logme": 0.1,
        "gflops": 1.0,
        "last": "0000",
        "best": "1011",
    }
    lines = order_tables([worse, better]).splitlines()
    assert lines[2].split(" | ")[:2] == ["| b", "60.0 / 60.0 / 60.0"]
    assert lines[3].split(" | ")[4:] == ["50.0 / 50.0 / 50.0", "100.0 / 100.0 / 100.0", "25.0 / 25.0 / 25.0 |"]
    lost = {cells[0]: cells[2::2] for cells in (line.strip("| ").split(" | ") for line in lines[7:])}
    assert lost["accuracy of the probe"] == ["100.0", "0.0"]
    assert lost["LogME"] == ["0.0", "50.0"]


def test_another_contestant_begins_each_round():
    from peers.contest import beginning_with

    assert [beginning_with(number, ["a", "b", "c"]) for number in (0, 1, 5)] == [list("abc"), list("bca"), list("cab")]


def test_turns_of_other_code_are_not_taken_for_those_of_this(tmp_path, monkeypatch):
    from peers import contest

    def git(*arguments):
        person = ("-c", "user.name=x", "-c", "user.email=x@localhost")
        subprocess.run(["git", "-C", str(tmp_path), *person, *arguments], check=True, capture_output=True)

    def found():
        contest.commit.cache_clear()
        return contest.commit()

    monkeypatch.setattr(contest, "HERE", tmp_path)
    (tmp_path / "with_peer.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    seen = [found()]
    for text in ("2", "3"):
        (tmp_path / "with_peer.py").write_text(text)
        seen.append(found())
    git("commit", "-a", "-m", "second")
    assert len({*seen, found()}) == 4
    assert [len(name) for name in seen] == [len(seen[0]), len(seen[0]) + 8, len(seen[0]) + 8]
    contest.commit.cache_clear()


def test_seconds_to_a_goal_are_of_the_first_epoch_that_reaches_it_and_only_of_rounds_that_do():
    from flowers import line

    common = {"augment": False, "head_epochs": 2, "full_epochs": 0}
    turns = [turn("a", 0, 8.0, 0.835, **common), turn("a", 1, 80.0, 0.8, **common)]
    assert line(turns, [0.8, 0.835]).split(" | ")[1:3] == ["6.0 / 33.0 / 60.0 (2 of 2)", "6.0 / 6.0 / 6.0 (1 of 2)"]


def test_a_race_notes_the_step_of_each_goal_and_does_not_count_the_looking(monkeypatch):
    import watch

    now = [0.0]
    monkeypatch.setattr(watch.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(watch.time, "process_time", lambda: now[0] / 2)
    race = watch.Race([0.5, 0.7])

    def look(accuracy):
        now[0] += 100
        return accuracy

    for step in range(1, 21):
        now[0] += 1
        over = race.look(step, lambda: look(0.6 if step < 20 else 0.9))  # noqa: B023
        assert over == (step == 20)
    assert race.reached == {"0.5": [10, 10, 5], "0.7": [20, 20, 10]}


def test_the_exponent_of_growth():
    from growth import exponent

    assert exponent([10, 100, 1000], [30.0, 300.0, 3000.0]) == pytest.approx(1)
    assert exponent([10, 100, 1000], [5.0, 5.0, 5.0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["loop.py", "--only", "head", "--rounds", "1"], "besides, CPU ms"),
        (["growth.py", "stages", "--rounds", "1"], "memory MB"),
        (["start.py", "--rounds", "1"], "| lit-ft fit, quickstart, first step"),
    ],
)
def test_a_benchmark_runs_to_its_end(arguments, last, tmp_path):
    command = [sys.executable, str(FOLDER / arguments[0]), *arguments[1:]]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip().startswith(last)


def test_photos_of_a_transfer_are_never_tested_on_and_as_many_as_is_said():
    from transfer import choose

    classes = np.repeat(np.arange(5), [150, 140, 140, 140, 130])
    tested = []
    for fold in range(5):
        train, labels, test = choose(classes, "all", fold)
        assert not set(train.tolist()) & set(test.tolist())
        assert labels.tolist() == classes[train].tolist()
        tested += test.tolist()
        few, labels, same = choose(classes, "20 a class", fold)
        assert same.tolist() == test.tolist()
        assert np.bincount(labels).tolist() == [20] * 5
        assert set(few.tolist()) < set(train.tolist())
        _, labels, _ = choose(classes, "1:20 imbalance", fold)
        assert sorted(np.bincount(labels).tolist()) == [5, 11, 22, 47, 100]
        train, labels, _ = choose(classes, "20% wrong labels", fold)
        assert 0.14 < (labels != classes[train]).mean() < 0.26  # 20%, and 3.5 deviations of a share of 560
    assert sorted(tested) == list(range(700))


def test_a_share_is_of_loader_and_network_one_after_the_other():
    from roofline import Row, format_row

    found = {"loader": [300.0, 300.0, 300.0], "network": [60.0, 75.0, 100.0], "epoch": [40.0, 54.0, 75.0]}
    cells = [cell.strip() for cell in format_row(Row("a", "b", "all"), found, "").strip("|").split("|")]
    assert cells[3:] == ["300 / 300 / 300", "60 / 75 / 100", "50 / 60 / 75", "40 / 54 / 75", "0.80 / 0.90 / 1.00"]


def test_the_roofline_has_all_recipes_and_says_what_one_lacks(tmp_path):
    from roofline import ROWS, Row, format_row

    assert {row.recipe for row in ROWS} == {path.stem for path in (FOLDER.parent / "configs").glob("*.yaml")}
    (tmp_path / "data" / "flowers5").mkdir(parents=True)
    (tmp_path / "letters" / "EMNIST").mkdir(parents=True)
    row, places = Row("a", "b", "all", "flowers5", weights="b.pth"), (tmp_path / "data", tmp_path / "letters")
    assert "--model.weights=null" in row.command(*places)
    (tmp_path / "data" / "weights").mkdir()
    (tmp_path / "data" / "weights" / "b.pth").touch()
    assert f"--model.weights={tmp_path / 'data' / 'weights' / 'b.pth'}" in row.command(*places)
    assert row.missing(*places) == Row("a", "b", "all", "EMNIST").missing(*places) == ""
    assert Row("a", "b", "all").missing(*places) == ""
    assert Row("a", "b", "all", "MNIST").missing(*places) == "no MNIST"
    assert format_row(row, None, "no MNIST").split(" | ")[3] == "not measured: no MNIST"


def test_decoders_are_compared_with_the_first_of_the_same_round(capsys):
    from decoders import compare_pixels, print_ratios

    print_ratios("photos", {"a": [2.0, 4.0, 6.0], "b": [1.0, 4.0, 12.0]}, {"a": "", "b": "equal"})
    assert capsys.readouterr().out.splitlines()[-1] == "| b | 1.00 / 4.00 / 12.00 | 0.50 / 1.00 / 2.00 | equal |"
    pixels = np.zeros((2, 3, 3), np.uint8)
    assert compare_pixels(pixels, pixels) == "equal"
    assert compare_pixels(pixels + np.uint8(4), pixels) == "differ by up to 4"
    assert compare_pixels(pixels[:1], pixels) == "3 x 1"
