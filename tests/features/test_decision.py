import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_ft.errors import UserError
from lit_ft.features.decision import CacheOptions, Decision, PhaseFacts, SplitFacts, decide, format_decision
from lit_ft.features.layout import Layout

# 1 kB an image and view in float32.
FEATURES = Layout(1, 1, (250,), is_channels_last=False, computed=torch.float32, stored=torch.float32)
TRAIN, VAL = SplitFacts(num_images=100, num_passes=5), SplitFacts(num_images=40, num_passes=5)
AUGMENTED = replace(TRAIN, is_augmented=True)
FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16


def phase(train=TRAIN, val=VAL, num_epochs=5, **options):
    splits = {split: facts for split, facts in {"train": train, "val": val}.items() if facts is not None}
    return PhaseFacts(("stem", "layer1"), splits, num_epochs=num_epochs, **options)


def cached(decision):
    """The number of views and the type of each cached split."""
    return {split: (layout.views, layout.stored) for split, layout in decision.layouts.items()}


@pytest.mark.parametrize(
    ("train", "options", "expected"),
    [
        (TRAIN, {}, {"train": (1, FLOAT32), "val": (1, FLOAT32)}),
        (AUGMENTED, {}, {"train": (2, FLOAT32), "val": (1, FLOAT32)}),
        (AUGMENTED, {"views": 4}, {"train": (4, FLOAT32), "val": (1, FLOAT32)}),
        (TRAIN, {"views": 4}, {"train": (1, FLOAT32), "val": (1, FLOAT32)}),
        (None, {}, {"val": (1, FLOAT32)}),
        # 140 kB in float32, 70 kB in float16.
        (TRAIN, {"limit": 140e-6}, {"train": (1, FLOAT32), "val": (1, FLOAT32)}),
        (TRAIN, {"limit": 139e-6}, {"train": (1, FLOAT16), "val": (1, FLOAT16)}),
        (TRAIN, {"dtype": "bfloat16"}, {"train": (1, BFLOAT16), "val": (1, BFLOAT16)}),
        (TRAIN, {"dtype": "float16"}, {"train": (1, FLOAT16), "val": (1, FLOAT16)}),
        # The type first, then the views, which never go below 2 if more were asked for.
        (AUGMENTED, {"views": 4, "limit": 439e-6}, {"train": (4, FLOAT16), "val": (1, FLOAT16)}),
        (AUGMENTED, {"views": 4, "limit": 219e-6}, {"train": (3, FLOAT16), "val": (1, FLOAT16)}),
        (AUGMENTED, {"views": 4, "limit": 120e-6}, {"train": (2, FLOAT16), "val": (1, FLOAT16)}),
        (AUGMENTED, {"views": 4, "limit": 340e-6, "dtype": "float32"}, {"train": (3, FLOAT32), "val": (1, FLOAT32)}),
        (AUGMENTED, {"views": 1, "limit": 70e-6}, {"train": (1, FLOAT16), "val": (1, FLOAT16)}),
    ],
)
def test_splits_are_cached_in_as_many_views_and_as_exactly_as_the_limit_allows(train, options, expected):
    decision = decide(phase(train), CacheOptions(**options), lambda: FEATURES)
    assert cached(decision) == expected
    assert decision.reasons == {}
    assert {split: layout.images for split, layout in decision.layouts.items()} == {
        split: {"train": 100, "val": 40}[split] for split in expected
    }


@pytest.mark.parametrize(
    ("options", "least"),
    [({"limit": 69e-6}, "70.0 kB"), ({"limit": 139e-6, "dtype": "float32"}, "140.0 kB")],
)
def test_nothing_is_cached_where_the_smallest_files_exceed_the_limit(options, least):
    decision = decide(phase(), CacheOptions(**options), lambda: FEATURES)
    reason = f"{least} would exceed `feature_cache.limit` {options['limit']:g} GB"
    assert decision == Decision({}, {"train": reason, "val": reason})


def test_features_computed_in_half_precision_are_stored_as_they_are():
    half = replace(FEATURES, computed=BFLOAT16, stored=BFLOAT16)
    assert cached(decide(phase(val=None), CacheOptions(), lambda: half)) == {"train": (1, BFLOAT16)}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"sharded_by": "FSDPStrategy"}, "`trainer.strategy` FSDPStrategy may hold only a part of the weights"),
        ({"batch_hook": "on_after_batch_transfer"}, "on_after_batch_transfer may change its batches"),
        ({"own_step": "Mine.forward"}, "Mine.forward may use its images"),
        ({"is_reloaded": True}, "`trainer.reload_dataloaders_every_n_epochs` may change its images"),
        ({"is_mixed": True}, "`model.mix` changes its images"),
        ({"is_read_whole": False}, "no epoch reads all of its images"),
        # The first reason that applies.
        ({"is_mixed": True, "is_read_whole": False}, "`model.mix` changes its images"),
    ],
)
def test_split_whose_images_cannot_be_replaced_is_not_cached(facts, reason):
    decision = decide(phase(replace(TRAIN, **facts)), CacheOptions(), lambda: FEATURES)
    assert decision.reasons == {"train": reason}
    assert cached(decision) == {"val": (1, FLOAT32)}


