"""The benchmark of a GPU: parts that fail or hang cost their own time alone, and what they had written is kept."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _their_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def row(what, result="1 s", relative=""):
    return json.dumps({"what": what, "result": result, "relative": relative})


def run_parts(folder, scripts, monkeypatch, seconds=60.0):
    """Runs parts that are scripts, and gives the page."""
    import gpu

    page = gpu.Page(folder / "gpu.md", "A GPU")
    args = Namespace(device="cuda", rounds=1)
    with (folder / "gpu.log").open("w") as log:
        for name, script in scripts.items():
            # A script is given the arguments of a part, of which the last but one is the file for its rows.
            rows = "import sys; file = open([a for a in sys.argv if '--rows' in a][0].split('=')[1], 'a');"
            monkeypatch.setattr(gpu, "COMMAND", [sys.executable, "-c", f"{rows}\n{script}"])
            page.parts.append(done := gpu.Done(name, folder / f"{name}.jsonl"))
            done.note = gpu.run_part(done, seconds, args, page, log)
            page.write()
    return page.file.read_text()


@pytest.mark.long
def test_part_that_hangs_or_fails_leaves_its_rows_and_the_parts_after_it(tmp_path, monkeypatch):
    hangs = f"print({row('first')!r}, file=file, flush=True); import time; time.sleep(60)"
    fails = f"print({row('second')!r}, file=file); file.write('{{'); file.close(); raise RuntimeError('no | memory')"
    works = f"print({row('third')!r}, file=file); print({row('third', '2 s', 'half')!r}, file=file)"
    parts = {"tests": hangs, "share": fails, "cifar": works}
    text = run_parts(tmp_path, parts, monkeypatch, seconds=1.5)
    assert text.splitlines() == [
        "A GPU",
        "",
        "| part | measured | min / median / max | relative |",
        "|---|---|---|---|",
        "| tests marked `gpu` | first | 1 s |  |",
        "| training at 224 px | second | 1 s |  |",
        "| training at 32 px | third | 2 s | half |",
        "",
        "- tests marked `gpu`: ended after its 2 s, so that rows may be missing.",
        "- training at 224 px: failed with 1 (RuntimeError: no / memory).",
    ]
    assert "===== cifar, 2 s" in (tmp_path / "gpu.log").read_text()


def test_part_has_the_share_of_its_weight_and_what_others_left():
    import gpu
    from gpu_parts import PARTS

    assert sum(part.weight for part in PARTS.values()) == 100
    names = list(PARTS)
    assert gpu.divide(200.0, names) == pytest.approx(2 * PARTS["tests"].weight)
    left = 200.0 - 1.0  # as the first took a second
    assert gpu.divide(left, names[1:]) > 2 * PARTS[names[1]].weight
    assert gpu.divide(left, names[-1:]) == left


class Clock:
    """A clock that turns move."""

    def __init__(self, monkeypatch, measuring):
        self.now = 1000.0
        monkeypatch.setattr(measuring.time, "time", lambda: self.now)

    def turn(self, seconds, rate):
        def take(_):
            self.now += seconds
            return rate

        return take


@pytest.mark.parametrize(
    ("seconds", "turns", "rounds"),
    [(100.0, "3 turns", 3), (38.0, "2 turns", 2), (25.0, "one turn", 1), (5.0, "one turn", 1)],
)
def test_turns_are_as_many_as_there_is_time_for_after_a_round_to_warm_up(seconds, turns, rounds, tmp_path, monkeypatch):
    from gpu import read_rows
    from gpu_parts import measuring

    clock = Clock(monkeypatch, measuring)
    with_time = measuring.Measuring(measuring.TINY, 3, clock.now + seconds, tmp_path / "rows")
    found = measuring.take_turns(with_time, "all", {"bare": clock.turn(4, 100.0), "ours": clock.turn(6, 90.0)})
    assert found == {"bare": [100.0] * rounds, "ours": [90.0] * rounds}
    bare, ours = read_rows(tmp_path / "rows")
    assert bare == {"what": "all: bare", "result": f"100 / 100 / 100 images/s, {turns}", "relative": ""}
    assert ours["relative"] == "0.900 / 0.900 / 0.900 of the first"


def test_contestant_that_fails_leaves_the_turns_to_the_others(tmp_path, monkeypatch):
    from gpu import read_rows
    from gpu_parts import measuring

    def fail(_):
        raise RuntimeError("out of\nmemory")

    clock = Clock(monkeypatch, measuring)
    with_time = measuring.Measuring(measuring.TINY, 2, clock.now + 100, tmp_path / "rows")
    turns = {"bare": fail, "ours": clock.turn(1, 90.0), "other": clock.turn(1, 45.0)}
    assert measuring.take_turns(with_time, "all", turns) == {"ours": [90.0] * 2, "other": [45.0] * 2}
    rows = {row["what"]: (row["result"], row["relative"]) for row in read_rows(tmp_path / "rows")}
    assert rows == {
        "all: bare": ("failed (RuntimeError: out of memory)", ""),
        "all: ours": ("90 / 90 / 90 images/s, 2 turns", ""),
        "all: other": ("45 / 45 / 45 images/s, 2 turns", "0.500 / 0.500 / 0.500 of the first"),
    }


def test_outcomes_of_tests_are_counted_as_they_come(tmp_path):
    from gpu import read_rows
    from gpu_parts.measuring import TINY, Measuring
    from gpu_parts.tests import Outcomes, follow

    lines = [
        "tests/gpu/test_a.py::test_x[of two words] PASSED [  3%]\n",
        "[gw0] [ 10%] FAILED tests/gpu/test_a.py::test_y[1] \n",
        "tests/gpu/test_a.py::test_z FAILED [ 13%]\n",
        "[gw1] [ 20%] SKIPPED tests/gpu/test_b.py::test_x \n",
        "E   assert 1 == 2\n",
        "FAILED tests/gpu/test_a.py::test_y[1] - assert 1 == 2\n",
    ]
    follow(lines, Outcomes(), Measuring(TINY, 1, 0.0, tmp_path / "rows"))
    assert read_rows(tmp_path / "rows") == [
        {"what": "test_a", "result": "1 passed, 2 failed", "relative": "failed: test_y[1] (assert 1 == 2); test_z"},
        {"what": "test_b", "result": "1 skipped", "relative": ""},
    ]


@pytest.mark.parametrize("part", ["share", "cifar", "photos", "heads", "memory"])
def test_each_part_is_a_function_of_its_module(part):
    from importlib import import_module

    from gpu_parts import PARTS

    assert callable(getattr(import_module(f"gpu_parts.{PARTS[part].home}"), part))


@pytest.mark.slow
def test_all_parts_run_to_their_end_on_a_cpu(tmp_path):
    command = [sys.executable, str(FOLDER / "gpu.py"), "--all", "--minutes", "20", "--device", "cpu", "--rounds", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "gpu.md").read_text()
    assert done.stdout.strip() == text.strip()
    assert "\n- " not in text  # a note on a part that failed or ended early
    assert " failed" not in text
    for what in ("test_gpu_fit", "the step alone", "an epoch of", "decoded and cropped", "linear probe", "peak memory"):
        assert what in text
