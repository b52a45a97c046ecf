import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.io import decode_image
from torchvision.transforms import InterpolationMode

from lit_ft.backbones.backbone import Backbone
from lit_ft.backbones.build import build_backbone, input_spec, make_pool, source_of
from lit_ft.backbones.partition.cut import cut
from lit_ft.backbones.stem import adapted
from lit_ft.errors import UserError

timm = pytest.importorskip("timm")
from huggingface_hub import hf_hub_url  # noqa: E402
from timm.data import create_transform, resolve_data_config  # noqa: E402
from timm.layers import resample_abs_pos_embed  # noqa: E402
from timm.models._manipulate import adapt_input_conv  # noqa: E402

from lit_ft.backbones.sources import timm as source  # noqa: E402

# One small member a family: the size of its images, and the number of its stages.
NETWORKS = {
    "beit_base_patch16_224": (32, 5),
    "beitv2_base_patch16_224": (32, 5),
    "coatnet_pico_rw_224": (64, 5),
    "convnext_atto": (64, 5),
    "convnextv2_atto": (64, 5),
    "davit_tiny": (64, 5),
    "deit3_small_patch16_224": (64, 5),
    "deit_tiny_distilled_patch16_224": (64, 5),
    "deit_tiny_patch16_224": (64, 5),
    "densenet121": (64, 5),
    "edgenext_xx_small": (64, 5),
    "efficientformer_l1": (224, 5),
    "efficientnet_b0": (64, 8),
    "efficientvit_b0": (64, 5),
    "efficientvit_m0": (224, 4),
    "eva02_tiny_patch14_224": (56, 5),
    "fastvit_t8": (64, 5),
    "focalnet_tiny_srf": (64, 5),
    "ghostnet_050": (64, 11),
    "hgnetv2_b0": (64, 5),
    "hiera_tiny_224": (64, 5),
    "inception_next_atto": (64, 5),
    "inception_v3": (96, 5),
    "levit_128s": (224, 4),
    "mambaout_femto": (64, 5),
    "maxvit_pico_rw_256": (64, 5),
    "mixer_s32_224": (64, 9),
    "mobilenetv3_small_050": (64, 7),
    "mobilenetv4_conv_small_035": (64, 6),
    "mobileone_s0": (64, 5),
    "mobilevit_xxs": (64, 6),
    "nfnet_l0": (64, 5),
    "pvt_v2_b0": (64, 5),
    "regnety_002": (64, 5),
    "repvgg_a0": (64, 5),
    "repvit_m0_9": (64, 5),
    "resnet10t": (64, 5),
    "resnet18": (64, 5),
    "resnetv2_18": (64, 5),
    "resnetv2_50x1_bit": (64, 5),
    "shvit_s1": (64, 4),
    "swin_tiny_patch4_window7_224": (64, 5),
    "swinv2_cr_tiny_ns_224": (64, 5),
    "swinv2_tiny_window8_256": (64, 5),
    "test_vit": (64, 7),
    "tf_efficientnet_lite0": (64, 8),
    "tiny_vit_5m_224": (64, 5),
    "vgg11": (32, 8),
    "vit_base_patch16_siglip_224": (32, 5),
    "vit_small_patch14_dinov2": (56, 5),
    "vit_small_patch14_reg4_dinov2": (56, 5),
    "vit_small_patch16_dinov3": (64, 5),
    "vit_tiny_patch16_224": (64, 5),
}

# Networks that differ much; all others take four times as long as these.
FAST = {
    "convnext_atto", "deit_tiny_distilled_patch16_224", "efficientnet_b0", "eva02_tiny_patch14_224", "ghostnet_050",
    "levit_128s", "mobilenetv3_small_050", "resnet18", "swin_tiny_patch4_window7_224", "test_vit",
    "tf_efficientnet_lite0", "vit_small_patch14_reg4_dinov2",
}  # fmt: skip

# Where timm's `pre_logits` come before a norm that belongs to the last linear layer, that layer.
LAST = {"efficientvit_m0": "head.linear", "shvit_s1": "head.l"}

# Where the last stage widens the maps before the pooling: to how many channels.
WIDENED = {"efficientvit_b0": 1024, "vgg11": 4096}


