import dataclasses
from typing import Any

import pytest

from replknet import PRESETS, RepLKNetConfig

VALID: dict[str, Any] = {"layers": (1, 2), "channels": (8, 16), "kernel_sizes": (7, 5), "small_kernel": 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"layers": ()}, "layers"),
        ({"layers": (0, 1)}, "layers"),
        ({"layers": "12"}, "layers"),
        ({"channels": (8,)}, "channels"),
        ({"channels": (8, -1)}, "channels"),
        ({"kernel_sizes": (7, 5, 3)}, "kernel_sizes"),
        ({"kernel_sizes": (7, 4)}, "kernel_sizes"),
        ({"kernel_sizes": (7.0, 5)}, "kernel_sizes"),
        ({"small_kernel": 4}, "small_kernel"),
        ({"small_kernel": 7}, "small_kernel"),
        ({"small_kernel": 0}, "small_kernel"),
        ({"dw_ratio": 0}, "dw_ratio"),
        ({"dw_ratio": 0.01}, "dw_ratio"),
        ({"ffn_ratio": float("nan")}, "ffn_ratio"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"in_channels": 0}, "in_channels"),
        ({"num_classes": -1}, "num_classes"),
        ({"out_indices": ()}, "out_indices"),
        ({"out_indices": (2,)}, "out_indices"),
        ({"out_indices": (1, 0)}, "out_indices"),
    ],
)
def test_invalid_value_is_refused_by_name(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}="):
        RepLKNetConfig(**(VALID | override))


def test_sequences_become_tuples_and_the_config_is_frozen() -> None:
    config = RepLKNetConfig(**(VALID | {"layers": [1, 2], "out_indices": [0, 1]}))
    assert config.layers == (1, 2)
    assert config.out_indices == (0, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = (3, 3)  # type: ignore[misc]


def test_drop_path_grows_linearly_over_the_pairs() -> None:
    config = RepLKNetConfig(**VALID, drop_path_rate=0.4)
    assert config.drop_path_rates == pytest.approx((0.0, 0.2, 0.4))
    assert RepLKNetConfig(layers=(1,), channels=(8,), kernel_sizes=(7,)).drop_path_rates == (0.0,)


def test_published_kernel_sizes() -> None:
    assert {name: config.kernel_sizes for name, config in PRESETS.items() if "nano" not in name} == {
        "replknet_31b": (31, 29, 27, 13),
        "replknet_31l": (31, 29, 27, 13),
        "replknet_xl": (27, 27, 27, 13),
    }