@pytest.mark.parametrize(
    ("train", "num_epochs", "options", "reason"),
    [
        (TRAIN, 1, {}, "the phase has one epoch"),
        (AUGMENTED, 1, {}, "the phase has one epoch"),
        (TRAIN, 2, {}, None),
        (AUGMENTED, 2, {}, "2 augmented views would save little in 2 epochs"),
        (AUGMENTED, 3, {}, None),
        (AUGMENTED, 3, {"views": 4}, "4 augmented views would save little in 3 epochs"),
        (AUGMENTED, math.inf, {"views": 100}, None),
    ],
)
def test_split_is_cached_if_that_saves_an_epoch(train, num_epochs, options, reason):
    decision = decide(phase(train, None, num_epochs), CacheOptions(**options), lambda: FEATURES)
    assert decision.reasons == ({} if reason is None else {"train": reason})
    assert bool(decision.layouts) == (reason is None)


@pytest.mark.parametrize(
    ("num_passes", "reason"),
    [(0, "the phase has no validation"), (1, "the phase has one validation"), (2, None), (math.inf, None)],
)
def test_validation_split_is_cached_if_it_is_read_twice(num_passes, reason):
    decision = decide(phase(val=replace(VAL, num_passes=num_passes)), CacheOptions(), lambda: FEATURES)
    assert decision.reasons == ({} if reason is None else {"val": reason})
    assert list(decision.layouts) == ["train"] + ["val"] * (reason is None)


def test_features_are_not_computed_where_nothing_is_worth_caching():
    decision = decide(phase(num_epochs=1), CacheOptions(), lambda: pytest.fail("computed"))
    assert decision == Decision({}, dict.fromkeys(("train", "val"), "the phase has one epoch"))


@pytest.mark.parametrize("has_moving_norms", [False, True])
def test_nothing_is_cached_without_stages_that_give_the_same_in_each_epoch(has_moving_norms):
    facts = replace(phase(has_moving_norms=has_moving_norms), stages=())
    reason = "`unfreeze.frozen_norm` lets norm layers of frozen stages change"
    reasons = {"train": reason, "val": reason} if has_moving_norms else {}
    assert decide(facts, CacheOptions(), lambda: pytest.fail("computed")) == Decision({}, reasons)


@pytest.mark.parametrize(
    ("facts", "options", "line"),
    [
        (
            phase(AUGMENTED, first_epoch=2),
            {},
            "epochs 2-6: stem to layer1 cached for train (100 images in 2 augmented views) and val (40 images), "
            "240.0 kB as float32 in run",
        ),
        (
            replace(phase(replace(TRAIN, is_mixed=True), num_epochs=math.inf), stages=("stem",)),
            {},
            "epochs 0-…: stem cached for val (40 images), 40.0 kB as float32 in run; "
            "train not cached: `model.mix` changes its images",
        ),
        (phase(num_epochs=1), {}, "epoch 0: train and val not cached: the phase has one epoch"),
        (
            phase(num_epochs=1, ends_by_plateau=True),
            {},
            "epochs 0-…, to a plateau: train and val not cached: the phase has one epoch",
        ),
        (
            phase(replace(TRAIN, is_mixed=True), replace(VAL, num_passes=1)),
            {},
            "epochs 0-4: train not cached: `model.mix` changes its images; "
            "val not cached: the phase has one validation",
        ),
        (phase(val=None), {"dtype": "float16"}, "epochs 0-4: stem to layer1 cached for train (100 images), 50.0 kB as "
                                                "float16 in run"),
    ],
)  # fmt: skip
def test_line_says_what_is_cached_and_why_the_rest_is_not(facts, options, line):
    decision = decide(facts, CacheOptions(**options), lambda: FEATURES)
    assert format_decision(decision, facts, Path("run")) == f"Features  {line}"


@pytest.mark.parametrize("options", [{"views": -1}, {"limit": 0.0}, {"limit": -1.0}, {"dtype": "int8"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=rf"^feature_cache\.{next(iter(options))}: "):
        CacheOptions(**options)
