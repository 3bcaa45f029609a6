"""ImageNet-1K: mean and standard deviation of its images, names of its classes."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NUM_IMAGENET_CLASSES = 1000


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
