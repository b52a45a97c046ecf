from contextlib import nullcontext

import pytest
import torch
from small_runs import digests, small_module, small_resnet

from lit_ft.optim.optimizers import build_optimizer
from lit_ft.training import step_cost
from lit_ft.training.step_cost import measure_memory, measure_seconds

ALL = 693_962  # parameters of the shipped network, with a head for ten classes
HEAD = 128 * 10 + 10


def optimizer_of(module, name="AdamW", **options):
    groups = [{"params": list(module.parameters())}]
    return build_optimizer({"class_path": name, "init_args": options}, groups, 0.1)


def memory(stages, batch_size=10, precision="32-true", reduces=False, optimizer="AdamW", module=None, **options):
    module = module or small_module(classes=10)
    module.set_trainable(stages)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return measure_memory(module, optimizer_of(module, optimizer, **options), batch_size, precision, reduces, trained)


@pytest.mark.parametrize(("batch_size", "precision", "width"), [(10, "32-true", 4), (37, "32-true", 4)])
def test_activations_of_a_head_are_its_features_logits_and_images(batch_size, precision, width):
    found = memory(["head"], batch_size, precision)
    assert found.activations == batch_size * (28 * 28 + width * (128 + 10))
    assert found.gradients == width * HEAD


def test_activations_of_many_images_follow_from_those_of_few():
    module = small_resnet(classes=10)
    module.set_trainable(list(module.stage_modules()))
    counted = step_cost._count_activations(module, 16, "32-true")
    found = memory(list(module.stage_modules()), 16, module=module)
    assert (found.activations, found.transient) == pytest.approx(counted, rel=1e-3)


def test_layer_that_computes_has_its_inputs_and_outputs():
    # Of 28 pixels and 32 channels of 26 pixels: the ReLU after the convolution, also where it is frozen.
    assert memory(["head"], 10).transient == 10 * 4 * 2 * 32 * 26 * 26


@pytest.mark.parametrize(
    ("optimizer", "options", "states"), [("AdamW", {}, 2), ("SGD", {"momentum": 0.9}, 1), ("SGD", {}, 0)]
)
def test_states_and_gradients_are_of_what_trains(optimizer, options, states):
    found = memory(["conv", "dense", "head"], optimizer=optimizer, **options)
    assert found.gradients == 4 * ALL
    assert found.optimizer == 4 * ALL * states
    assert found.parameters >= 4 * ALL
    assert memory(["conv", "dense", "head"], reduces=True).gradients == 8 * ALL  # with the buckets of DDP


def test_types_of_16_bits_take_half_or_leave_the_weights():
    stages = ["conv", "dense", "head"]
    full, mixed, half = (memory(stages, 1000, precision=name) for name in ("32-true", "bf16-mixed", "bf16-true"))
    assert (half.gradients, half.optimizer) == (full.gradients // 2, full.optimizer // 2)
    assert mixed.gradients == full.gradients
    # Its copies of the weights in 16 bits count, too, which do not grow with the images.
    assert mixed.activations < full.activations


def test_measuring_leaves_the_module_as_it_was():
    module = small_resnet(classes=10)
    module.set_trainable(["layer4", "head"])
    module.eval()
    before, state = digests(module), torch.get_rng_state()
    memory(["layer4", "head"], module=module)
    assert measure_seconds(module, 2, "bf16-mixed") > 0
    assert digests(module) == before
    assert torch.get_rng_state().equal(state)
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_memory_is_counted_where_the_module_is(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta
    module = small_resnet(classes=10).to("meta")  # as on a GPU, where a plan within a fit has it
    assert memory(list(module.stage_modules()), module=module).parameters > 0
