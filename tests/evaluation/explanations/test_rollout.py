"""Attention rollout: of matrices, of torch's layer and of timm's."""

import pytest
import torch
from small_runs import images_of, small_module
from torch import nn
from torch.nn import functional as F

from lit_ft.backbones.backbone import Backbone
from lit_ft.backbones.build import ClassToken, Mean
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.errors import UserError
from lit_ft.evaluation.explanations import rollout
from lit_ft.evaluation.explanations.rollout import attention_rollout, can_roll_out, roll_out
from lit_ft.model.module import FineTuneModule


def random_attention(layers, tokens=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, tokens, tokens, generator=generator).softmax(dim=-1) for _ in range(layers)]


def test_rows_of_a_rollout_sum_to_one_and_later_layers_come_first_in_the_product():
    attention = random_attention(3)
    found = roll_out(attention)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 5))
    first, second, third = ((layer + torch.eye(5)) / 2 for layer in attention)
    torch.testing.assert_close(found, third @ second @ first)
    assert not torch.allclose(found, first @ second @ third)


def test_tokens_that_attend_to_themselves_stay():
    assert roll_out([torch.eye(4).unsqueeze(0)] * 6)[0].equal(torch.eye(4))
    halves = roll_out([torch.full((1, 2, 2), 0.5)])[0]
    assert halves.tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_rows_in_half_precision_sum_to_one_all_the_same():
    found = roll_out([layer.bfloat16() for layer in random_attention(12)])
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 5))


class Tokens(nn.Module):
    """A token for each 2 x 2 patch, its brightness and a one, perhaps after that of a class."""

    def __init__(self, has_class):
        super().__init__()
        self.embed = nn.Conv2d(1, 2, 2, 2)
        self.first = nn.Parameter(torch.tensor([[[0.0, 1.0]]])) if has_class else None
        with torch.no_grad():
            self.embed.weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2))
            self.embed.bias.copy_(torch.tensor([0.0, 1.0]))

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return tokens if self.first is None else torch.cat([self.first.expand(len(tokens), -1, -1), tokens], dim=1)


class BrightestFirst(nn.Module):
    """A layer in which all tokens attend to the brightest."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_weight.zero_()
            self.attention.in_proj_weight[0, 1] = 5.0  # a query of ones
            self.attention.in_proj_weight[2, 0] = 1.0  # a key of the brightness

    def forward(self, tokens):
        return tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]


class Transformer(nn.Module):
    def __init__(self, has_class, pool, layer=BrightestFirst):
        super().__init__()
        self.backbone = Backbone({"stem": Tokens(has_class), "blocks": layer()}, pool, InputSpec(8, 8, mean=(0.5,)))

    def forward(self, images):
        return self.backbone(images)


CASES = [(True, ClassToken()), (False, Mean((1,))), (True, Mean((1,), 1))]


@pytest.mark.parametrize(("has_class", "pool"), CASES)
def test_patch_that_all_tokens_attend_to_is_found(has_class, pool):
    model = Transformer(has_class, pool).eval()
    images = torch.zeros(2, 1, 8, 8)
    images[0, :, 2:4, 6:8] = images[1, :, 6:8, 0:2] = 1.0
    found = attention_rollout(model, images, 0)
    assert found.shape == (2, 8, 8)
    for one, (rows, columns) in zip(found, [(slice(2, 4), slice(6, 8)), (slice(6, 8), slice(0, 2))], strict=True):
        assert one[rows, columns].min() > 0.25
        # Half of a token's share stays its own, and the enlarged patch reaches into its neighbours.
        assert one[rows, columns].mean() > 3 * (one.sum() - one[rows, columns].sum()) / 60
    assert not model.backbone.stages["blocks"].attention._forward_hooks
    assert not model.backbone.stages["blocks"].attention._forward_pre_hooks


@pytest.mark.parametrize(
    ("has_class", "pool", "share"),
    # Of a black image all tokens are alike, and each gives half of itself and a part of the other half to all of them.
    [(False, Mean((1,)), 1.0), (True, ClassToken(), 0.5 * 16 / 17), (True, Mean((1,), 1), 0.5 + 0.5 * 16 / 17)],
)
def test_shares_of_the_patches_are_those_in_the_tokens_that_are_pooled(monkeypatch, has_class, pool, share):
    enlarged = {}
    monkeypatch.setattr(F, "interpolate", lambda values, *rest, **options: enlarged.setdefault("map", values))
    attention_rollout(Transformer(has_class, pool), torch.zeros(3, 1, 8, 8), 0)
    torch.testing.assert_close(enlarged["map"].sum(dim=(1, 2, 3)), torch.full((3,), share))
    assert enlarged["map"].shape == (3, 1, 4, 4)


def test_networks_without_attention_of_all_tokens_are_refused():
    assert not can_roll_out(small_module().backbone)
    assert not can_roll_out(Transformer(True, ClassToken(), nn.Identity).backbone)

    class Windows(BrightestFirst):
        def forward(self, tokens):
            halves = tokens.reshape(2 * len(tokens), -1, 2)
            return super().forward(halves).reshape(tokens.shape)

    model = Transformer(False, Mean((1,)), Windows)
    assert not can_roll_out(model.backbone)
    assert can_roll_out(Transformer(False, Mean((1,))).backbone)
    with pytest.raises(UserError, match=r"methods: attention_rollout is for transformers whose tokens all attend"):
        attention_rollout(model, torch.zeros(1, 1, 8, 8), 0)


def test_attention_of_timm_is_recorded_without_changing_what_it_gives():
    pytest.importorskip("timm")
    spec = {"size": 32, "resize": 32}
    model = FineTuneModule("timm/vit_tiny_patch16_224", weights=None, input=spec, classes=3).eval()
    images = model.normalise(images_of(3, 32, 2))
    layers = [layer for layer in model.modules() if hasattr(layer, "fused_attn")]
    fused = [layer.fused_attn for layer in layers]
    with torch.no_grad():
        plain = model.backbone(images)
        with rollout._recorded(model.backbone) as attention:
            torch.testing.assert_close(model.backbone(images), plain, rtol=1e-3, atol=1e-4)
    assert [layer.fused_attn for layer in layers] == fused
    assert len(attention) == 12
    assert {layer.shape for layer in attention} == {(2, 5, 5)}
    torch.testing.assert_close(torch.stack(attention).sum(dim=-1), torch.ones(12, 2, 5))
    found = attention_rollout(model, images, 1)
    assert found.shape == (2, 32, 32)
    assert found.min() > 0
