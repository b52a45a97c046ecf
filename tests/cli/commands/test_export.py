"""``lit-ft export``, ``lit-ft verify``, and ``lit-ft predict`` with a file, as a user runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exported_runs import CLASSES, LEAST, write_run

import lit_ft
from lit_ft.cli import main
from lit_ft.cli.commands.export import find_examples

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of a grey network, its file, and what the command printed."""
    folder = tmp_path_factory.mktemp("exported")
    run, out = write_run(folder), folder / "out" / "model.onnx"
    done = _call("export", run, out)
    assert done[0] == 0, done
    return run, out, done[1]


def _call(*args):
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([*map(str, args)])
    return code, out.getvalue(), err.getvalue()


def card_of(out):
    return Path(f"{out}.md")


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_file_that_sees_whole_photos_predicts_as_the_checkpoint_does(fit, tmp_path, monkeypatch):
    run, out = write_run(tmp_path, input={"fit": fit}), tmp_path / "model.onnx"
    code, printed, errors = _call("export", run, out)
    assert code == 0, errors
    assert f"of any size; resized{' and padded' if fit == 'pad' else ''} inside" in printed
    assert "what is outside of the centre" not in card_of(out).read_text()
    monkeypatch.chdir(tmp_path)
    for model, name in ((run, "a.json"), (out, "b.json")):
        assert main(["predict", str(model), str(tmp_path / "photos" / "val"), "--out", name]) == 0
    first, second = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    for one, other in zip(first, second, strict=True):
        assert other["probability"] == pytest.approx(one["probability"], abs=0.05)


def test_command_prints_what_is_in_the_file_and_how_it_was_verified(exported):
    _, out, printed = exported
    assert f"Exported  {out}, " in printed
    assert "mnist_cnn, multiclass, 2 outputs" in printed
    assert re.search(r"Verified  by onnxruntime \S+, .* on 8 validation images, .*: largest difference ", printed)
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx", "model.onnx.md"]


def test_file_predicts_photos_as_the_checkpoint_does(exported, tmp_path, monkeypatch):
    run, out, _ = exported
    monkeypatch.chdir(tmp_path)
    photos = run.parent / "photos" / "val"
    for model, name in ((run, "a.json"), (out, "b.json")):
        assert main(["predict", str(model), str(photos), "--out", name, "--top_k", "2"]) == 0
    first, second = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert [row["path"] for row in first] == [row["path"] for row in second]
    assert len({row["probability"] for row in first}) == 8
    for one, other in zip(first, second, strict=True):
        # Where torch rounds once, pixels may differ by one level.
        assert other["probability"] == pytest.approx(one["probability"], abs=0.05)
        assert other["unsure"] == (min(other["probability"], other["probability_2"]) >= LEAST)
        assert other["unlike_training"] == one["unlike_training"]
    assert any(row["unsure"] for row in second)
    assert {row["unlike_training"] for row in second} == {False, True}


def test_metadata_and_shapes_are_those_that_other_programs_read(exported):
    proto = onnx.load(exported[1])
    (taken,), (given, apart) = proto.graph.input, proto.graph.output
    values = (taken, given, apart)
    shapes = [[one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim] for value in values]
    assert (taken.name, taken.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    for value, name in ((given, "outputs"), (apart, "distance")):
        assert (value.name, value.type.tensor_type.elem_type) == (name, onnx.TensorProto.FLOAT)
    assert shapes == [["batch", "height", "width", 3], ["batch", 2], ["batch"]]
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", 18)]
    onnx.checker.check_model(proto, full_check=True)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert (json.loads(metadata["classes"]), metadata["task"]) == (CLASSES, "multiclass")
    text = proto.SerializeToString()
    for path in (os.path.dirname(torch.__file__), os.path.dirname(lit_ft.__file__), str(exported[0].parent)):
        assert path.encode() not in text


def test_verify_loads_neither_torch_nor_lightning(exported):
    code = (
        "import sys; from lit_ft.cli import main; code = main(['verify', sys.argv[1]]); "
        "print(code, [name for name in ('torch', 'lightning', 'torchvision', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, exported[1]], capture_output=True, text=True, check=True, timeout=60
    )
    assert "agrees on 8 images, largest difference " in done.stdout
    assert "Runtime     onnxruntime " in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


def test_verify_fails_where_outputs_or_distances_differ(exported, tmp_path):
    proto = onnx.load(exported[1])
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "examples")
    examples = json.loads(entry.value)
    examples[3]["distance"] += 0.002
    entry.value = json.dumps(examples)
    onnx.save(proto, out := tmp_path / "apart.onnx")
    code, printed, _ = _call("verify", out)
    assert code == 1
    assert re.search(r"DIFFERS on 8 images, largest difference \S+, allowed 0.001; of distances 0.002, ", printed)
    examples[2]["outputs"] = examples[2]["outputs"][::-1]
    entry.value = json.dumps(examples)
    onnx.save(proto, out := tmp_path / "other.onnx")
    code, printed, errors = _call("verify", exported[1], out)
    assert code == 1
    assert re.search(rf"{exported[1]}: agrees .*; of distances \S+, allowed 0.001", printed)
    assert f"{out}: DIFFERS on 8 images, largest difference " in printed
    assert re.search(r"image 2     0\.\d+, another class", printed)
    assert errors == (
        f"lit-ft: {out}: its outputs differ from the model's; export it again, or run it with the versions that wrote "
        "it\n"
    )


