import pytest
import torch
from torch import nn

from lit_ft.backbones.build import build_backbone, input_spec
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.meta import without_data
from lit_ft.backbones.stem import adapted, set_channels
from lit_ft.errors import UserError

SMALL = InputSpec(size=64, resize=64)


def spec_of(channels, size=64):
    return InputSpec(size=size, resize=size, mean=(0.5,) * channels, std=(0.25,) * channels)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of weights of a network for three channels."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    backbone = build_backbone("resnet18", None, spec=SMALL)
    torch.save({f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}, path)
    return str(path), backbone.eval()


def test_grey_image_in_one_channel_gives_what_it_gives_in_three(published):
    path, three = published
    one = build_backbone("resnet18", path, spec=spec_of(1)).eval()
    grey = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_more_channels_repeat_the_weights_and_keep_the_size_of_the_output(published):
    path, three = published
    six = build_backbone("resnet18", path, spec=spec_of(6)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(six(images.repeat(1, 2, 1, 1)), three(images), rtol=1e-4, atol=1e-5)


def test_checkpoint_of_other_channels_is_taken_as_it_is(published, tmp_path):
    path, _ = published
    four = build_backbone("resnet18", path, spec=spec_of(4))
    with torch.no_grad():
        four.stages["stem"].conv1.weight[:, 3] += 1  # as training would, so that it is no repetition any more
    torch.save({f"backbone.{key}": tensor for key, tensor in four.state_dict().items()}, tmp_path / "four.pth")
    again = build_backbone("resnet18", str(tmp_path / "four.pth"), spec=spec_of(4))
    assert again.stages["stem"].conv1.weight.equal(four.stages["stem"].conv1.weight)


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@pytest.mark.parametrize("name", ["vgg11", "convnext_tiny", "densenet121", "inception_v3", "vit_b_32", "swin_t"])
def test_first_convolution_of_any_network_is_adapted(name, channels):
    backbone = without_data(lambda: build_backbone(name, None, spec=spec_of(channels, input_spec(name).size)))
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    assert (first.in_channels, first.weight.shape[1]) == (channels, channels)


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "fastvit_t8"])
def test_all_convolutions_that_read_the_images_are_adapted(name):
    pytest.importorskip("timm")
    backbone = build_backbone(f"timm/{name}", None, spec=spec_of(1)).eval()
    reading = [m for m in backbone.stages["stem"].modules() if isinstance(m, nn.Conv2d) and m.in_channels == 1]
    assert len({id(conv.weight) for conv in reading}) > 1
    assert backbone(torch.randn(2, 1, 64, 64)).shape == (2, backbone.num_features)


def test_one_channel_weights_are_spread_over_three():
    weight = torch.full((2, 1, 1, 1), 6.0)
    assert adapted(weight, 3).flatten().tolist() == [2.0] * 6
    assert adapted(weight, 1) is weight


def test_network_without_a_convolution_of_these_channels_is_refused():
    with pytest.raises(UserError, match=r"^model.input.channels: the network has no first convolution of 3 channels"):
        set_channels(nn.Linear(3, 2), SMALL, 1)
    assert set_channels(nn.Linear(3, 2), SMALL, 3) == []


# Places that the stem gives for images of 32 pixels: with its own stem, and with the small one.
@pytest.mark.parametrize(
    ("name", "own", "small"),
    [
        ("resnet18", 8, 32),
        ("densenet121", 8, 32),
        ("regnet_y_400mf", 16, 32),
        ("mobilenet_v2", 16, 32),
        ("shufflenet_v2_x0_5", 8, 32),
        ("efficientnet_b0", 16, 32),
    ],
)
def test_small_stem_keeps_the_size_of_the_images(name, own, small):
    spec = InputSpec(size=32, resize=32)
    images = torch.randn(1, 3, 32, 32)
    backbones = {stem: build_backbone(name, None, spec=spec, stem=stem).eval() for stem in ("own", "small")}
    with torch.inference_mode():
        places = {stem: backbone.stages["stem"](images).shape[-1] for stem, backbone in backbones.items()}
    assert places == {"own": own, "small": small}
    assert [*backbones["own"].state_dict()] == [*backbones["small"].state_dict()]


