from collections import OrderedDict

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_runs import FewDigits, differences, final_state, small_resnet, small_trainer
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from lit_ft.backbones import backbone as backbone_file
from lit_ft.backbones.backbone import Backbone, StageOutput, recomputed, stage_costs
from lit_ft.backbones.build import build_backbone
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.errors import UserError
from lit_ft.unfreezing.callback import GradualUnfreezing

SPEC = InputSpec(size=8, resize=8)


def block(num_in, num_out):
    return nn.Sequential(nn.Conv2d(num_in, num_out, 3, padding=1), nn.BatchNorm2d(num_out), nn.Dropout(0.5))


@pytest.fixture
def backbone():
    """Two stages with batch norm and dropout, and pooling with a norm of its own."""
    torch.manual_seed(0)
    stages = OrderedDict(stem=block(3, 4), body=block(4, 5))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(5))
    return Backbone(stages, pool, SPEC).train()


def images():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def training(backbone):
    """The names of all leaves in training mode."""
    return {name for name, module in backbone.named_modules() if module.training and not list(module.children())}


def with_gradient(backbone):
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def state(backbone, stage):
    return {name: t.clone() for name, t in backbone.state_dict().items() if name.startswith(f"stages.{stage}.")}


def leaves(*prefixes):
    return {f"{prefix}.{i}" for prefix in prefixes for i in range(3)}


def parameters(*prefixes):
    return {f"{prefix}.{i}.{kind}" for prefix in prefixes for i in range(2) for kind in ("weight", "bias")}


POOL = {"pool.2.weight", "pool.2.bias"}


def test_features_are_the_chain_of_stages_and_pooling(backbone):
    backbone.eval()
    stem, body = backbone.stages.values()
    features = backbone(images())
    assert features.equal(backbone.pool(body(stem(images()))))
    assert features.shape == (6, backbone.num_features)
    assert backbone.num_features == 5


def test_counting_features_leaves_buffers_and_random_numbers_alone():
    stages = OrderedDict(stem=block(3, 4))
    before = stages["stem"][1].running_mean.clone()
    random = torch.get_rng_state()
    backbone = Backbone(stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), SPEC)
    assert backbone.training
    assert stages["stem"][1].num_batches_tracked == 0
    assert stages["stem"][1].running_mean.equal(before)
    assert torch.get_rng_state().equal(random)


def test_every_parameter_is_in_exactly_one_stage(backbone):
    found = [id(p) for parts in backbone.stage_modules().values() for part in parts for p in part.parameters()]
    assert sorted(found) == sorted(id(p) for p in backbone.parameters())
    assert backbone.stage_modules()["body"][1] is backbone.pool


def test_only_the_named_stages_train(backbone):
    backbone.set_trainable(["body", "head"])
    assert with_gradient(backbone) == parameters("stages.body") | POOL
    backbone.set_trainable(["stem"])
    assert with_gradient(backbone) == parameters("stages.stem")
    backbone.set_trainable([])
    assert with_gradient(backbone) == set()
    backbone.set_trainable(["stem", "body"])
    assert with_gradient(backbone) == parameters("stages.stem", "stages.body") | POOL


def test_frozen_stages_stay_in_eval_mode_whoever_calls_train(backbone):
    backbone.set_trainable(["body"])
    assert training(backbone) == leaves("stages.body", "pool")
    nn.Sequential(backbone).train()
    assert training(backbone) == leaves("stages.body", "pool")
    backbone.eval()
    assert training(backbone) == set()
    backbone.train()
    assert training(backbone) == leaves("stages.body", "pool")
    backbone.set_trainable(["stem", "body"])
    assert training(backbone) == leaves("stages.stem", "stages.body", "pool")


def test_pooling_is_frozen_with_the_last_stage(backbone):
    backbone.set_trainable(["stem"])
    assert training(backbone) == leaves("stages.stem")


def test_freezing_in_eval_mode_does_not_start_training(backbone):
    backbone.eval()
    backbone.set_trainable(["body"], frozen_norm="train")
    assert training(backbone) == set()


def test_setting_the_same_again_changes_nothing(backbone):
    backbone.set_trainable(["body"], "stats")
    backbone(images()).sum().backward()
    before = with_gradient(backbone), training(backbone), {n: p.grad for n, p in backbone.named_parameters()}
    backbone.set_trainable(["body"], "stats")
    after = with_gradient(backbone), training(backbone), {n: p.grad for n, p in backbone.named_parameters()}
    assert before[:2] == after[:2]
    assert all(before[2][name] is after[2][name] for name in after[2])