def strengthened(module, images):
    """Leaves nothing at a value that hides mistakes: no zeros in tokens and scales, no fresh statistics of norms."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() < 100_000 or not parameter.any():
                parameter.add_(0.05 * torch.randn_like(parameter))
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms:
            for norm in norms:
                norm.momentum = 1.0
                norm.train()
            module(images)
    return module.eval()


@pytest.fixture(
    scope="module", params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def case(request):
    name, (size, stages) = request.param, NETWORKS[request.param]
    spec = replace(source.input_spec(f"timm/{name}", None), size=size)
    torch.manual_seed(0)
    images = torch.randn(4, 3, size, size)
    network = source.build(f"timm/{name}", spec)
    module = strengthened(network.module.eval(), images)
    pieces = cut(network, spec)
    pool = make_pool("own", pieces, network)
    backbone = Backbone(pieces.stages, pool, spec).eval()
    with torch.no_grad():
        places = [images[:2]]
        for stage in backbone.stages.values():
            places.append(stage(places[-1].clone()))
        yield SimpleNamespace(
            name=name, count=stages, network=network, module=module, pieces=pieces, backbone=backbone, places=places
        )


@torch.no_grad()
def test_pieces_give_what_timm_gives_to_the_last_bit(case):
    images, last = case.places[0], case.places[-1]
    logits = case.module(images)
    assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max()  # the logits tell the images apart
    assert logits.isfinite().all()
    assert case.pieces.classifier(case.pieces.pool(last)).equal(logits)
    features = []
    if case.name in LAST:
        layer = case.module.get_submodule(LAST[case.name])
        layer.register_forward_pre_hook(lambda _, args: features.append(*args))
        case.module(images)
    else:
        features.append(case.module.forward_head(case.module.forward_features(images), pre_logits=True))
    assert case.backbone(images).equal(features[0])
    assert features[0].shape == (2, case.backbone.num_features)


@torch.no_grad()
def test_rest_goes_on_from_the_output_of_a_prefix_and_leaves_it_as_it_is(case):
    expected = case.backbone(case.places[0])
    stages = list(case.backbone.stages.values())
    for number, place in enumerate(case.places):
        given = place.clone()
        assert nn.Sequential(*stages[number:], case.backbone.pool)(given).equal(expected)
        assert given.equal(place)


def test_each_parameter_is_in_one_stage_or_in_the_classifier(case):
    stages = case.backbone.stage_modules()
    assert len(stages) == case.count
    assert next(iter(stages)) == "stem"
    parts = [{id(p) for part in parts for p in part.parameters()} for parts in stages.values()]
    assert all(parts)
    held = [key for part in [*parts, {id(p) for p in case.pieces.classifier.parameters()}] for key in part]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in case.module.parameters()}
    heads = case.module.get_classifier()
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    classifier = {id(p) for head in heads for p in head.parameters()}
    left = {id(p) for p in case.pieces.classifier.parameters()}
    assert classifier <= left | ({id(p) for p in case.backbone.pool.parameters()} if case.name in LAST else set())
    names = {key for key, p in case.module.named_parameters() if id(p) in left - classifier}
    assert names <= {"fc_norm.weight", "fc_norm.bias"} or case.name in LAST


def test_no_module_with_a_state_is_in_two_stages(case):
    seen = {}
    for title, parts in case.backbone.stage_modules().items():
        for module in {m for part in parts for m in part.modules()}:
            switched = isinstance(module, (nn.Dropout, nn.modules.batchnorm._BatchNorm))
            if switched or module._parameters or module._buffers:
                assert seen.setdefault(id(module), title) == title


def test_places_have_their_channels_where_the_pooling_expects_them(case):
    places = case.places[-1]
    assert case.network.channels_last == (getattr(case.module, "output_fmt", "") == "NHWC")
    channels = WIDENED.get(case.name, case.module.num_features)
    assert places.shape[1 if places.ndim == 4 and not case.network.channels_last else -1] == channels
    network, pieces = case.network, case.pieces
    average = make_pool("avg", pieces, network)
    assert average(places).shape == (2, channels)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_are_those_of_timms_own_transform(name):
    cfg = timm.get_pretrained_cfg(name)
    spec = input_spec(f"timm/{name}", None)
    data = resolve_data_config(pretrained_cfg=cfg.to_dict())
    resize, crop, *_, normalise = create_transform(**data).transforms
    assert (spec.size, spec.size) == tuple(crop.size)
    assert [spec.resize] * (2 if spec.fit == "squash" else 1) == (
        list(resize.size) if isinstance(resize.size, (tuple, list)) else [resize.size]
    )
    assert InterpolationMode(spec.interpolation) == resize.interpolation
    assert spec.mean == pytest.approx(normalise.mean.tolist())
    assert spec.std == pytest.approx(normalise.std.tolist())


def test_spec_is_that_of_the_tag():
    assert input_spec("timm/resnet50", "a1_in1k").resize == 235
    assert input_spec("timm/resnet50", "tv_in1k").resize == 256
    assert input_spec("timm/resnet50", "DEFAULT") == input_spec("timm/resnet50", "a1_in1k")
    assert input_spec("timm/vit_base_patch16_224", "orig_in21k").mean == (0.5, 0.5, 0.5)
    squashed = input_spec("timm/convnext_tiny", "fb_in22k_ft_in1k_384")
    assert (squashed.fit, squashed.size, squashed.resize) == ("squash", 384, 384)
    assert input_spec("timm/convnext_tiny", "DEFAULT").fit == "crop"


# Pooling


def pooled(name, pool, size=64):
    """The network's pieces, and random places, pooled."""
    spec = replace(source.input_spec(f"timm/{name}", None), size=size)
    with torch.device("meta"):
        network = source.build(f"timm/{name}", spec)
        pieces = cut(network, spec)
        place = spec.meta_images()
        for stage in pieces.stages.values():
            place = stage(place)
    places = torch.randn(2, *place.shape[1:])
    return places, make_pool(pool, pieces, network)(places)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size", "prefix"),
    [
        ("test_vit", 64, 1),
        ("vit_small_patch14_reg4_dinov2", 56, 5),
        ("vit_small_patch16_dinov3", 64, 5),
        ("eva02_tiny_patch14_224", 56, 1),  # its own pooling leaves the class token out
        ("deit_tiny_distilled_patch16_224", 64, 2),
    ],
)
def test_pooling_of_tokens(name, size, prefix):
    places, average = pooled(name, "avg", size)
    assert places.shape[1] == prefix + 16
    torch.testing.assert_close(average, places[:, prefix:].sum(1) / 16)
    places, token = pooled(name, "token", size)
    assert token.equal(places[:, 0])
    places, flat = pooled(name, "flatten", size)
    assert flat.equal(places.reshape(2, -1))