def test_small_stem_takes_the_published_weights(published):
    path, three = published
    small = build_backbone("resnet18", path, spec=SMALL, stem="small")
    assert all(tensor.equal(small.state_dict()[key]) for key, tensor in three.state_dict().items())
    assert isinstance(small.stages["stem"].maxpool, nn.Identity)
    assert small.stages["stem"].conv1.stride == (1, 1)


class Stem(nn.Module):
    """A network with a residual block and pooling by a function in its stem."""

    def __init__(self):
        super().__init__()
        self.conv, self.short = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(3, 8, 1, stride=2)
        self.deep = nn.Conv2d(8, 4, 3)

    def forward(self, images):
        x = nn.functional.max_pool2d(self.conv(images) + self.short(images), 3, 2, 1)
        return self.deep(x).mean(dim=(2, 3))


class Hidden(nn.Module):
    """One whose pooling is out of sight."""

    def __init__(self):
        super().__init__()
        self.stem = Stem()
        self.deep = nn.Conv2d(4, 4, 1)

    def forward(self, images):
        return self.deep(self.stem(images)[:, :, None, None]).flatten(1)


def test_small_stem_of_an_own_network():
    given = {"class_path": f"{__name__}.Stem", "stages": {"stem": "conv|short", "deep": "deep"}}
    own, small = (build_backbone(given, None, spec=SMALL, stem=stem) for stem in ("own", "small"))
    images = torch.randn(1, 3, 64, 64)
    assert own.stages["stem"](images).shape == (1, 8, 16, 16)
    assert small.stages["stem"](images).shape == (1, 8, 64, 64)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vit_b_32", "the stem still makes 50 x 768 of images of 224 pixels"),
        ("convnext_tiny", "the stem still makes 96 x 56 x 56 of images of 224 pixels"),
        ("swin_t", "the stem still makes 56 x 56 x 96 of images of 224 pixels"),
        (
            {"class_path": f"{__name__}.Hidden", "stages": {"stem": "stem", "deep": "deep"}},
            "the stem still makes 4 x 1 x 1 of images",
        ),
        ("vgg11", "the network has no stage called stem; give own"),
        ("mnist_cnn", "the network has no stage called stem; give own"),
    ],
)
def test_network_without_such_a_stem_is_refused(name, text):
    with pytest.raises(UserError, match=rf"^model.stem: small: {text}"):
        build_backbone(name, None, stem="small")


@pytest.mark.long
def test_positions_of_a_vision_transformer_are_interpolated(tmp_path):
    torch.manual_seed(0)
    trained = build_backbone("vit_b_32", None, spec=InputSpec(size=96, resize=96))
    file = tmp_path / "vit.pth"
    torch.save({f"backbone.{key}": tensor for key, tensor in trained.state_dict().items()}, file)
    larger = build_backbone("vit_b_32", str(file), spec=InputSpec(size=192, resize=192))
    key = "stages.stem.encoder.pos_embedding"
    old, new = trained.state_dict()[key], larger.state_dict()[key]
    assert (old.shape, new.shape) == ((1, 1 + 9, 768), (1, 1 + 36, 768))
    assert new[:, 0].equal(old[:, 0])  # the class token's
    grid = old[:, 1:].transpose(1, 2).view(1, 768, 3, 3)
    expected = nn.functional.interpolate(grid, size=6, mode="bicubic", align_corners=True)
    torch.testing.assert_close(new[:, 1:].transpose(1, 2).view(1, 768, 6, 6), expected)
    rest = [name for name in trained.state_dict() if name != key]
    assert all(trained.state_dict()[name].equal(larger.state_dict()[name]) for name in rest)


def test_weights_for_other_channels_than_the_images_have_are_refused(published, tmp_path):
    path, _ = published
    six = build_backbone("resnet18", path, spec=spec_of(6))
    torch.save({f"backbone.{key}": tensor for key, tensor in six.state_dict().items()}, tmp_path / "six.pth")
    with pytest.raises(UserError, match=r"1 of another shape \(conv1.weight\)"):
        build_backbone("resnet18", str(tmp_path / "six.pth"), spec=SMALL)
