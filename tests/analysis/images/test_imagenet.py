import torchvision

from analysis.images.imagenet import are_imagenet, imagenet_classes


def test_the_classes_are_known_by_their_names_in_order() -> None:
    """torchvision writes the names otherwise: "tench", "crane bird", "maillot tank suit"."""
    torchvisions = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    ids, names = zip(*imagenet_classes(), strict=True)
    for labels in (torchvisions, ids, names, [name.replace(" ", "_").upper() for name in names]):
        assert are_imagenet(labels)
    swapped = [*names[:998], names[999], names[998]]
    birds = [*names[:134], "crown", *names[135:]]
    for labels in ([f"LABEL_{index}" for index in range(1000)], swapped, birds, names[:999], [*names, "person"], ()):
        assert not are_imagenet(labels)
