import pytest
import torch
from small_runs import filled
from torch import nn
from torchvision.transforms.functional import to_pil_image

from lit_ft.backbones.backbone import Backbone
from lit_ft.backbones.build import backbone_names, build_backbone, input_spec, torchvision
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.cut import cut
from lit_ft.backbones.partition.meta import on_meta, without_data
from lit_ft.errors import UserError

# The smallest images that a network takes, where they are not 64 pixels.
SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56, "googlenet": 96, "alexnet": 96}


# Built of the same parts as a smaller one, which is tried in their place where time matters.
LARGE = {
    *("convnext_base", "convnext_large", "densenet161", "densenet201", "efficientnet_b5", "efficientnet_b6"),
    *("efficientnet_b7", "efficientnet_v2_l", "efficientnet_v2_m", "regnet_x_16gf", "regnet_x_32gf", "regnet_x_3_2gf"),
    *("regnet_x_8gf", "regnet_y_128gf", "regnet_y_16gf", "regnet_y_32gf", "regnet_y_8gf", "resnet152"),
    *("resnext101_32x8d", "resnext101_64x4d", "swin_b", "swin_s", "swin_v2_b", "swin_v2_s", "vgg13", "vgg13_bn"),
    *("vgg16_bn", "vgg19", "vgg19_bn", "vit_h_14", "vit_l_16", "vit_l_32", "wide_resnet101_2", "vgg11", "vgg11_bn"),
    *("convnext_small", "densenet169", "resnet101", "efficientnet_b3", "efficientnet_b4", "vit_b_16", "regnet_y_3_2gf"),
    *("maxvit_t", "vgg16", "wide_resnet50_2", "efficientnet_v2_s", "swin_v2_t", "regnet_y_1_6gf"),
}


def spec_of(name):
    size = SIZES.get(name, 64)
    return InputSpec(size=size, resize=size)


def built(name):
    """The network with weights, and its pieces, which share them."""
    spec = spec_of(name)
    network = without_data(lambda: torchvision.build(name, spec))
    filled(network.module).eval()
    return (
        network,
        cut(network, spec),
        torch.randn(2, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(1)),
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in torchvision.names()]
)
def test_any_network_is_a_chain_of_stages_that_gives_its_own_logits(name):
    network, pieces, images = built(name)
    stages = list(pieces.stages.values())
    with torch.inference_mode():
        expected = network.module(images)
        places = [images]
        for stage in stages:
            before = places[-1].clone()
            places.append(stage(places[-1]))
            assert places[-2].equal(before)  # else what is cached of a frozen prefix would change
        found = pieces.classifier(pieces.pool(places[-1]))
    assert found.equal(expected)
    assert (expected[0] - expected[1]).abs().max() > 0  # the logits tell the images apart
    assert 4 <= len(stages) <= 12
    # Each parameter is in one stage or in the head.
    of_stages = [id(p) for stage in (*stages, pieces.pool) for p in stage.parameters()]
    assert len(of_stages) == len(set(of_stages))
    left = {key for key, p in network.module.named_parameters() if id(p) not in set(of_stages)}
    assert left == {key for key, _ in network.module.named_parameters() if key not in network.stage_of}
    assert {key.split(".")[0] for key in left} <= {"fc", "classifier", "heads", "head", "AuxLogits", "aux1", "aux2"}
    assert all(any(True for _ in stage.parameters()) for stage in stages)


# The module whose input are the features, for the networks that have a linear classifier.
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "fc"),
        ("vgg11", "classifier.0"),
        ("densenet121", "classifier"),
        ("convnext_tiny", "classifier.2"),
        ("vit_b_32", "heads.head"),
        ("swin_t", "head"),
        ("mobilenet_v3_small", "classifier.0"),
        ("googlenet", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
    ],
)
def test_features_are_what_the_classifier_takes(name, layer):
    network, pieces, images = built(name)
    seen = []
    network.module.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        network.module(images)
        features = nn.Sequential(*pieces.stages.values(), pieces.pool)(images)
    assert features.equal(seen[0])
    assert Backbone(pieces.stages, pieces.pool, spec_of(name)).num_features == seen[0].shape[1]


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_b_32", "swin_t", "densenet121"])
def test_frozen_prefix_runs_alone_and_the_rest_goes_on_from_its_output(name):
    _, pieces, images = built(name)
    parts = [*pieces.stages.values(), pieces.pool]
    with torch.no_grad():
        expected = nn.Sequential(*parts)(images)
        for i in range(1, len(parts)):
            cached = nn.Sequential(*parts[:i])(images)
            assert nn.Sequential(*parts[i:])(cached).equal(expected)
            assert nn.Sequential(*parts[i:])(cached).equal(expected)


