import pytest
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from small_runs import FewDigits, small_module

from lit_ft.evaluation.evaluation_log import EvaluationLog
from lit_ft.runs import Run
from lit_ft.training.history import HistoryWriter
from lit_ft.training.trainer import Trainer


class Recorder(DummyLogger):
    """Keeps the names and the steps of what is logged."""

    def __init__(self):
        super().__init__()
        self.steps = {}

    def log_metrics(self, metrics, step=None):
        self.steps |= dict.fromkeys(metrics, step)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A trainer after a fit of 2 epochs of 2 steps, with the first one as best."""
    run = Run(tmp_path_factory.mktemp("run"))
    checkpoints = [
        ModelCheckpoint(run.checkpoints, name, monitor, enable_version_counter=False)
        for name, monitor in (("best", "step"), ("last", None))
    ]
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[HistoryWriter(), EvaluationLog(), *checkpoints],
    )  # fmt: skip
    trainer.run = run
    trainer.fit(small_module(), datamodule=FewDigits())
    return trainer


def logged(trainer, command, data, checkpoint="best"):
    """The steps by the names of what an evaluation of a checkpoint logs."""
    trainer.loggers = [recorder := Recorder()]
    path = trainer.run.checkpoint(checkpoint)
    getattr(trainer, command)(small_module(), datamodule=data, ckpt_path=path, verbose=False)
    assert trainer.loggers == [recorder]
    return {name: step for name, step in recorder.steps.items() if name.endswith("/loss")}


def test_metrics_are_logged_as_what_they_are_of_at_the_step_of_their_checkpoint(trainer):
    assert logged(trainer, "test", FewDigits()) == {"test/loss": 2}
    assert logged(trainer, "validate", FewDigits()) == {"val_best/loss": 2}
    assert logged(trainer, "validate", FewDigits(), "last") == {"val_last/loss": 4}
    assert logged(trainer, "validate", FewDigits(num_val=30)) == {"val_FewDigits/loss": 2}


def test_loggers_are_given_back_after_a_failure(trainer):
    def fail(*_):
        raise ValueError("mine")

    trainer.callbacks.append(failing := LambdaCallback(on_test_end=fail))
    trainer.callbacks.insert(0, trainer.callbacks.pop())  # before they are given back
    trainer.loggers = [recorder := Recorder()]
    with pytest.raises(ValueError, match="mine"):
        trainer.test(small_module(), datamodule=FewDigits(), ckpt_path=trainer.run.last, verbose=False)
    trainer.callbacks.remove(failing)
    assert trainer.loggers == [recorder]
