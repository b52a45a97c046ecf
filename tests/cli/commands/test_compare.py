"""``lit-ft compare`` from the command line."""

from pathlib import Path

import pytest
import yaml

from lit_ft.runs import Run


@pytest.fixture
def runs(tmp_path):
    """Two runs, of which one predicts another class for one of two images."""
    for name, predicted in (("x", "b"), ("y", "a")):
        run = Run(Path(name))
        run.folder.mkdir()
        run.config.write_text(yaml.safe_dump({"model": {"lr": 0.1, "backbone": name}}))
        rows = ["path,class,predicted,probability,loss", f"1.jpg,b,{predicted},0.5,0.7", "2.jpg,a,a,0.5,0.7"]
        run.result_table("predictions", "test").write_text("\n".join(rows))
    return "x", "y"


def test_command_prints_and_writes_a_page(lit_ft, runs):
    code, out, err = lit_ft("compare", *runs)
    assert (code, err) == (0, [])
    assert "B less A: y less x" in out
    assert "model.backbone  x     y" in out
    assert out.splitlines()[-1] == "Written: compare.html"
    assert "model.backbone" in Path("compare.html").read_text()


def test_page_that_is_there_is_kept(lit_ft, refused, runs):
    Path("compare.html").write_text("mine")
    expected = "lit-ft: --out: compare.html exists; name another file, or to overwrite it: --overwrite"
    assert refused("compare", *runs) == expected
    assert Path("compare.html").read_text() == "mine"
    assert lit_ft("compare", *runs, "--overwrite")[0] == 0
    assert Path("compare.html").read_text() != "mine"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["x"], "RUN: give two or more, to compare the first with"),
        (["x", "./x", "y"], "x is given twice"),
        (["x", "x/config.yaml"], "x/config.yaml: is not the folder of a run, as it has no config.yaml"),
        (["x", "nothing"], "nothing: does not exist; name the folder of a run"),
        (["x", "y", "--out", "a.txt"], "--out: a.txt must end in .html"),
        (["x", "y", "--out", "folder.html"], "--out: folder.html is a folder, not a file"),
        ([], "the following arguments are required: RUN (see lit-ft compare --help)"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(refused, runs, given, expected):
    Path("folder.html").mkdir()
    assert refused("compare", *given).endswith(expected)
    assert not Path("compare.html").exists()