@pytest.mark.parametrize(
    ("frozen_norm", "modules", "gradients"),
    [
        ("eval", set(), set()),
        ("stats", {"stages.stem.1"}, set()),
        ("train", {"stages.stem.1"}, {"stages.stem.1.weight", "stages.stem.1.bias"}),
    ],
)
def test_frozen_norm_decides_what_norms_of_frozen_stages_do(backbone, frozen_norm, modules, gradients):
    backbone.set_trainable(["body"], frozen_norm)
    assert training(backbone) == leaves("stages.body", "pool") | modules
    assert with_gradient(backbone) == parameters("stages.body") | POOL | gradients
    before = state(backbone, "stem")
    backbone.train()
    backbone(images())
    changed = {name for name, tensor in state(backbone, "stem").items() if not tensor.equal(before[name])}
    statistics = {f"stages.stem.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == (statistics if modules else set())


def test_frozen_norm_is_not_kept_from_an_earlier_call(backbone):
    backbone.set_trainable(["body"], "train")
    backbone.set_trainable(["body"])
    assert with_gradient(backbone) == parameters("stages.body") | POOL
    assert training(backbone) == leaves("stages.body", "pool")


def test_training_step_leaves_frozen_stages_bit_identical_and_moves_the_others(backbone):
    backbone.set_trainable(["stem", "body"])
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=0.1, weight_decay=0.1)
    backbone(images()).square().sum().backward()
    optimizer.step()  # now the optimizer has momentum, and the stem a gradient
    backbone.set_trainable(["body"])
    assert [p.grad for p in backbone.stages["stem"].parameters()] == [None] * 4
    assert all(p.grad is not None for p in backbone.stages["body"].parameters())
    stem, body = state(backbone, "stem"), state(backbone, "body")
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        backbone(images()).square().sum().backward()
    assert all(tensor.equal(stem[name]) for name, tensor in state(backbone, "stem").items())
    assert not any(tensor.equal(body[name]) for name, tensor in state(backbone, "body").items())


def test_images_that_are_too_small_are_refused():
    stages = OrderedDict(stem=nn.Conv2d(3, 4, 11))
    with pytest.raises(UserError, match=r"^model.input.size: the backbone cannot take 3 x 8 x 8 images \(.+\)$"):
        Backbone(stages, nn.Flatten(), SPEC)


def test_features_that_are_no_vector_are_refused():
    with pytest.raises(
        UserError, match=r"^model.pool: gives features of shape \(1, 4, 6, 6\), not \(B, D\); choose avg"
    ):
        Backbone(OrderedDict(stem=nn.Conv2d(3, 4, 3)), nn.Sequential(), SPEC)


