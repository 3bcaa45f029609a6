"""Which categories the outputs of networks stand for, where nobody says so."""

from collections import Counter
from collections.abc import Sequence

from analysis.images.imagenet import are_imagenet
from analysis.models.loaded import LoadedModel
from analysis.runs.texts import few
from analysis.shape_bias.categories import IMAGENET, LabelMapping


def own_mapping(loaded: Sequence[LoadedModel]) -> LabelMapping:
    """ImageNet's, or that of the classes that all the models name.

    Raises:
        ValueError: If they have different classes, or one name stands for several outputs.
    """
    own = common_classes(loaded)
    if not own:
        return IMAGENET
    twice, count = Counter(own).most_common(1)[0]
    if count > 1:
        outputs = ", ".join(str(index) for index, name in enumerate(own) if name == twice)
        raise ValueError(
            f"model: {loaded[0].name} calls several outputs {twice!r} ({outputs}); pass mapping=LabelMapping(...)"
        )
    return LabelMapping.from_dict(dict(enumerate(own)), len(own))


def common_classes(loaded: Sequence[LoadedModel]) -> tuple[str, ...]:
    """The classes that all the models name; empty for those of ImageNet-1K, and where none is named.

    Raises:
        ValueError: If they have different classes.
    """
    classes = {() if are_imagenet(item.classes) else tuple(item.classes) for item in loaded}
    if len(classes) > 1:
        silent = [item.name for item in loaded if not item.classes]
        why = f" (as far as they tell: {', '.join(silent)} names none)" if silent else ""
        raise ValueError(
            f"model: {', '.join(item.name for item in loaded)} have different classes{why}; pass "
            f"mapping=LabelMapping(...) of each{' that names none' if silent else ''}"
        )
    return next(iter(classes), ())


def renamed(item: LoadedModel, mapping: LabelMapping) -> tuple[str, ...]:
    """A note on what a mapping calls otherwise than the network itself."""
    pairs = [(category, index) for category, own in mapping.indices for index in own]
    changed = [
        f"{item.classes[index]} for {category}"
        for category, index in pairs
        if index < len(item.classes) and item.classes[index] != category
    ]
    return (f"{item.name}: by the labels its own classes stand for others: {few(changed)}",) if changed else ()