def test_card_tells_what_is_known_and_names_no_path(exported):
    run, out, _ = exported
    card = card_of(out).read_text()
    assert str(run.parent) not in card
    for line in (
        "# model.onnx",
        "| images | shorter side to 28, bilinear, then the centre 28 x 28; grey |",
        "ant, be\\|e &lt;i&gt;",
        "ImageFolderDataModule photos",
        "16 images of train, 8 images of val",
        "| acc | 0.5000 (0.2500 to 0.7500) |",
        "| ant | 40 | 8 | 0.5 | 1 | 0.6 |",
        "mnist\\_cnn from random weights.",
        "| parameters | 692,930 |",
    ):
        assert line in card.splitlines(), line
    groups = re.findall(r"\| camera (\d) \| (\d) \| (\S+) \|", card)
    assert sorted(groups) == [("0", "2", "0.5000"), ("1", "3", "0.6667"), ("2", "3", "0.3333")]
    assert [share for _, _, share in groups] == sorted(share for _, _, share in groups)


def test_code_in_the_card_runs_without_lit_ft(exported, tmp_path):
    run, out, _ = exported
    code = re.search(r"```python\n(.*?)```", card_of(out).read_text(), re.DOTALL)[1]
    photo = run.parent / "photos/val" / CLASSES[0] / "16.png"
    (tmp_path / "photo.jpg").symlink_to(photo)
    (tmp_path / "model.onnx").symlink_to(out)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    found = eval(done.stdout)
    (wanted,) = lit_ft.load(run, "cpu").predict(photo, top_k=2)
    assert found == pytest.approx(dict(wanted.top_k), abs=0.05)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["{run}", "a.tflite"], r"FILE: a.tflite must end in .onnx, .pt2, .safetensors"),
        (["{run}", "folder.onnx"], "FILE: folder.onnx is a folder"),
        (["{run}", "there.onnx"], "FILE: there.onnx exists; name another file, or to overwrite it: --overwrite"),
        (
            ["{run}", "card.onnx"],
            "FILE: card.onnx.md exists, and the model card of card.onnx would replace it; name another file",
        ),
        (["{run}", "there.onnx/a.onnx"], "FILE: nothing can be written in .*there.onnx; name another file"),
        (["nowhere.ckpt", "a.onnx"], "CHECKPOINT: no such file: nowhere.ckpt"),
        (["a.onnx", "folder.onnx"], "a.onnx: the run comes first; type lit-ft export folder.onnx a.onnx"),
        (["there.onnx", "a.onnx"], "CHECKPOINT: there.onnx is not a checkpoint, or it is damaged"),
        (["{run}", "a.pt2", "--int8"], "--int8: is for .onnx, not .pt2"),
        (["{run}", "a.safetensors", "--until", "conv"], "--until: is for .onnx and .pt2, not .safetensors"),
        (["{run}", "a.safetensors", "--examples", "drawn"], "--examples: is for .onnx and .pt2, not .safetensors"),
        (["{run}", "a.onnx", "--until", "layer4"], "--until: unknown stage 'layer4' .choose from conv, dense"),
        (["{run}", "a.onnx", "--examples", "nowhere"], "--examples: nowhere does not exist"),
        (["{run}", "a.safetensors"], ".safetensors: mnist_cnn is of no library; export to .onnx or .pt2"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(exported, tmp_path, monkeypatch, args, text):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    Path("card.onnx.md").touch()
    Path("folder.onnx").mkdir()
    before = sorted(tmp_path.iterdir())
    code, printed, errors = _call("export", *(arg.format(run=exported[0]) for arg in args))
    assert (code, printed) == (2, "")
    assert re.search(f"^lit-ft: {text}", errors), errors
    assert sorted(tmp_path.iterdir()) == before


def test_run_whose_photos_are_gone_is_exported_with_drawn_images(tmp_path, capsys):
    run = write_run(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "gone")
    module, checkpoint = lit_ft.load(run, "cpu"), run / "checkpoints/best.ckpt"
    images, what = find_examples(module, checkpoint, None)
    assert (len(images), what) == (8, "8 drawn patches of colour")
    printed = capsys.readouterr().out
    assert re.match(r"Examples  no validation images at hand \(data\.root: .* does not exist", printed)
    assert printed.endswith("; --examples FOLDER gives photos\n")
    images, what = find_examples(module, checkpoint, str(tmp_path / "gone"))
    assert (len(images), what) == (8, f"8 images of {tmp_path / 'gone'}")
    images, what = find_examples(module, checkpoint, "drawn")
    assert (what, capsys.readouterr().out) == ("8 drawn patches of colour", "")
    for option in ("--int8", "--until=conv"):
        code, _, errors = _call("export", run, tmp_path / "a.onnx", option)
        name = option.partition("=")[0]
        text = f"lit-ft: {name}: needs the training images of the run, which are not at hand (data.root: "
        assert (code, errors.startswith(text)) == (2, True), errors
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("nowhere.onnx", "nowhere.onnx: cannot be read"),
        ("text.onnx", "text.onnx: cannot be opened; it is damaged, or of a newer version"),
        ("a.txt", "a.txt: must end in .onnx or .pt2"),
        ("a.safetensors", "a.safetensors: must end in .onnx or .pt2; weights alone cannot be run"),
    ],
)
def test_what_is_no_exported_file_is_refused(tmp_path, monkeypatch, file, text):
    monkeypatch.chdir(tmp_path)
    Path("text.onnx").write_text("no file")
    code, printed, errors = _call("verify", file)
    assert (code, printed) == (2, "")
    assert errors.startswith(f"lit-ft: {text}"), errors


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"backbone": "timm/test_vit", "input": {"size": 64, "resize": 64}}])
def test_network_that_is_cut_and_in_8_bits_tells_what_that_costs(tmp_path, monkeypatch, options):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    run, name = write_run(tmp_path, **options), options.get("backbone", "mnist_cnn")
    stage = {"mnist_cnn": "conv", "timm/test_vit": "stage2"}[name]
    code, printed, errors = _call("export", run, "a.onnx", "--int8", "--until", stage)
    assert code == 0, errors
    assert re.search(rf"^Cut after {stage}: val/acc [01]\.\d+ before, 1\.0000 now; \d+% of the compute", printed, re.M)
    assert re.search(
        r"^Quantised to 8 bits: accuracy 1\.0000 before, 1\.0000 now, another class for 0.0%, on 8", printed, re.M
    )
    card = Path("a.onnx.md").read_text()
    assert "| precision | int8 |" in card
    assert "By group" not in card  # which is of the whole network
    assert "## Results\n\nThose of the run are of the whole network." in card
    count = int(re.search(r"\| parameters \| (\S+) \|", card)[1].replace(",", ""))
    assert count < sum(parameter.numel() for parameter in lit_ft.load(run, "cpu").parameters())
    assert _call("verify", "a.onnx")[0] == 0
    proto = onnx.load("a.onnx")
    assert {node.op_type for node in proto.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    assert [makers[value.name] for value in proto.graph.output] == ["Softmax", "ReduceL2"]  # not in 8 bits
    assert _call("export", run, "whole.onnx")[0] == 0
    assert Path("a.onnx").stat().st_size < Path("whole.onnx").stat().st_size


def test_missing_libraries_are_named_with_what_installs_them(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_ft.export.formats.find_spec", lambda name: None if name == "onnxscript" else name)
    code, _, errors = _call("export", exported[0], tmp_path / "a.onnx")
    text = "lit-ft: .onnx needs onnxscript; pip install 'lit_ft[export]', or write a .pt2 file\n"
    assert (code, errors) == (2, text)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, errors = _call("verify", exported[1])
    assert (code, errors) == (2, f"lit-ft: {exported[1]}: needs onnxruntime; pip install 'lit_ft[export]'\n")


@pytest.mark.parametrize(("option", "value"), [("--device", "cpu"), ("--tta", "flip")])
def test_what_a_file_cannot_do_is_refused(exported, tmp_path, option, value):
    given = (exported[0].parent / "photos", "--out", tmp_path / "a.csv")
    code, _, errors = _call("predict", exported[1], *given, option, value)
    assert (code, errors) == (2, f"lit-ft: {option}: {value} is for a checkpoint, not an exported file; leave it out\n")