def passes_of(backbone, images):
    """What each stage saw of autograd in a training pass, the bytes that it kept, and the gradients."""
    seen, kept = {}, []
    for name, stage in backbone.stages.items():
        stage.register_forward_hook(lambda *_, name=name: seen.update({name: torch.is_inference_mode_enabled()}))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor.numel()), tensor)[1], lambda t: t):
        torch.manual_seed(0)  # for dropout
        features = backbone(images)
    features.square().sum().backward()
    return seen, sum(kept), {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


def test_frozen_prefix_runs_in_inference_mode_and_keeps_nothing(backbone):
    names = list(backbone.stages)
    images = torch.randn(2, 3, 16, 16)
    backbone.set_trainable(names[-1:])
    backbone.train()
    seen, kept, gradients = passes_of(backbone, images)
    assert seen == {name: name != names[-1] for name in names}
    backbone.set_trainable([])
    backbone(images)
    assert all(seen.values())  # for a head alone
    backbone.set_trainable(names[-1:])
    backbone.zero_grad()
    with torch.no_grad():  # the same by hand
        values = images
        for name in names[:-1]:
            values = backbone.stages[name](values)
    torch.manual_seed(0)
    backbone(StageOutput(values, len(names) - 1)).square().sum().backward()
    expected = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys() != set()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    backbone.zero_grad()
    backbone.set_trainable(names)
    _, everything, _ = passes_of(backbone, images)
    assert kept < everything


def test_prefix_and_rest_are_the_whole(backbone):
    images = torch.randn(2, 3, 16, 16)
    backbone.eval()
    with torch.no_grad():
        whole = backbone(images)
        for depth in range(len(backbone.stages) + 1):
            assert torch.equal(backbone(StageOutput(backbone.prefix(images, depth), depth)), whole)


def test_gradient_reaches_images_through_frozen_stages(backbone):
    backbone.set_trainable([])
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    backbone(images)[:, 0].sum().backward()  # not all features, whose sum the norm makes 0, whatever the images
    assert images.grad.abs().max() > 1e-3


def test_stage_output_answers_as_a_batch_of_images_does():
    output = StageOutput(torch.zeros(3, 5, 2, 2), 1).to(torch.float64)
    assert (len(output), output.size(0), tuple(output.size()), output.shape[1:]) == (3, 3, (3, 5, 2, 2), (5, 2, 2))
    assert output.values.dtype == torch.float64
    assert output.depth == 1
    assert output.device == torch.device("cpu")


class Own(nn.Module):
    """An own network whose second stage is one module, with a residual and a function in it."""

    def __init__(self):
        super().__init__()
        self.low, self.mid, self.high = nn.Conv2d(3, 4, 3, padding=1), Residual(), block(4, 6)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 2)

    def forward(self, images):
        return self.fc(self.pool(self.high(self.mid(self.low(images)))).flatten(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, places):
        return torch.relu(places + self.conv(places))


OWN = {
    "class_path": f"{__name__}.Own",
    "stages": {"low": "low", "mid": "mid", "high": "high"},
    "classifier": "fc",
}


@pytest.fixture(
    scope="module",
    params=["resnet18", pytest.param("timm/resnetv2_18", id="timm"), pytest.param(OWN, id="own network")],
)
def built(request):
    """A backbone in eval mode, and a batch of images."""
    if "timm" in str(request.param):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = build_backbone(request.param, weights=None, spec=InputSpec(size=64, resize=64)).eval()
    return backbone, torch.randn(2, 3, 64, 64)


def test_activations_are_the_outputs_of_the_stages_run_one_by_one(built):
    backbone, images = built
    activations = backbone.activations(images)
    assert list(activations) == list(backbone.stages)
    places = images
    with torch.no_grad():
        for depth, (name, stage) in enumerate(backbone.stages.items(), start=1):
            places = stage(places)
            assert activations[name].equal(places)
            assert not activations[name].requires_grad
            if depth < len(backbone.stages):
                assert backbone.prefix(images, depth).equal(places)
        assert backbone.pool(places).equal(backbone(images))


def test_gradients_by_activations_are_those_of_the_rest_of_the_network(built):
    backbone, images = built
    backbone.set_trainable([])  # an explanation looks at networks in which nothing trains
    first, *_, last = backbone.stages
    activations = backbone.activations(images, [first, last])
    assert activations[first].is_leaf
    gradients = torch.autograd.grad(
        backbone.pool(activations[last])[:, 0].sum(), [activations[first], activations[last]]
    )
    by_hand = activations[first].detach().requires_grad_()
    backbone(StageOutput(by_hand, 1))[:, 0].sum().backward()
    assert gradients[0].equal(by_hand.grad)
    assert gradients[0].abs().max() > 0
    # The pooling of the last stage alone.
    alone = activations[last].detach().requires_grad_()
    backbone.pool(alone)[:, 0].sum().backward()
    assert gradients[1].equal(alone.grad)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_no_graph_is_kept_of_the_stages_before_the_first_that_is_asked_for(built):
    backbone, images = built
    backbone.set_trainable(list(backbone.stages))
    *before, last = backbone.stages
    activations = backbone.activations(images, [last])
    assert {name for name, output in activations.items() if output.requires_grad} == {last}
    assert before


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


@pytest.mark.long
@pytest.mark.parametrize(("backbone", "last"), NETWORKS)
def test_run_is_the_same_bit_for_bit_with_and_without(backbone, last):
    plain, recomputing = (run(backbone, last, option) for option in (False, True))
    assert len(plain["losses"]) == 6
    assert differences(plain, recomputing) == []


@pytest.mark.long
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_cost_is_that_of_float32_whatever_type_the_weights_have(dtype):
    backbone = build_backbone("mnist_cnn", weights=None)
    costs = stage_costs(backbone)
    assert costs[0].macs > 0
    assert stage_costs(backbone.to(dtype)) == costs
