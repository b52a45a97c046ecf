import pytest
import torch
from torch import nn

from lit_ft.backbones import Backbone, InputSpec, backbone_names, build_backbone, input_spec, torchvision
from lit_ft.errors import UserError

# One small member a family: the size of its images, and its classifier, from the network and what enters it.
CLASSIFIERS = {
    "resnet18": (32, lambda network, x: network.fc(x)),
    "vgg11_bn": (32, lambda network, x: network.classifier(x)),
    "mobilenet_v2": (32, lambda network, x: network.classifier(x)),
    "mobilenet_v3_small": (32, lambda network, x: network.classifier(x)),
    "mobilenet_v3_large": (32, lambda network, x: network.classifier(x)),
    "efficientnet_b0": (32, lambda network, x: network.classifier(x)),
    "convnext_tiny": (32, lambda network, x: network.classifier[2](x)),
    "vit_b_32": (64, lambda network, x: network.heads(x)),
    "squeezenet1_0": (48, lambda network, x: network.classifier(x).flatten(1)),
    "squeezenet1_1": (48, lambda network, x: network.classifier(x).flatten(1)),
}


def built(name, size):
    """The network, and the backbone that shares its parameters, with no weight so small that it hides a mistake."""
    torch.manual_seed(0)
    network = torchvision.build(name, size)
    for key, parameter in network.named_parameters():
        if key.endswith("layer_scale") or key.startswith("heads.") or key == "class_token":
            nn.init.normal_(parameter)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:  # with fresh statistics, deep networks let nearly nothing through in eval mode
        with torch.no_grad():
            network(torch.randn(4, 3, size, size))
    network.eval()
    backbone = Backbone(*torchvision.cut(name, network), InputSpec(size=size, resize=size)).eval()
    return network, backbone


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_stages_and_the_original_classifier_give_the_logits_of_the_network(name):
    size, classifier = CLASSIFIERS[name]
    network, backbone = built(name, size)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = network(images)
        places = [images]
        for stage in backbone.stages.values():
            places.append(stage(places[-1]))
        features = backbone(images)
        # SqueezeNet classifies each place and pools afterwards.
        found = classifier(network, places[-1] if name.startswith("squeezenet") else features)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the logits tell the images apart
    torch.testing.assert_close(found, expected)
    assert features.equal(backbone.pool(places[-1]))
    assert features.shape == (2, backbone.num_features)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_b_32"])
def test_frozen_prefix_runs_alone_and_the_rest_goes_on_from_its_output(name):
    _, backbone = built(name, 64)
    images = torch.randn(2, 3, 64, 64)
    expected = backbone(images)
    stages = list(backbone.stages.values())
    for cut in range(1, len(stages) + 1):
        with torch.no_grad():
            cached = nn.Sequential(*stages[:cut])(images)
        rest = nn.Sequential(*stages[cut:], backbone.pool)
        torch.testing.assert_close(rest(cached), expected)


@pytest.mark.parametrize("name", torchvision.names())
def test_backbone_is_the_whole_network_but_its_classifier(name):
    with torch.device("meta"):
        spec = input_spec(name)
        network = torchvision.build(name, spec.size)
        backbone = Backbone(*torchvision.cut(name, network), spec)
    held = [id(p) for parts in backbone.stage_modules().values() for part in parts for p in part.parameters()]
    assert len(held) == len(set(held))
    left = {key for key, p in network.named_parameters() if id(p) not in set(held)}
    assert set(held) <= {id(p) for p in network.parameters()}
    assert left
    assert {key.split(".")[0] for key in left} <= {"fc", "classifier", "heads"}
    first = network.get_parameter(next(key for key, _ in network.named_parameters() if key in left))
    assert backbone.num_features == first.shape[1]
    assert all(any(True for _ in stage.parameters()) for stage in backbone.stages.values())


