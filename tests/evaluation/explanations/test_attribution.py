"""Grad-CAM and integrated gradients: the evidence is where it was put, and depends on the weights."""

import sys

import pytest
import torch
from evidence import centre_detector
from scipy.stats import spearmanr
from small_runs import filled, images_of, small_module
from torch import nn
from torch.nn import functional as F

from lit_ft.backbones.backbone import Backbone, StageOutput
from lit_ft.backbones.build import Mean
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.errors import UserError
from lit_ft.evaluation.explanations.attribution import STEPS, find_map_stage, grad_cam, integrated_gradients
from lit_ft.model.module import FineTuneModule

METHODS = [grad_cam, integrated_gradients]


class Tiny(nn.Module):
    """A model of any stages, as attribution sees it."""

    def __init__(self, stages, pool, size, num_features):
        super().__init__()
        self.backbone = Backbone(stages, pool, InputSpec(size, size))
        torch.manual_seed(0)
        self.head = nn.Linear(num_features, 2)

    def forward(self, images):
        return self.head(self.backbone(images))


def reference(module, images, target):
    """Grad-CAM by hand: the mean gradient of each channel weighs the channels, and what is negative is left out."""
    stages = list(module.backbone.stages.values())
    maps = images
    for stage in stages:
        maps = stage(maps)
    maps = maps.detach().requires_grad_()
    logits = module.head(module.backbone.pool(maps.clone()))[:, target]
    (gradient,) = torch.autograd.grad(logits.sum(), maps)
    found = F.relu((gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1, keepdim=True))
    return F.interpolate(found, images.shape[2:], mode="bilinear", align_corners=False)[:, 0].detach()


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_grad_cam_is_that_of_captum_for_each_image_by_its_own_output(name):
    attr = pytest.importorskip("captum.attr")
    module = FineTuneModule(name, weights=None, input={"size": 64, "resize": 64}, classes=3)
    filled(module).eval()
    images, targets = module.normalise(images_of(3, 64, 3)), torch.tensor([2, 0, 1])
    layer = attr.LayerGradCam(module, module.backbone.stages[find_map_stage(module.backbone)])
    wanted = layer.attribute(images, targets, relu_attributions=True)
    wanted = attr.LayerAttribution.interpolate(wanted, (64, 64), "bilinear")[:, 0].detach()
    assert (wanted.amax(dim=(1, 2)) > 0).sum() >= 2
    torch.testing.assert_close(grad_cam(module, images, targets), wanted, rtol=1e-4, atol=1e-5 * wanted.max().item())
    single = torch.cat([grad_cam(module, image[None], int(one)) for image, one in zip(images, targets, strict=True)])
    torch.testing.assert_close(single, wanted, rtol=1e-4, atol=1e-5 * wanted.max().item())


@pytest.mark.parametrize("corner", [(2, 3), (2, 19), (20, 3), (20, 19)])
@pytest.mark.parametrize("method", METHODS)
def test_evidence_in_a_corner_is_found_there(method, corner):
    module, (top, left) = centre_detector(), corner
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[..., top : top + 6, left : left + 6] = 255
    (found,) = method(module, module.normalise(image), 1)
    # A cell of Grad-CAM's map is two pixels wide, and those next to it get a share as it is enlarged.
    assert found[top - 2 : top + 8, left - 2 : left + 8].sum() > 0.95 * found.clamp(min=0).sum()
    assert found.max() > 0
    assert method(module, module.normalise(image), 0).max() <= 0  # it speaks against the other class


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_layers_in_place_batch_norm_and_frozen_stages_do_not_matter(name):
    module = FineTuneModule(name, weights=None, input={"size": 64, "resize": 64}, classes=3)
    filled(module).eval()
    assert any(getattr(layer, "inplace", False) for layer in module.modules())
    images = module.normalise(images_of(3, 64, 2))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    wanted, free = reference(module, images, 2), integrated_gradients(module, images, 2, 4)
    module.set_trainable(["head"])
    torch.testing.assert_close(grad_cam(module, images, 2), wanted, rtol=1e-4, atol=1e-5 * wanted.max().item())
    assert wanted.max() > 0
    torch.testing.assert_close(integrated_gradients(module, images, 2, 4), free)
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_attributions_sum_to_the_difference_of_the_logits():
    module = small_module(classes=10).eval()
    images = module.normalise(images_of(num=2))
    with torch.no_grad():
        wanted = (module(images) - module(torch.zeros_like(images)))[:, 3]
    found, fine = (integrated_gradients(module, images, 3, steps).sum(dim=(1, 2)) for steps in (STEPS, 8 * STEPS))
    # Where a unit comes on, the gradient jumps, and a sum of n values is wrong by the jump times pi / (2 n) at most,
    # 5% of it; the many jumps are of either sign. With five seeds the errors were at most 1.0% and 0.05%.
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * wanted.abs().max().item())
    torch.testing.assert_close(fine, wanted, rtol=0, atol=0.01 * wanted.abs().max().item())


