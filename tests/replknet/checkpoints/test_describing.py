from typing import Any

import pytest
import torch

import replknet
from replknet.checkpoints.describing import describe, infer_config
from tests.networks import tiny_model


@pytest.mark.parametrize("overrides", [{}, {"small_kernel": None, "dw_ratio": 1.5, "num_classes": 0}])
def test_the_architecture_is_inferred_from_the_shapes(overrides: dict[str, Any]) -> None:
    model = tiny_model(**overrides)
    assert infer_config(model.state_dict()) == model.config


def test_a_sentence_names_what_the_shapes_say() -> None:
    with torch.device("meta"):
        published = replknet.create_model("replknet_31l").state_dict()
    assert "looks like replknet_31l" in describe(published)
    assert "does not look like a RepLKNet" in describe({"conv1.weight": torch.zeros(1)})
