from types import SimpleNamespace

import processes
import pytest
import same_steps
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from small_runs import digests, small_module, small_resnet
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
from torch.nn import SyncBatchNorm

from lit_ft.backbones.freezing import norm_layers
from lit_ft.errors import UserError
from lit_ft.model.sharding import refuse_sharded_resume, refuse_strategy, refuse_unsupported
from lit_ft.training.trainer import Trainer

QUICK = ("replicated", "static_graph", "low_rank", "half", "sharded_gradual", "sharded_full", "sharded_probe")
SLOW = ("replicated_norms", "sharded_norms", "sharded_again", "sharded_command")


@pytest.fixture(scope="module")
def quick_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quick")


@pytest.fixture(scope="module")
def on_two(quick_folder):
    return processes.launch(quick_folder, *QUICK, home="same_steps")


@pytest.fixture(scope="module")
def on_two_slowly(tmp_path_factory):
    return processes.launch(tmp_path_factory.mktemp("slow"), *SLOW, home="same_steps")


@pytest.fixture(scope="module")
def on_one():
    return same_steps.on_one("gradual")


def assert_same(found, expected, rtol=1e-5):
    """The sums of two halves of a batch round otherwise than that of the whole, and nine steps repeat that."""
    assert found["losses"] == pytest.approx(expected["losses"], rel=rtol)
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=rtol)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("strategy", ["replicated", "static_graph", "sharded_gradual"])
def test_two_processes_of_16_images_take_the_steps_of_one_of_32_across_unfreezings(on_two, on_one, strategy):
    assert len(on_one["losses"]) == 9
    for found in on_two:
        assert_same(found[strategy], on_one)


def test_fit_of_several_processes_says_what_a_step_is_of(on_two, quick_folder):
    line = "Batch  32 images a step: 16 in each of 2 processes; learning rates are not scaled by it: model.lr is 0.01"
    logs = [path.read_text().count(line) for path in sorted(quick_folder.glob("rank*.log"))]
    assert max(logs) == len(QUICK)  # of the first process, whose log may be shared


def test_compressed_gradients_are_those_of_their_own_bucket_after_an_unfreezing(on_two, on_one):
    first, second = (found["low_rank"] for found in on_two)
    assert all(first["weights"][name].equal(second["weights"][name]) for name in first["weights"])
    assert first["losses"][:3] == pytest.approx(on_one["losses"][:3], rel=1e-5)  # two steps are whole, and the head
    assert first["losses"][6] != pytest.approx(on_one["losses"][6], rel=1e-3)


def test_gradients_in_half_precision_are_rounded_alone(on_two, on_one):
    for found in on_two:
        assert_same(found["half"], on_one, 2**-10)
        assert found["half"]["losses"] != pytest.approx(on_one["losses"], rel=1e-6)


@pytest.mark.parametrize(("scenario", "plan"), [("sharded_full", "full"), ("sharded_probe", "linear_probe")])
def test_sharded_stages_are_trained_as_on_one_process(on_two, scenario, plan):
    expected = same_steps.on_one(plan)
    for found in on_two:
        assert_same(found[scenario], expected)


@pytest.mark.slow
def test_sharded_batch_norm_is_that_of_replicas(on_two_slowly):
    for found in on_two_slowly:
        assert_same(found["sharded_norms"], found["replicated_norms"], 1e-9)


@pytest.mark.slow
def test_sharded_run_is_resumed_bit_for_bit(on_two_slowly):
    for found in on_two_slowly:
        whole, resumed = found["sharded_again"]["whole"], found["sharded_again"]["resumed"]
        assert resumed["losses"] == whole["losses"][3:]
        assert all(resumed["weights"][name].equal(whole["weights"][name]) for name in whole["weights"])


@pytest.mark.slow
def test_sharded_run_ends_in_a_model_of_whole_weights(on_two_slowly):
    first = on_two_slowly[0]["sharded_command"]
    assert [found["sharded_command"]["code"] for found in on_two_slowly] == [0, 0]
    assert {"test/acc", "Report"} <= {*first["printed"].split()}
    assert first["weights"] == {"Tensor"}  # no part of one


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy])
def test_strategy_without_stages_is_refused(kind):
    trainer = SimpleNamespace(strategy=object.__new__(kind))
    with pytest.raises(UserError, match=rf"^trainer.strategy: {kind.__name__} is not supported; give ddp, or Model"):
        refuse_strategy(trainer, small_module())


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_stage_2"])
@pytest.mark.parametrize("command", ["fit", "plan"])
def test_strategy_without_stages_is_refused_by_its_name(refused, command, name):
    line = refused(command, "--trainer.strategy", name, "--trainer.accelerator", "cpu")
    assert f"--trainer.strategy: {name} is not supported; give ddp" in line