@pytest.mark.long
def test_pooling_of_maps():
    places, average = pooled("swin_tiny_patch4_window7_224", "avg")
    assert places.shape == (2, 2, 2, 768)
    torch.testing.assert_close(average, places.sum((1, 2)) / 4)
    places, average = pooled("resnet18", "avg")
    assert places.shape == (2, 512, 2, 2)
    torch.testing.assert_close(average, places.sum((2, 3)) / 4)
    with pytest.raises(UserError, match=r"^model.pool: token: the network has no class token"):
        pooled("swin_tiny_patch4_window7_224", "token")


# Weights


@pytest.fixture
def saved(tmp_path):
    """A file with random weights of a network, as timm writes it, and these weights."""

    def save(name, **options):
        torch.manual_seed(0)
        module = strengthened(timm.create_model(name, **options), torch.randn(4, 3, 64, 64))
        path = tmp_path / f"{name}.safetensors"
        save_file(module.state_dict(), path)
        return module, str(path)

    return save


def loaded(backbone, published):
    """The names under which timm publishes the tensors of a backbone."""
    state = backbone.state_dict()
    for key in published:
        ours = [name for name in state if name.split(".", 2)[-1] == key or name == f"pool.{key}"]
        if ours:
            yield key, state[ours[0]]


def test_weights_of_a_classifier_of_another_size_are_accepted(saved):
    module, path = saved("test_vit", num_classes=7)
    backbone = build_backbone("timm/test_vit", path).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert backbone(images).equal(module.forward_head(module.forward_features(images), pre_logits=True))
    got = dict(loaded(backbone, module.state_dict()))
    assert module.state_dict().keys() - got.keys() == {"head.weight", "head.bias"}
    assert all(module.state_dict()[key].equal(value) for key, value in got.items())


