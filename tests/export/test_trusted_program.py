"""Files of torch.export that would run code."""

import io
import json
import zipfile

import pytest

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


def test_compiled_libraries_are_refused():
    with pytest.raises(ValueError, match="it has compiled code"):
        refuse_code(archive(a__data__aotinductor__model__x="", a__models__model_json=model("s0")))