STEPS = {
    "resnet18": [(64, 56), (64, 56), (128, 28), (256, 14), (512, 7)],
    "vgg11_bn": [(64, 112), (128, 56), (256, 28), (512, 14), (512, 7)],
    "mobilenet_v2": [(16, 112), (24, 56), (32, 28), (96, 14), (320, 7), (1280, 7)],
    "mobilenet_v3_small": [(16, 112), (16, 56), (24, 28), (48, 14), (96, 7), (576, 7)],
    "mobilenet_v3_large": [(16, 112), (24, 56), (40, 28), (112, 14), (160, 7), (960, 7)],
    "mnasnet0_5": [(8, 112), (16, 56), (24, 28), (48, 14), (160, 7), (1280, 7)],
    "efficientnet_b0": [(32, 112), (16, 112), (24, 56), (40, 28), (80, 14), (112, 14), (192, 7), (320, 7), (1280, 7)],
    "convnext_tiny": [(96, 56), (96, 56), (192, 28), (384, 14), (768, 7)],
    "densenet121": [(64, 56), (128, 28), (256, 14), (512, 7), (1024, 7)],
    "regnet_y_400mf": [(32, 112), (48, 56), (104, 28), (208, 14), (440, 7)],
    "shufflenet_v2_x0_5": [(24, 56), (48, 28), (96, 14), (192, 7), (1024, 7)],
    "squeezenet1_0": [(96, 54), (256, 27), (512, 13), (512, 13)],
    "squeezenet1_1": [(64, 55), (128, 27), (256, 13), (512, 13)],
    "googlenet": [(192, 28), (480, 14), (832, 7), (1024, 7)],
    "inception_v3": [(64, 73), (192, 35), (288, 35), (768, 17), (2048, 8)],
    "swin_t": [(56, 56), (56, 56), (28, 28), (14, 14), (768, 7)],
    "vit_b_32": [(50, 768)] * 5,
}


@pytest.mark.parametrize("name", STEPS)
def test_stages_end_where_the_resolution_halves(name):
    backbone = without_data(lambda: build_backbone(name, weights=None)).eval()
    places = [backbone.spec.meta_images()]
    for stage in backbone.stages.values():
        places.append(on_meta(stage, places[-1]))
    assert [tuple(place.shape[1:3]) for place in places[1:]] == STEPS[name]


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
    assert list(without_data(lambda: build_backbone(name, weights=None)).stage_modules()) == stages


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_networks_trained_with_another_normalisation_get_images_of_theirs(name):
    network, _, _ = built(name)
    published = without_data(
        lambda: torchvision.models.get_model(name, weights=None, init_weights=True, transform_input=True)
    )
    filled(published).eval()
    size = SIZES[name]
    photo = torch.randint(256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    spec = input_spec(name)
    preset = InputSpec(size=size, resize=size)  # ImageNet's mean and std, which torchvision's transform has
    with torch.inference_mode():
        expected = published(preset.eval_transform()(photo))
        found = network.module(InputSpec(size, size, mean=spec.mean, std=spec.std).eval_transform()(photo))
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "pool", "num_features"),
    [
        ("vgg11_bn", "own", 512 * 7 * 7),
        ("vgg11_bn", "avg", 512),
        ("squeezenet1_1", "own", 512),
        ("resnet18", "flatten", 512 * 7 * 7),
        ("resnet18", "avg", 512),
        ("vit_b_32", "flatten", 50 * 768),
        ("vit_b_32", "avg", 768),
        ("vit_b_32", "token", 768),
        ("mnist_cnn", "flatten", 128),
    ],
)
def test_pooling_decides_the_number_of_features(name, pool, num_features):
    assert without_data(lambda: build_backbone(name, None, pool)).num_features == num_features


@pytest.mark.long
def test_pooling_of_a_vision_transformer():
    _, pieces, images = built("vit_b_32")
    tokens = nn.Sequential(*pieces.stages.values())(images)
    parts = {pool: build_backbone("vit_b_32", None, pool, spec_of("vit_b_32")).pool for pool in ("own", "avg", "token")}
    assert parts["own"](tokens).equal(tokens[:, 0])
    assert parts["token"](tokens).equal(tokens[:, 0])
    torch.testing.assert_close(parts["avg"](tokens), sum(tokens[:, i] for i in range(1, 5)) / 4)


@pytest.mark.parametrize(
    ("name", "pool", "text"),
    [
        ("resnet18", "token", "model.pool: token: the network has no class token; choose own or avg"),
        ("mnist_cnn", "avg", "model.pool: avg: the last stage gives no map or tokens, but 2 axes; choose own"),
    ],
)
def test_pooling_that_does_not_fit_is_refused(name, pool, text):
    with pytest.raises(UserError, match=f"^{text}$"):
        without_data(lambda: build_backbone(name, None, pool))


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


def test_eval_transform_is_that_of_the_weights():
    rows, columns = torch.meshgrid(torch.arange(300), torch.arange(260), indexing="ij")
    photo = torch.stack([rows * 255 // 300, columns * 255 // 260, (rows + columns) % 256]).to(torch.uint8)
    for name in ("resnet50", "efficientnet_b3", "swin_v2_t"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        # The weights were evaluated on Pillow's images, whose rounding differs by at most one of 255 steps.
        expected = weights.transforms()(to_pil_image(photo))
        torch.testing.assert_close(input_spec(name).eval_transform()(photo), expected, rtol=0, atol=1.01 / 255 / 0.224)


def test_unknown_backbone_is_told_with_the_nearest():
    assert "resnet18" in backbone_names()
    assert len(backbone_names()) > 80
    with pytest.raises(UserError, match=r"^model.backbone: unknown backbone 'resnt18'; nearest: resnet18, "):
        build_backbone("resnt18")
    with pytest.raises(UserError, match="unknown backbone 'inception_v5'; nearest: inception_v3"):
        input_spec("inception_v5")