def test_attributions_of_a_ray_through_the_origin_sum_exactly():
    module = centre_detector()
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[..., 9:12, 9:12] = 255
    given = module.normalise(image)
    with torch.no_grad():
        wanted = float((module(given) - module(torch.zeros_like(given)))[0, 1])
    # Along it no unit changes its state, so that the gradient is the same at all points.
    assert float(integrated_gradients(module, given, 1, 3).sum()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["all", "head"])
def test_random_weights_give_other_maps(method, part):
    """The sanity check of Adebayo et al. 2018, Sanity Checks for Saliency Maps: rank correlation with random weights.

    A map that shows the image whatever the weights has a correlation near 1. One that follows them has one of either
    sign, by hand of 0.5 on average for Grad-CAM, as all channels see the same image, and of 0.1 for gradients.
    """
    torch.manual_seed(0)
    module = small_module(classes=10).eval()
    images = module.normalise(images_of(num=2))
    trained = method(module, images, 3)
    correlations = []
    for seed in range(10):
        torch.manual_seed(seed + 1)
        for layer in (module if part == "all" else module.head).modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        pairs = zip(trained, method(module, images, 3), strict=True)
        correlations += [
            float(spearmanr(one.flatten(), two.flatten()).statistic) for one, two in pairs if two.max() > 0
        ]
    assert len(correlations) >= 5
    assert abs(sum(correlations) / len(correlations)) < 0.5
    assert min(correlations) < 0.2


def test_maps_whose_channels_come_last_give_the_same():
    conv = nn.Conv2d(3, 5, 3)
    torch.manual_seed(1)
    first = Tiny({"stem": conv}, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8, 5)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, images):
            return self.conv(images).permute(0, 2, 3, 1)

    last = Tiny({"stem": Last()}, Mean((1, 2)), 8, 5)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(grad_cam(last, images, 1), grad_cam(first, images, 1))
    assert grad_cam(first, images, 1).max() > 0


def test_deepest_map_of_several_places_is_taken():
    size, flat = InputSpec(8, 8), nn.Flatten()
    stages = {"stem": nn.Conv2d(3, 4, 3), "body": nn.Conv2d(4, 4, 3, 2), "end": nn.AdaptiveAvgPool2d(1)}
    assert find_map_stage(Backbone(stages, flat, size)) == "body"
    assert find_map_stage(small_module().backbone) == "conv"  # dense follows
    tokens = Backbone({"stem": nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(2))}, flat, size)
    assert find_map_stage(tokens) is None
    model = Tiny({"stem": tokens.stages["stem"]}, flat, 8, 16)
    with pytest.raises(UserError, match=r"methods: grad_cam needs a stage whose output is a map"):
        grad_cam(model, torch.zeros(1, 3, 8, 8), 0)


def test_missing_captum_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UserError, match=r"needs captum; run: pip install 'lit_ft\[explain\]'"):
        integrated_gradients(centre_detector(), torch.zeros(1, 1, 28, 28), 1)


def test_output_of_stages_is_what_the_rest_goes_on_from():
    """What Grad-CAM builds upon."""
    module = small_module(classes=3).eval()
    images = module.normalise(images_of(num=2))
    with torch.no_grad():
        conv = module.backbone.prefix(images, 1)
        torch.testing.assert_close(module(StageOutput(conv, 1)), module(images))
