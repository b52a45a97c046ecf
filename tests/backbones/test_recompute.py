import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_runs import FewDigits, differences, final_state, small_resnet, small_trainer
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from lit_ft.backbones import backbone as backbone_file
from lit_ft.backbones.recompute import recomputed
from lit_ft.errors import UserError
from lit_ft.unfreezing.callback import GradualUnfreezing

VIT = {
    "class_path": "torchvision.models.VisionTransformer",
    "init_args": {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    | {"dropout": 0.3, "attention_dropout": 0.3, "num_classes": 2},
    "stages": {
        "stem": r"conv_proj|class_token|encoder\.pos_embedding|encoder\.layers\.encoder_layer_0",
        "low": r"encoder\.layers\.encoder_layer_1",
        "high": r"encoder\.layers\.encoder_layer_[23]|encoder\.ln",
    },
    "classifier": "heads",
}


class Losses(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def run(backbone, last, gradient_checkpointing, *callbacks, ckpt_path=None, seed=1):
    """Two steps of the head, two with the last stage, two of everything."""
    phases = [{"train": ["head"], "epochs": 1}, {"train": [last, "head"], "epochs": 1}, {"train": ["*"], "epochs": 1}]
    L.seed_everything(seed)
    head = {"dropout": 0.5, "hidden": [8]}
    module = small_resnet(backbone=backbone, head=head, gradient_checkpointing=gradient_checkpointing)
    seen = Losses()
    every = (GradualUnfreezing("phases", phases=phases), seen, *callbacks)
    trainer = small_trainer(3, *every, limit_train_batches=2, limit_val_batches=1)
    trainer.fit(module, datamodule=FewDigits(batch_size=4), ckpt_path=ckpt_path)
    return {**final_state(trainer, module), "losses": seen.losses}


NETWORKS = [
    pytest.param("resnet18", "layer4", id="batch norm"),
    pytest.param(VIT, "high", id="transformer with dropout"),
    pytest.param("efficientnet_b0", "stage8", id="stochastic depth"),
]


@pytest.mark.parametrize(("backbone", "last"), NETWORKS)
def test_run_is_the_same_bit_for_bit_with_and_without(backbone, last):
    plain, recomputing = (run(backbone, last, option) for option in (False, True))
    assert len(plain["losses"]) == 6
    assert differences(plain, recomputing) == []


def test_checkpoint_of_a_run_without_is_resumed_with_it(tmp_path):
    whole = run("resnet18", "layer4", False, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    resumed = run("resnet18", "layer4", True, ckpt_path=tmp_path / "epoch=0.ckpt", seed=2)
    assert whole.pop("losses")[2:] == resumed.pop("losses")
    assert differences(whole, resumed) == []


def saved_bytes(module, images):
    """The bytes that a forward pass keeps for the backward pass, each tensor counted once."""
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        module(images).sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_b0"])
def test_less_is_kept_for_the_backward_pass(backbone):
    images = torch.randn(8, 3, 32, 32)
    module = small_resnet(backbone=backbone, classes=10).train()
    plain = saved_bytes(module, images)
    module.backbone.gradient_checkpointing = True
    assert saved_bytes(module, images) < 0.3 * plain


@pytest.fixture
def recomputed_stages(monkeypatch):
    """The stages that are run so, in order."""
    stages = []

    def noted(stage, inputs):
        stages.append(stage)
        return recomputed(stage, inputs)

    monkeypatch.setattr(backbone_file, "recomputed", noted)
    return stages


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        (("head",), []),
        (("layer4", "head"), ["layer4"]),
        (("layer2", "head"), ["layer2", "layer3", "layer4"]),  # the gradient passes through the frozen ones above
    ],
)
def test_only_stages_that_keep_activations_are_recomputed(trainable, expected, recomputed_stages):
    module = small_resnet(classes=10, gradient_checkpointing=True)
    images = torch.randn(2, 3, 32, 32)
    module.set_trainable(trainable)
    names = {id(stage): name for name, stage in module.backbone.stages.items()}
    module.train()(images)
    assert [names[id(stage)] for stage in recomputed_stages] == expected
    with torch.no_grad():
        module(images)
    module.eval()(images)
    assert len(recomputed_stages) == len(expected)


class Counting(nn.Module):
    """Has a state that a forward pass in training both changes and uses, as spectral norm has."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4, momentum=None)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, inputs):
        self.scale.mul_(2)
        return self.norm(self.linear(inputs)).square() * self.scale.clone()


def test_buffers_are_written_once_and_read_as_they_were():
    found = []
    for run in (lambda stage, inputs: stage(inputs), recomputed):
        torch.manual_seed(1)
        stage = Counting()
        for _ in range(3):
            inputs = torch.randn(5, 4, requires_grad=True)
            outputs = run(stage, inputs)
            (outputs * torch.arange(4)).sum().backward()
        gradients = {name: parameter.grad for name, parameter in stage.named_parameters()}
        found.append({**gradients, **dict(stage.named_buffers()), "inputs": inputs.grad})
    assert int(found[1]["norm.num_batches_tracked"]) == 3
    assert differences(*found) == []


def test_second_backward_pass_gives_the_same_gradient():
    torch.manual_seed(1)
    stage, inputs = Counting(), torch.randn(5, 4, requires_grad=True)
    outputs = recomputed(stage, inputs)
    gradients = [torch.autograd.grad(outputs[:, 0].sum(), inputs, retain_graph=True)[0] for _ in range(2)]
    assert gradients[0].equal(gradients[1])
    assert int(stage.norm.num_batches_tracked) == 1


@pytest.mark.skipif(torch.__version__ < "2.15", reason="refused there")
def test_compiled_stages_write_their_buffers_once_too():
    found = []
    for compiled in (False, True):
        L.seed_everything(1)
        module = small_resnet(classes=10, gradient_checkpointing=True).train()
        images = torch.randn(4, 3, 32, 32)
        module.set_trainable(("layer4", "head"))
        stages = torch.compile(module.backbone, backend="aot_eager", fullgraph=True) if compiled else module.backbone
        stages(images).square().sum().backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        assert any("layer4" in name for name in gradients)
        found.append({**gradients, **dict(module.named_buffers())})
    assert differences(*found) == []


def test_compilation_is_refused_where_torch_would_count_batch_norm_twice(monkeypatch):
    module = small_resnet(classes=10, gradient_checkpointing=True)
    module.compile(backend="eager")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.8.0"))
    with pytest.raises(UserError, match=r"^model.gradient_checkpointing: torch 2.8.0 counts batch norm twice"):
        module.set_trainable(("head",))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.15.0"))
    module.set_trainable(("head",))
