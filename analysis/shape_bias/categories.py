"""The 16 categories of the cue-conflict stimuli, and how a classifier's outputs become one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.images.imagenet import are_imagenet, imagenet_classes
from analysis.images.synthetic.outlines import CLASSES
from analysis.runs.tables import read_table
from analysis.runs.texts import few, short

CATEGORIES = (
    "airplane",
    "bear",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "car",
    "cat",
    "chair",
    "clock",
    "dog",
    "elephant",
    "keyboard",
    "knife",
    "oven",
    "truck",
)
"""The categories of Geirhos et al. 2019, in alphabetical order."""
SYNONYMS = {
    "aeroplane": "airplane",
    "automobile": "car",
    "pickup truck": "truck",
    "ship": "boat",
}
"""What image folders (CIFAR-10 and CIFAR-100, STL-10, PASCAL VOC) call some of the categories."""
MOST_SHOWN = len(CATEGORIES)
"""Names of categories in one message."""
_REMEDY = "mapping=LabelMapping(...) says which outputs name the categories"
_DIGITS = 9
"""Of the largest class index in a table."""
NO_RESPONSE = "na"
"""The response of an observer that gave none."""
Aggregation = Literal["mean-probability", "sum-probability", "max-probability", "mean-logit"]
Tie = Literal["first", "none"]
AGGREGATIONS: tuple[Aggregation, ...] = ("mean-probability", "sum-probability", "max-probability", "mean-logit")
TIES: tuple[Tie, ...] = ("first", "none")
# Ranges of 0-based ImageNet-1K class indices, both ends included: facts of Geirhos et al. 2019 (MIT licence).
_IMAGENET_RANGES = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898-899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385-386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}


@dataclass(frozen=True)
class LabelMapping:
    """Which outputs of a classifier belong to which category; outputs without one take part in the softmax only.

    Args:
        indices: For each category, in alphabetical order, its class indices.
        num_classes: How many outputs the classifier must have; None for any number above the largest index.

    Raises:
        ValueError: If a category has no index, or an index is negative, out of range or given twice.
    """

    indices: tuple[tuple[str, tuple[int, ...]], ...]
    num_classes: int | None = None

    def __post_init__(self) -> None:
        names = [category for category, _ in self.indices]
        if not names or names != sorted(set(names)):
            raise ValueError(f"indices: expected different categories in alphabetical order, not {few(names)}")
        owner: dict[int, str] = {}
        for category, own in self.indices:
            if not own:
                raise ValueError(f"indices: category {category!r} has no class index")
            for index in own:
                if index < 0 or (self.num_classes is not None and index >= self.num_classes):
                    limit = "" if self.num_classes is None else f" and below {self.num_classes}"
                    raise ValueError(f"indices: class index {index} of {category!r}: expected at least 0{limit}")
                if index in owner:
                    raise ValueError(f"indices: class index {index} belongs to {owner[index]!r} and to {category!r}")
                owner[index] = category

    @classmethod
    def from_dict(cls, categories: Mapping[int, str], num_classes: int | None = None) -> Self:
        """From class index to category."""
        names = sorted(set(categories.values()))
        indices = tuple((name, tuple(sorted(i for i, own in categories.items() if own == name))) for name in names)
        return cls(indices, num_classes)

    @classmethod
    def from_csv(cls, path: str | PathLike[str], num_classes: int | None = None) -> Self:
        """From a file with the columns `class_index` and `category`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a column is missing, a line is short, or an index is not a number or given twice.
        """
        categories: dict[int, str] = {}
        for line, row in read_table(path, "labels", ("class_index", "category")):
            text, category = row["class_index"], row["category"]
            if not text.isdecimal() or len(text) > _DIGITS or not category:
                raise ValueError(
                    f"{line.where}: expected a class index and a category, not {short(text)} and {short(category)}"
                )
            if int(text) in categories:
                raise ValueError(f"{line.where}: class index {text} was given before")
            categories[int(text)] = category
        if not categories:
            raise ValueError(f"labels={str(path)!r}: names no category")
        return cls.from_dict(categories, num_classes)

    @classmethod
    def from_wordnet(cls, groups: Mapping[str, Sequence[str]], classes: Sequence[str] = ()) -> Self:
        """From WordNet ids, such as n02391049.

        Args:
            groups: For each category its ids.
            classes: Names of the classifier's outputs: WordNet ids, or those of ImageNet-1K in its order; none stands
                for these.

        Raises:
            ValueError: If no output is called by one of the ids.
        """
        names = [own for own, _ in imagenet_classes()] if not classes or are_imagenet(classes) else classes
        outputs: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            outputs.setdefault(name, []).append(index)
        for category, ids in groups.items():
            for own in ids:
                if own not in outputs:
                    raise ValueError(
                        f"model: none of its {len(names)} outputs ({few(names)}) is {own}, {category}; expected the "
                        "classes of ImageNet-1K, or WordNet ids as names of the outputs"
                    )
        found = {category: tuple(index for own in ids for index in outputs[own]) for category, ids in groups.items()}
        return cls(tuple((category, found[category]) for category in sorted(found)), len(names))

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """In alphabetical order."""
        return tuple(category for category, _ in self.indices)

    def of_categories(self, categories: Sequence[str]) -> Self:
        """These categories alone; the outputs of the others then take part in the softmax only.

        Raises:
            ValueError: If one is unknown or given twice, or there is none.
        """
        wanted = select_categories(categories, self.categories)
        return replace(self, indices=tuple(pair for pair in self.indices if pair[0] in wanted))

    def check_stimuli(self, stimuli: Sequence[str], shapes: Sequence[str], textures: Sequence[str]) -> None:
        """Refuse stimuli of a category that the classifier cannot name.

        Raises:
            ValueError: Naming the first of them.
        """
        try:
            check_categories(stimuli, shapes, textures, self.categories)
        except ValueError as error:
            raise ValueError(f"{error}; {_REMEDY}") from None

    def check_outputs(self, num_outputs: int, name: str = "it") -> None:
        """Refuse a classifier that cannot be meant.

        Args:
            num_outputs: Of the classifier.
            name: What it is called in the message.

        Raises:
            ValueError: If the number of outputs does not fit.
        """
        largest = max(max(own) for _, own in self.indices)
        if self.num_classes not in (None, num_outputs) or num_outputs <= largest:
            wanted = f"{self.num_classes}" if self.num_classes is not None else f"more than {largest}"
            raise ValueError(
                f"model: {name} gives {num_outputs} outputs; the label mapping expects {wanted}; {_REMEDY}"
            )

    def scores(self, logits: NDArray[Any], aggregation: Aggregation = "mean-probability") -> NDArray[np.float64]:
        """One score for each category.

        Args:
            logits: Shape (N, classes).
            aggregation: Mean, sum or maximum of the softmax probabilities of a category's classes, or the mean of their
                logits.

        Returns:
            Shape (N, categories), float64.

        Raises:
            ValueError: If the number of classes does not fit, the aggregation is unknown, or a logit is not finite.

        References:
            Geirhos et al. 2019, arXiv:1811.12231 (mean probability).
        """
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation={aggregation!r}: expected one of {', '.join(AGGREGATIONS)}")
        self.check_outputs(logits.shape[1])
        values = np.asarray(logits, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("logits: some are not finite; leave these images out")
        if aggregation != "mean-logit":
            values = special.softmax(values, axis=1)
        combiners: dict[str, Callable[..., Any]] = {"sum-probability": np.sum, "max-probability": np.max}
        combine = combiners.get(aggregation, np.mean)
        return np.stack([combine(values[:, list(own)], axis=1) for _, own in self.indices], axis=1)

    def decide(
        self, logits: NDArray[Any], aggregation: Aggregation = "mean-probability", tie: Tie = "first"
    ) -> tuple[str, ...]:
        """The category with the largest score for each image.

        Args:
            logits: Shape (N, classes).
            aggregation: See `scores`.
            tie: "first" takes the first category in alphabetical order, "none" gives no response ("na").

        Raises:
            ValueError: As `scores`, and if the tie rule is unknown.
        """
        if tie not in TIES:
            raise ValueError(f"tie={tie!r}: expected one of {', '.join(TIES)}")
        scores = self.scores(logits, aggregation)
        best = scores.max(1, keepdims=True)
        tied = (scores == best).sum(1) > 1
        return tuple(
            NO_RESPONSE if several and tie == "none" else self.categories[index]
            for index, several in zip(scores.argmax(1), tied, strict=True)
        )


def _expand(ranges: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)


IMAGENET = LabelMapping(tuple((category, _expand(_IMAGENET_RANGES[category])) for category in CATEGORIES), 1000)
"""The 207 of the 1000 ImageNet classes that belong to the 16 categories (Geirhos et al. 2019)."""
MAPPING = LabelMapping.from_dict(dict(enumerate(CLASSES)), len(CLASSES))
"""From the outputs of a network that was trained on these images to their classes."""


def mapping_of_classes(classes: Sequence[str]) -> LabelMapping:
    """From the outputs of a network that was trained on these classes to those of the 16 categories that it can name.

    A class is a category by its name or by `SYNONYMS`, in whatever case, with spaces or underscores; the classes of
    ImageNet are mapped by `IMAGENET`.

    Raises:
        ValueError: If fewer than two categories are among the classes.
    """
    if are_imagenet(classes):
        return IMAGENET
    words = [name.casefold().replace("_", " ") for name in classes]
    named = {index: SYNONYMS.get(word, word) for index, word in enumerate(words)}
    found = {index: name for index, name in named.items() if name in CATEGORIES}
    if len(set(found.values())) < 2:
        raise ValueError(
            f"classes={few(classes, MOST_SHOWN)}: expected two or more of {', '.join(CATEGORIES)} or of the other "
            f"names {', '.join(SYNONYMS)}, found {classes[next(iter(found))] if found else 'none'}"
        )
    return LabelMapping.from_dict(found, len(classes))


def select_categories(wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The wanted ones, in alphabetical order.

    Raises:
        ValueError: If one is unknown or given twice, or there is none.
    """
    unknown = [name for name in wanted if name not in known]
    if not wanted or len(set(wanted)) < len(wanted) or unknown:
        why = f"no {unknown[0]!r} among them" if unknown else "one twice" if wanted else "none"
        raise ValueError(f"categories={','.join(wanted)}: expected different ones of {few(known, MOST_SHOWN)} ({why})")
    return tuple(sorted(wanted))


def check_categories(
    stimuli: Sequence[str], shapes: Sequence[str], textures: Sequence[str], categories: Sequence[str]
) -> None:
    """Refuse stimuli of a category that cannot be named.

    Raises:
        ValueError: Naming the first of them.
    """
    known = {*categories, ""}
    for name, shape, texture in zip(stimuli, shapes, textures, strict=True):
        for category in (shape, texture):
            if category not in known:
                raise ValueError(
                    f"stimuli: {name}: unknown category {category!r}; expected one of {few(categories, MOST_SHOWN)}"
                )
