import pytest
from parameter_rates import two_groups

from lit_ft.errors import UserError
from lit_ft.optim.optimizers import build_optimizer
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.schedules import build_scheduler

TEN = RunLength(max_steps=10)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("Adm", "there is no class 'Adm'"),
        ("adam", "there is no class 'adam'"),
        ("lr_scheduler", "there is no class 'lr_scheduler'"),
        ("torch.optim.Adm", "there is no class 'torch.optim.Adm'"),
        ("troch.optim.Adam", r"cannot import 'troch.optim.Adam' \(No module named 'troch'\)"),
    ],
)
def test_class_that_does_not_exist_is_refused(path, text):
    with pytest.raises(UserError, match=f"^optimizer: {text}$"):
        build_optimizer(path, [], lr=1.0)
    with pytest.raises(UserError, match=f"^lr_scheduler: {text}$"):
        build_scheduler(path, two_groups(), TEN)


@pytest.mark.parametrize("path", ["subprocess.Popen", "torch.nn.Linear", "builtins.dict", "ReduceLROnPlateau", "SGD"])
def test_class_of_another_kind_is_refused_before_it_is_called(path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("called"))
    if path != "SGD":
        with pytest.raises(UserError, match=f"^optimizer: '{path}' is no class derived from Optimizer$"):
            build_optimizer(path, [], lr=1.0)
    if path != "ReduceLROnPlateau":
        with pytest.raises(UserError, match=f"^lr_scheduler: '{path}' is no class derived from LRScheduler$"):
            build_scheduler({"class_path": path, "init_args": {}}, two_groups(), TEN)
