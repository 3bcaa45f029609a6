"""ImageNet-1K: mean and standard deviation of its images, names of its classes."""

import re
from collections.abc import Sequence
from functools import cache

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NUM_IMAGENET_CLASSES = 1000


@cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """WordNet id and name of each class of ImageNet-1K, in the order of its outputs.

    References:
        Russakovsky et al. 2015, arXiv:1409.0575, as kept by timm.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(
        (info.index_to_label_name(index), info.index_to_description(index)) for index in range(NUM_IMAGENET_CLASSES)
    )


def are_imagenet(names: Sequence[str]) -> bool:
    """Whether these are the classes of ImageNet-1K in the order of its outputs, each by its WordNet id or its name.

    Libraries shorten or lengthen the names ("tench, Tinca tinca", "tench", "crane bird"): the first synonym decides.
    """
    if len(names) != NUM_IMAGENET_CLASSES:
        return False
    for own, (wordnet_id, name) in zip(names, imagenet_classes(), strict=True):
        first = _words(name.partition(",")[0])
        if own != wordnet_id and _words(own)[: len(first)] != first:
            return False
    return True


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.casefold())
