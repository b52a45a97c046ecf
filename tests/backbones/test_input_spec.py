import pytest

from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.errors import UserError

SPEC = InputSpec(size=200, resize=250)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (InputConfig(), SPEC),
        (InputConfig(size=100), InputSpec(size=100, resize=125)),
        (InputConfig(size=100, resize=100), InputSpec(size=100, resize=100)),
        (InputConfig(resize=300), InputSpec(size=200, resize=300)),
        (InputConfig(interpolation="bicubic"), InputSpec(200, 250, "bicubic")),
        (InputConfig(mean=[0, 0.5, 1], std=[1, 2, 3]), InputSpec(200, 250, mean=(0.0, 0.5, 1.0), std=(1.0, 2.0, 3.0))),
    ],
)
def test_spec_changes_only_in_what_is_given(config, expected):
    assert config.applied_to(SPEC) == expected


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (InputConfig(mean=[0.5]), r"model.input.mean: model.input.channels says 3 channels, got \[0.5\]"),
        (InputConfig(std=[1, 0, 1]), r"model.input.std: must be above 0, got \[1.0, 0.0, 1.0\]"),
        (InputConfig(size=0), r"model.input.size: must be between 1 and resize \(0\), got 0"),
        (InputConfig(size=100, resize=99), r"model.input.size: must be between 1 and resize \(99\), got 100"),
    ],
)
def test_impossible_images_are_refused(config, text):
    with pytest.raises(UserError, match=f"^{text}$"):
        config.applied_to(SPEC)


def test_channels_are_those_of_the_normalisation():
    assert (InputSpec().channels, InputSpec(mean=(0.5,), std=(0.5,)).channels) == (3, 1)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"mean": [123.7, 116.3, 103.5]},
            r"model.input.mean: is on a scale from 0 to 1, got \[123.7, .*divide by 255",
        ),
        ({"interpolation": "foo"}, r"model.input.interpolation: unknown interpolation 'foo'"),
    ],
)
def test_values_that_cannot_be_are_refused(given, text):
    with pytest.raises(UserError, match=f"^{text}"):
        InputConfig(**given).applied_to(InputSpec())