@pytest.mark.parametrize("size", [96, 256])
def test_positions_are_interpolated_as_timm_does(saved, size):
    module, path = saved("test_vit")
    backbone = build_backbone("timm/test_vit", path, spec=replace(input_spec("timm/test_vit", None), size=size))
    (got,) = (value for key, value in loaded(backbone, module.state_dict()) if key == "pos_embed")
    grid = [size // 16] * 2
    assert got.equal(resample_abs_pos_embed(module.pos_embed.detach(), grid, num_prefix_tokens=1))
    assert got.shape[1] != module.pos_embed.shape[1]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_tiny_patch16_224", 160), ("swin_tiny_patch4_window7_224", 96), ("eva02_tiny_patch14_224", 112)],
)
def test_network_of_another_size_is_that_of_timm(saved, name, size):
    torch.manual_seed(0)
    state = timm.create_model(name).state_dict()
    path = saved(name, img_size=64)[1]
    save_file(state, path)
    spec = replace(input_spec(f"timm/{name}", None), size=size)
    backbone = build_backbone(f"timm/{name}", path, spec=spec).eval()
    module = timm.create_model(name, img_size=size).eval()
    convert = sys.modules[type(module).__module__].checkpoint_filter_fn
    module.load_state_dict(convert(state, module))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert backbone(images).equal(module.forward_head(module.forward_features(images), pre_logits=True))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "first"), [("resnet18", "conv1.weight"), ("vit_tiny_patch16_224", "patch_embed.proj.weight")]
)
def test_other_numbers_of_channels(saved, name, first):
    module, path = saved(name, **({} if name == "resnet18" else {"img_size": 64}))
    spec = replace(input_spec(f"timm/{name}", None), size=64)
    weight = module.state_dict()[first]
    backbones = {}
    for channels in (1, 4):
        fitting = replace(spec, mean=(0.5,) * channels, std=(0.5,) * channels)
        backbones[channels] = build_backbone(f"timm/{name}", path, spec=fitting).eval()
        got = dict(loaded(backbones[channels], module.state_dict()))[first]
        assert got.equal(adapted(weight, channels))
        torch.testing.assert_close(got, adapt_input_conv(channels, weight))
    grey = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = module.forward_head(module.forward_features(grey.expand(2, 3, 64, 64)), pre_logits=True)
        torch.testing.assert_close(backbones[1](grey), expected, atol=1e-3, rtol=1e-3)
        assert backbones[4](torch.randn(2, 4, 64, 64)).shape == expected.shape


def test_tags_and_where_their_files_lie(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "try_to_load_from_cache", lambda *_: None)
    tags = source.tags("timm/resnet50")
    assert {"a1_in1k", "tv_in1k", "DEFAULT"} <= tags.keys()
    assert tags["DEFAULT"] == tags["a1_in1k"]
    a1 = tags["a1_in1k"]
    assert a1.file == "timm_resnet50.a1_in1k.safetensors"
    assert a1.url == hf_hub_url("timm/resnet50.a1_in1k", "model.safetensors")
    assert a1.others == ()
    monkeypatch.setattr(source, "try_to_load_from_cache", lambda *given: str(tmp_path.joinpath(*given)))
    assert source.tags("timm/resnet50")["tv_in1k"].others == (
        tmp_path / "timm" / "resnet50.tv_in1k" / "model.safetensors",
    )
    assert source.tags("timm/resnet50")["tv_in1k"] != a1


def test_weights_that_lie_elsewhere_than_at_hugging_face():
    published = source.tags("timm/legacy_seresnet18")["in1k"]
    assert published.url.startswith("https://github.com/")
    assert published.file == "timm_legacy_seresnet18.in1k.pth"


def test_network_without_published_weights():
    assert source.tags("timm/resnet14t") != {}
    assert source.tags("timm/coatnet_0_224") == {}
    with pytest.raises(UserError, match=r"^model.weights: timm/coatnet_0_224 has no published weights; give a file"):
        build_backbone("timm/coatnet_0_224")


# Mistakes


def test_unknown_network_is_told_with_the_nearest_three():
    with pytest.raises(UserError) as error:
        build_backbone("timm/resnt50", weights=None)
    told = str(error.value)
    assert told.startswith("model.backbone: unknown backbone 'timm/resnt50'; nearest: timm/resnet50")
    assert told.count("timm/") == 4


