"""The notebooks of ``examples``: what is kept of their output, and that they run."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs_are_small_and_of_one_run_without_errors(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) > 1
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [output for output in outputs if WIDGET in output.get("data", {})]  # nobody could draw it again
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size < 60_000
    assert not re.search(r'"/(tmp|home|root|Users)/', path.read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    if path.stem == "own_photos":
        assert [output for output in outputs if WIDGET in output.get("data", {})]
        run = tmp_path / "logs" / "digits" / "version_0"
        metrics = json.loads((run / "metrics.json").read_text())
        low, high = metrics["test"]["intervals"]["test/acc"]
        assert f"{metrics['test']['test/acc']:.3f}  ({low:.3f} to {high:.3f})" in printed
        assert "unsure" in printed
        assert (run / "report.html").is_file()
    else:
        table = [line for line in printed.splitlines() if "test/acc" in line and "val/loss" in line]
        assert [line[:24].strip() for line in table] == [
            "linear probe", "head, then last stages", "head, then all", "all at once"
        ]  # fmt: skip
