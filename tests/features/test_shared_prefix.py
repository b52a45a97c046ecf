"""Validations of several weights whose first stages are the same."""

import pytest
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.features import shared_prefix
from lit_ft.features.shared_prefix import SharedPrefix, count_equal_stages
from lit_ft.training.evaluated import ImageLosses, quiet_validation


def changed(module, *names):
    return {
        name: value * 1.5 if name.startswith(names) and value.is_floating_point() else value.clone()
        for name, value in module.state_dict().items()
    }


def made(**options):
    module = small_module(classes=10, **options)
    data = FewDigits()
    data.prepare_data()
    data.setup("validate")
    trainer = small_trainer(1)
    trainer.validate(module, datamodule=data, verbose=False)
    return trainer, module, data


def test_equal_stages_are_those_before_the_first_that_differs():
    module = small_module(classes=10)
    state = module.state_dict()
    conv, dense, head = (changed(module, name) for name in ("backbone.stages.conv", "backbone.stages.dense", "head"))
    assert count_equal_stages(module, [state, conv]) == 0
    assert count_equal_stages(module, [state, state, dense]) == 1
    assert count_equal_stages(module, [state, head]) == 2
    assert count_equal_stages(module, [state, head, conv]) == 0


@pytest.mark.parametrize(("limit", "times"), [(1 << 30, 1), (0, 3)])
def test_shared_stages_see_the_images_once_and_metrics_are_the_same(monkeypatch, limit, times):
    monkeypatch.setattr(shared_prefix, "_MOST_BYTES", limit)
    trainer, module, data = made()
    states = [module.state_dict(), changed(module, "backbone.stages.dense"), changed(module, "head")]
    states = [{name: value.clone() for name, value in state.items()} for state in states]
    seen, expected, found = [], [], []
    for state in states:
        module.load_state_dict(state)
        expected += trainer.validate(module, datamodule=data, verbose=False)
    module.backbone.stages["conv"].register_forward_hook(lambda *_: seen.append(1))
    losses = ImageLosses(SharedPrefix(trainer, module, states))
    with quiet_validation(trainer, losses):
        for state in states:
            module.load_state_dict(state)
            found += trainer.validate(module, datamodule=data, verbose=False)
            assert float(losses.gather(trainer).mean()) == pytest.approx(found[-1]["val/loss"], rel=1e-5)
    assert len(seen) == times * 4  # batches of 10 images, of 37
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert len({one["val/loss"] for one in found}) == 3


def test_step_of_a_users_gets_images():
    trainer, module, data = made()
    shapes = []

    class Own(type(module)):
        def validation_step(self, batch, batch_idx):
            shapes.append(tuple(batch[0].shape[1:]))
            return super().validation_step(batch, batch_idx)

    module.__class__ = Own
    with quiet_validation(trainer, ImageLosses(SharedPrefix(trainer, module, [module.state_dict()] * 2))):
        for _ in range(2):
            trainer.validate(module, datamodule=data, verbose=False)
    assert set(shapes) == {(1, 28, 28)}