def test_strategy_without_stages_is_refused_by_its_class_path_in_a_config():
    with pytest.raises(UserError, match=r"^trainer.strategy: FSDPStrategy is not supported"):
        refuse_unsupported(SimpleNamespace(class_path="lightning.pytorch.strategies.FSDPStrategy"))
    for given in (None, "auto", "ddp", DDPStrategy(), SimpleNamespace(class_path="DDPStrategy")):
        refuse_unsupported(given)


def test_processes_that_take_steps_of_their_own_are_refused():
    trainer = SimpleNamespace(strategy=DDPStrategy(ddp_comm_state=PostLocalSGDState(None, None, 5)))
    with pytest.raises(UserError, match=r"^trainer.strategy.ddp_comm_state: PostLocalSGDState lets"):
        refuse_strategy(trainer, small_module())


def test_hook_that_lightning_leaves_out_on_a_cpu_is_warned_of():
    strategy = DDPStrategy(ddp_comm_hook=default_hooks.fp16_compress_hook, parallel_devices=[torch.device("cpu")])
    with pytest.warns(UserWarning, match="ddp_comm_hook`: is used on GPUs alone"):
        refuse_strategy(SimpleNamespace(strategy=strategy), small_module())


def test_batch_norm_over_processes_is_refused_on_cpus():
    with pytest.raises(UserError, match=r"^trainer.sync_batchnorm: torch has it on GPUs alone"):
        Trainer(accelerator="cpu", devices=2, strategy="ddp", sync_batchnorm=True, logger=False)
    Trainer(accelerator="cpu", devices=1, sync_batchnorm=True, logger=False)  # a recipe for a cluster, tried out


def test_batch_norm_over_processes_is_frozen_as_any_other():
    module = small_resnet(classes=10)
    SyncBatchNorm.convert_sync_batchnorm(module)  # as Lightning does before the optimizer is made
    module.set_trainable(["layer4", "head"])
    module.train()
    before = digests(module)
    stages = module.stage_modules()
    assert {layer.training for layer in norm_layers(stages["layer3"])} == {False}
    assert {type(layer) for layer in norm_layers(stages["layer4"])} == {SyncBatchNorm}
    for name in ("stem", "layer1", "layer2", "layer3"):
        part = stages[name][0]
        shape = {"stem": (2, 3, 32, 32), "layer1": (2, 64, 8, 8), "layer2": (2, 64, 8, 8), "layer3": (2, 128, 4, 4)}
        part(torch.randn(shape[name]))
    assert digests(module) == before


def sharded(sizes=(2, 1), fn="fit", callbacks=(), parts=False, ckpt_path=None):
    """A trainer with sharded weights on two processes."""
    strategy = ModelParallelStrategy(*sizes, save_distributed_checkpoint=parts)
    strategy.parallel_devices = [torch.device("cpu")] * 2
    names = zip(("data_parallel", "tensor_parallel"), sizes, strict=True)
    strategy._device_mesh = {name: SimpleNamespace(size=lambda size=size: size) for name, size in names}
    state = SimpleNamespace(fn=fn)
    return SimpleNamespace(
        strategy=strategy, num_nodes=1, state=state, callbacks=callbacks, checkpoint_callbacks=[1], ckpt_path=ckpt_path
    )


@pytest.mark.parametrize(
    ("trainer", "module", "line"),
    [
        ({"sizes": (1, 2)}, {}, "trainer.strategy: splits 2 processes into 1 for data and 2 .*_size 2 and .*_size 1"),
        ({"parts": True}, {}, "trainer.strategy.save_distributed_checkpoint: true .* give false"),
        ({}, {"penalty": {"kind": "l2_sp"}}, "model.penalty.kind: l2_sp does not go with ModelParallelStrategy"),
        ({}, {"compile": True}, "model.compile: true does not go with"),
        ({}, {"gradient_checkpointing": True}, "model.gradient_checkpointing: true does not go with"),
        ({"callbacks": [EMAWeightAveraging()]}, {}, "trainer.callbacks: EMAWeightAveraging does not go with"),
    ],
    ids=["tensor parallel", "parts", "penalty", "compile", "checkpointing", "averaging"],
)
def test_what_does_not_go_with_sharded_weights_is_refused(trainer, module, line):
    with pytest.raises(UserError, match=f"^{line}"):
        refuse_strategy(sharded(**trainer), small_module(**module))


def test_what_only_a_fit_needs_is_not_refused_in_a_test():
    refuse_strategy(sharded(fn="test", parts=True), small_module(compile=True))
    refuse_strategy(sharded(), small_module())


def test_sharded_run_with_frozen_stages_is_not_resumed():
    stages, phases = ("body", "head"), [("head",), ("body", "head")]
    with pytest.raises(UserError, match=r"^ckpt_path: .* resume it with ddp, or .* model.weights last.ckpt"):
        refuse_sharded_resume(sharded(ckpt_path="last.ckpt"), stages, phases)
    refuse_sharded_resume(sharded(ckpt_path="last.ckpt"), stages, phases[1:])
    refuse_sharded_resume(sharded(), stages, phases)
