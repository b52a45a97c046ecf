"""Files of torch.export that would run code."""

import io
import json
import os
import zipfile

import pytest
import torch

from lit_ft.errors import UserError
from lit_ft.export.runtime import open_exported
from lit_ft.export.trusted_program import refuse_code


def archive(**files):
    with zipfile.ZipFile(content := io.BytesIO(), "w") as written:
        for name, text in files.items():
            written.writestr(name.replace("__", "/").replace("_json", ".json"), text)
    return content.getvalue()


def model(size):
    return json.dumps({"graph": [{"sizes": [{"as_expr": {"expr_str": size, "hint": None}}]}]})


@pytest.mark.parametrize(
    "size", ["s34", "113*Min(s14, s90)//128 + 5", "Mod(s0, 2) >= -1", "Min(Symbol('s0', positive=True), Integer(2))"]
)
def test_sizes_that_are_arithmetic_are_taken(size):
    refuse_code(archive(a__models__model_json=model(size)))


@pytest.mark.parametrize(
    "size",
    [
        "__import__('os').system('true')",
        "s0.__class__",
        "open(1)",
        "Min(s0, 'a')",
        "(lambda: s0)()",
        "[s0 for s1 in s2]",
        "Symbol('exit(1)')",
        "exec",
    ],
)
def test_sizes_that_could_run_code_are_refused(size):
    with pytest.raises(ValueError, match="it has a size that is no arithmetic"):
        refuse_code(archive(a__models__model_json=model(size)))
    with pytest.raises(UserError, match=r"a\.pt2: cannot be opened; .*no arithmetic"):
        open_exported("a.pt2", archive(a__models__model_json=model(size)))


def test_pickle_is_refused_with_what_it_holds(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
    torch.export.save(program, content := io.BytesIO(), extra_files={"lit_ft.json": "{}"})
    torch.save({"x": Evil()}, evil := io.BytesIO())
    with zipfile.ZipFile(content) as read, zipfile.ZipFile(changed := io.BytesIO(), "w") as written:
        for name in read.namelist():
            written.writestr(name, evil.getvalue() if "sample_inputs" in name else read.read(name))
    wanted = r"a\.pt2: cannot be opened; it has a pickle of (posix|nt)\.mkdir, which could run code on this machine"
    with pytest.raises(UserError, match=wanted):
        open_exported("a.pt2", changed.getvalue())
    assert not list(tmp_path.iterdir())


def test_file_of_torch_save_is_refused():
    torch.save({"a": 1}, content := io.BytesIO())
    with pytest.raises(UserError, match=r"a\.pt2: cannot be opened; .*torch\.export has not written it"):
        open_exported("a.pt2", content.getvalue())


def test_compiled_libraries_are_refused():
    with pytest.raises(ValueError, match="it has compiled code"):
        refuse_code(archive(a__data__aotinductor__model__x="", a__models__model_json=model("s0")))