def test_unknown_tag_is_told_with_all():
    with pytest.raises(UserError) as error:
        build_backbone("timm/vit_tiny_patch16_224", weights="augreg")
    assert str(error.value).startswith("model.weights: unknown weights tag of timm/vit_tiny_patch16_224 'augreg'")
    assert "(choose from augreg_in21k_ft_in1k, augreg_in21k, DEFAULT)" in str(error.value)


def test_name_with_a_tag_is_told_how_to_give_it():
    with pytest.raises(UserError) as error:
        build_backbone("timm/resnet50.a1_in1k")
    assert str(error.value) == (
        "model.backbone: timm/resnet50.a1_in1k has a tag; give timm/resnet50 and model.weights a1_in1k"
    )


def test_missing_timm_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "lit_ft.backbones.sources.timm")
    with pytest.raises(UserError) as error:
        source_of("timm/resnet18")
    assert str(error.value) == "model.backbone: timm/resnet18 needs timm; run: pip install 'lit_ft[timm]'"


def test_images_that_are_no_squares_are_refused():
    name = "vit_base_patch16_sapiens2"
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    with pytest.raises(UserError, match=f"^model.backbone: timm/{name} takes images of 1024 x 768 pixels; only sq"):
        input_spec(f"timm/{name}")


@pytest.mark.parametrize("size", [(300, 500), (501, 300), (77, 400), (99, 99), (3, 900)])
def test_photos_in_a_frame_are_padded_as_by_timm(size):
    name = "deepseek_vit_412m"
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    data = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    spec = input_spec(f"timm/{name}")
    found = spec.eval_transform()(torch.from_numpy(photo).permute(2, 0, 1))
    levels = (found - create_transform(**data)(Image.fromarray(photo))).abs() * torch.tensor(spec.std).view(3, 1, 1)
    # Pillow's weights, of a picture, are finer than torch's, and the last pixel may be one level off in each direction.
    assert (levels * 255).max() < 2.1
    assert (levels * 255).mean() < 0.1


@pytest.mark.parametrize("name", ["caformer_s18", "poolformer_s12"])
def test_network_without_groups_of_layers_is_refused(name):
    with torch.device("meta"), pytest.raises(UserError, match=f"timm has no groups of layers for timm/{name}; give it"):
        build_backbone(f"timm/{name}", weights=None)


def test_network_whose_groups_fit_nothing_is_refused(monkeypatch):
    module = timm.models.resnet.ResNet
    monkeypatch.setattr(module, "group_matcher", lambda *_, **__: {"stem": "^no", "blocks": [("^such", None)]})
    with (
        torch.device("meta"),
        pytest.raises(UserError, match="timm has no groups of layers for timm/resnet18; give it"),
    ):
        build_backbone("timm/resnet18", weights=None)


@pytest.mark.parametrize(
    ("name", "size"), [("test_vit", 5), ("hiera_tiny_224", 5), ("swinv2_tiny_window8_256", 1), ("efficientvit_m0", 1)]
)
def test_size_that_a_network_cannot_take_is_refused(name, size):
    spec = replace(input_spec(f"timm/{name}", None), size=size)
    told = rf"^model.input.size: the backbone cannot take 3 x {size} x {size} images"
    with torch.device("meta"), pytest.raises(UserError, match=told):
        build_backbone(f"timm/{name}", None, spec=spec)


# Real weights

ROOT = Path(os.environ.get("LIT_FT_DATA", ""))
FILE = ROOT / "weights" / "timm_tf_efficientnet_lite0.safetensors"


@pytest.mark.real_data
@pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE} is not there")
def test_published_weights_know_daisies():
    network = timm.create_model("tf_efficientnet_lite0").eval()
    state = load_file(FILE)
    network.load_state_dict(state)
    backbone = build_backbone("timm/tf_efficientnet_lite0", str(FILE)).eval()
    got = dict(loaded(backbone, state))
    assert state.keys() - got.keys() == {"classifier.weight", "classifier.bias"}
    assert all(state[key].equal(value) for key, value in got.items())
    photos = sorted((ROOT / "flowers5" / "val" / "daisy").iterdir())[:20]
    transform = backbone.spec.eval_transform()
    images = torch.stack([transform(decode_image(str(photo), "RGB")) for photo in photos])
    with torch.no_grad():
        logits = network.classifier(backbone(images))
        assert logits.equal(network(images))
    assert (logits.argmax(1) == 985).float().mean() > 0.7
