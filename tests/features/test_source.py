from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from host_syncs import META, HostSyncs
from small_runs import small_module
from torch import nn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.sampler import Picks, seed_view
from lit_ft.data.modules.arrays import ArraySource, ArraySplit
from lit_ft.features.layout import Layout
from lit_ft.features.source import FeatureSource, FrozenStages

NUM, VIEWS = 7, 3


@pytest.fixture
def source():
    images = torch.arange(NUM * 3 * 64).remainder(251).view(NUM, 3, 8, 8).to(torch.uint8)
    return ArraySource(ArraySplit.whole(images, 10 * torch.arange(NUM)), InputSpec(8, 8), [ShiftFlip(2, flip=True)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features_of(source, shares, seed=0):
    layout = replace(Layout.like(torch.ones(1, 192)), images=NUM, views=VIEWS)
    features = torch.full((VIEWS * NUM, 192), -1.0)
    for share in shares:
        filled = FeatureSource(features, layout, source, depth=1)
        done = filled.fill(lambda images: images.flatten(1).float(), share, 3, seed)
        assert sum(done) == VIEWS * len(share)
    return layout, features


def test_shares_of_processes_make_the_whole_and_views_and_seeds_differ(source):
    # The last batch is of a single image.
    _, whole = features_of(source, [range(NUM)])
    assert (whole >= 0).all()
    assert features_of(source, [range(4), range(4, NUM)])[1].equal(whole)
    first, second, third = whole.view(VIEWS, NUM, -1)
    assert not first.equal(second)
    assert not second.equal(third)
    assert not features_of(source, [range(NUM)], seed=1)[1].equal(whole)
    rows = torch.arange(NUM)
    for view, features in enumerate((first, second, third)):
        ((images, _),) = source.read([Picks(rows, rows)], seed_view(0, view))
        assert images.flatten(1).float().equal(features)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [3] * 7), (5, [3] * 7), (6, [6, 6, 6, 3]), (32, [21])])
def test_all_views_of_an_image_are_in_a_batch_that_is_no_larger_than_asked_if_it_can_be(source, batch_size, sizes):
    layout, found = replace(Layout.like(torch.ones(1, 192)), images=NUM, views=VIEWS), []
    filled = FeatureSource(torch.empty(VIEWS * NUM, 192), layout, source, depth=1)

    def compute(images):
        found.append(len(images))
        return images.flatten(1).float()

    assert list(filled.fill(compute, range(NUM), batch_size, 0)) == found == sizes


def test_view_of_an_image_belongs_to_its_place_in_the_epoch(source):
    layout = replace(Layout.like(torch.ones(1, 1)), images=NUM, views=VIEWS)
    values = torch.arange(VIEWS * NUM).view(-1, 1).float()
    features = FeatureSource(values, layout, source, depth=2)

    def read(*places):
        rows = torch.full((len(places),), 5)  # an image again and again
        ((output, targets),) = features.read([Picks(rows, torch.tensor(places))], generator())
        assert output.depth == 2
        assert targets.tolist() == [50] * len(places)
        assert (output.values % NUM == 5).all()
        return (output.values.flatten() // NUM).int().tolist()

    assert set(read(*range(NUM))) == set(range(VIEWS))
    assert read(4, 5) == read(*range(NUM))[4:6]  # who reads the rest does not matter


def part_of(module, depth=2, precision="32-true", device="cpu"):
    return FrozenStages(
        SimpleNamespace(precision=precision, strategy=SimpleNamespace(root_device=torch.device(device))), module, depth
    )


def test_identity_tells_weights_depth_precision_and_normalisation_apart():
    module = small_module(classes=10)
    found = [part_of(module), part_of(module, depth=1), part_of(module, precision="bf16-mixed")]
    found.append(part_of(small_module(classes=10, input={"mean": [0.2], "std": [0.5]})))
    identities = {part.identity() for part in found}
    assert part_of(small_module(classes=10)).identity() == found[0].identity()
    for stage in ("conv", "dense"):
        other = small_module(classes=10)
        next(other.backbone.stages[stage].parameters()).data.flatten()[0] += 1e-6
        identities.add(part_of(other).identity())
    assert len(identities) == 6


@pytest.mark.parametrize(("stage", "is_unchanged"), [("conv", False), ("dense", False), ("head", True)])
def test_change_of_one_value_is_seen_in_frozen_stages_alone(stage, is_unchanged):
    module = small_module(classes=10)
    part = part_of(module)
    assert part.is_unchanged()
    next(parameter for parts in module.stage_modules()[stage] for parameter in parts.parameters()).data[0] += 1e-6
    assert part.is_unchanged() == is_unchanged


def test_rounding_is_that_of_the_coarsest_type():
    module = small_module(classes=10)
    names = ("32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true")
    assert [part_of(module, precision=name).rounding for name in names] == [2**-23, 2**-23, 2**-10, 2**-7, 2**-7]
    # The device is where the run computes: float32 in TF32 there.
    assert part_of(module, device="cuda").rounding == 2**-10


def test_any_bit_that_changes_in_a_frozen_stage_is_seen():
    stages = nn.ModuleList([nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(5)])
    stages.register_buffer("part", torch.zeros(8)[1:])  # begins and ends within 64 bits
    stages.register_buffer("number", torch.tensor(1.0))
    parts = SimpleNamespace(stage_modules=lambda: {"only": [stages]})
    frozen = FrozenStages(None, SimpleNamespace(backbone=parts), depth=1)
    assert frozen.is_unchanged()
    for name, value in stages.state_dict().items():
        one = value.flatten()[-1:] if value.is_contiguous() else value[-1, -1, -1, -1:]
        bits = one.view(torch.int64 if value.itemsize == 8 else torch.int32)
        bits ^= 1
        assert not frozen.is_unchanged(), name
        bits ^= 1
        assert frozen.is_unchanged(), name


def test_batch_of_features_on_a_gpu_waits_for_no_step_before(source):
    layout = replace(Layout.like(torch.ones(1, 4)), images=NUM, views=VIEWS)
    features = FeatureSource(torch.zeros(VIEWS * NUM, 4, device=META), layout, source, depth=1)
    with HostSyncs() as syncs:
        ((output, targets),) = features.read([Picks(torch.tensor([5, 2]), torch.arange(2))], generator())
    assert (output.device, output.shape, targets.tolist()) == (META, (2, 4), [50, 20])
    assert syncs.found == []
