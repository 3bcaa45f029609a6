"""Which categories the outputs of networks stand for, where nobody says so."""

from collections import Counter
from collections.abc import Sequence

from analysis.images.imagenet import are_imagenet
from analysis.models.loaded import LoadedModel
from analysis.shape_bias.categories import IMAGENET, LabelMapping


def own_mapping(loaded: Sequence[LoadedModel]) -> LabelMapping:
    """ImageNet's, or that of the classes that all the models name.

    Raises:
        ValueError: If they have different classes, or one name stands for several outputs.
    """
    classes = {() if are_imagenet(item.classes) else tuple(item.classes) for item in loaded}
    if classes in (set(), {()}):
        return IMAGENET
    if len(classes) > 1:
        raise ValueError(
            f"model: {', '.join(item.name for item in loaded)} have different classes; pass mapping=LabelMapping(...)"
        )
    (own,) = classes
    twice, count = Counter(own).most_common(1)[0]
    if count > 1:
        outputs = ", ".join(str(index) for index, name in enumerate(own) if name == twice)
        raise ValueError(
            f"model: {loaded[0].name} calls several outputs {twice!r} ({outputs}); pass mapping=LabelMapping(...)"
        )
    return LabelMapping.from_dict(dict(enumerate(own)), len(own))
