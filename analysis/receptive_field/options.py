"""What exactly is measured: every choice, and the named sets of choices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.runs.settings import SIDES, Range, check_fields

Protocol = Literal["standard", "official"]
OutputRule = Literal["relu", "identity"]
GradientRule = Literal["relu", "abs", "square", "signed"]
OUTPUT_RULES: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "identity": lambda x: x}
GRADIENT_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "abs": torch.abs,
    "square": torch.square,
    "signed": lambda x: x,
}
_UNITS: Range = (0, SIDES[1], "a row and a column of at least 0")


@dataclass(frozen=True, kw_only=True)
class ErfOptions:
    """Every choice that defines the measured quantity.

    Args:
        unit: "center" is the unit whose own receptive-field centre is nearest to the image centre, "feature-center"
            the unit (h // 2, w // 2) of the official script, or an explicit (row, column).
        output_rule: Applied to the unit's outputs before they are summed over channels: "relu" or "identity".
        gradient_rule: Applied to the input gradient: "relu", "abs", "square" or "signed" (none).
        sum_colors: "after" applies the gradient rule to each colour and then sums, "before" sums the colours first.
        square_center: Squares and distances are taken round the "unit"'s own centre, or round pixel (H // 2, W // 2)
            of the "image" as in the official script.
    """

    unit: Literal["center", "feature-center"] | tuple[int, int] = "center"
    output_rule: OutputRule = "relu"
    gradient_rule: GradientRule = "abs"
    sum_colors: Literal["before", "after"] = "after"
    square_center: Literal["unit", "image"] = "unit"

    def __post_init__(self) -> None:
        check_fields(self, **({} if isinstance(self.unit, str) else {"unit": _UNITS}))


PROTOCOLS: Mapping[Protocol, ErfOptions] = {
    "standard": ErfOptions(),
    "official": ErfOptions(unit="feature-center", gradient_rule="relu", square_center="image"),
}
"""Named sets of options; "official" is the measurement of the RepLKNet repository."""