STEPS = {
    "resnet18": [(64, 56), (64, 56), (128, 28), (256, 14), (512, 7)],
    "vgg11_bn": [(64, 112), (128, 56), (256, 28), (512, 14), (512, 7)],
    "mobilenet_v2": [(16, 112), (24, 56), (32, 28), (96, 14), (320, 7), (1280, 7)],
    "mobilenet_v3_small": [(16, 112), (16, 56), (24, 28), (48, 14), (96, 7), (576, 7)],
    "mobilenet_v3_large": [(16, 112), (24, 56), (40, 28), (112, 14), (160, 7), (960, 7)],
    "efficientnet_b0": [(32, 112), (16, 112), (24, 56), (40, 28), (80, 14), (112, 14), (192, 7), (320, 7), (1280, 7)],
    "convnext_tiny": [(96, 56), (96, 56), (192, 28), (384, 14), (768, 7)],
    "squeezenet1_0": [(96, 54), (256, 27), (512, 13), (512, 13)],
    "squeezenet1_1": [(64, 55), (128, 27), (256, 13), (512, 13)],
    "vit_b_32": [(50, 768)] * 5,
}


@pytest.mark.parametrize("name", STEPS)
def test_stages_end_where_the_resolution_halves(name):
    with torch.device("meta"):
        places = [torch.empty(1, 3, 224, 224)]
        for stage in build_backbone(name, weights=None).eval().stages.values():
            places.append(stage(places[-1]))
    assert [tuple(place.shape[1:3]) for place in places[1:]] == STEPS[name]


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_stages_begin_where_the_shape_changes(name):
    with torch.device("meta"):
        place = torch.empty(1, 3, 224, 224)
        for stage in build_backbone(name, weights=None).eval().stages.values():
            assert stage[0](place).shape != place.shape
            place = stage(place)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("vgg11", ["block1", "block2", "block3", "block4", "block5"]),
        ("vit_b_32", ["stem", "blocks1", "blocks2", "blocks3", "blocks4"]),
        ("convnext_tiny", ["stem", "stage1", "stage2", "stage3", "stage4"]),
        ("mnist_cnn", ["conv", "dense"]),
    ],
)
def test_names_of_the_stages(name, stages):
    with torch.device("meta"):
        assert list(build_backbone(name, weights=None).stage_modules()) == stages


@pytest.mark.parametrize(
    ("name", "pool", "num_features"),
    [
        ("vgg11_bn", "own", 512 * 7 * 7),
        ("vgg11_bn", "avg", 512),
        ("resnet18", "flatten", 512 * 7 * 7),
        ("resnet18", "avg", 512),
        ("vit_b_32", "flatten", 50 * 768),
        ("vit_b_32", "avg", 768),
    ],
)
def test_pooling_decides_the_number_of_features(name, pool, num_features):
    with torch.device("meta"):
        assert build_backbone(name, None, pool).num_features == num_features


def test_average_of_a_vision_transformer_is_that_of_the_patches():
    tokens = torch.randn(2, 5, 3)
    own, average = torchvision.ClassToken(), torchvision.MeanToken()
    assert own(tokens).equal(tokens[:, 0])
    torch.testing.assert_close(average(tokens), sum(tokens[:, i] for i in range(1, 5)) / 4)


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet50", "IMAGENET1K_V1", (224, 256, "bilinear")),
        ("resnet50", "DEFAULT", (224, 232, "bilinear")),
        ("resnet50", "mine.pth", (224, 256, "bilinear")),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", (384, 384, "bicubic")),
        ("efficientnet_b0", None, (224, 256, "bicubic")),
        ("mnist_cnn", None, (28, 28, "bilinear")),
    ],
)
def test_images_are_those_that_the_weights_were_evaluated_with(name, weights, expected):
    spec = input_spec(name, weights)
    assert (spec.size, spec.resize, spec.interpolation) == expected
    assert spec.mean == ((0.1307,) if name == "mnist_cnn" else (0.485, 0.456, 0.406))


def test_vision_transformer_takes_images_of_the_size_of_the_spec():
    with torch.device("meta"):
        backbone = build_backbone("vit_b_32", None, spec=InputSpec(size=96, resize=96))
        assert backbone(torch.empty(1, 3, 96, 96)).shape == (1, 768)
    assert backbone.stages["stem"][0].pos_embedding.shape == (1, 1 + 9, 768)


def test_unknown_backbone_is_told_with_the_nearest():
    assert "resnet18" in backbone_names()
    with pytest.raises(UserError, match=r"^--model.backbone: unknown backbone 'resnt18'; nearest: resnet18, "):
        build_backbone("resnt18")
    with pytest.raises(UserError, match="unknown backbone 'inception_v3'"):
        input_spec("inception_v3")
