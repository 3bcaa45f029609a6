import gc
import io
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from analysis.images.labelled import DataError
from analysis.images.shards import TarShards
from analysis.images.synthetic.drawing import SyntheticOptions
from analysis.images.synthetic.sets import SyntheticImages
from analysis.training.batches import OrderedBatches, TrainingBatches, mix, seeded
from analysis.training.recipe import Recipe


def picture(index: int) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 255, (20 + index, 24, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Seven samples in three shards by WebDataset's own writer."""
    (tmp_path / "train").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "train" / "part-%04d.tar"), maxcount=3, verbose=0) as writer:
        for index in range(7):
            buffer = io.BytesIO()
            picture(index).save(buffer, "PNG")
            writer.write({"__key__": f"folder.v2/image{index}", "png": buffer.getvalue(), "cls": index % 3})
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    return tmp_path


def test_shards_hold_what_webdataset_reads(shards: Path) -> None:
    images = TarShards(shards, "train")
    urls = [str(path) for path in images.shards]
    assert len(urls) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files to the garbage collector
        theirs = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8")
        expected = list(theirs.to_tuple("png", "cls"))
        del theirs
        gc.collect()
    assert len(images) == len(expected) == 7
    assert images.classes == ("ant", "bee", "cat")
    for (pixels, label), (other_pixels, other_label) in zip((images[i] for i in range(7)), expected, strict=True):
        assert np.array_equal(pixels, other_pixels)
        assert label == other_label
    assert images[4][0].shape == (24, 24, 3)


def test_labels_in_json_and_shards_beside_each_other(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set-val-000.tar", "w") as archive:
        for name, content in (("a.jpg", b""), ("a.json", json.dumps({"label": 4}).encode())):
            buffer = io.BytesIO()
            if name.endswith("jpg"):
                picture(0).save(buffer, "JPEG")
            else:
                buffer.write(content)
            member = tarfile.TarInfo(name)
            member.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(member, buffer)
    images = TarShards(tmp_path, "val", prepare=lambda image: image.resize((8, 8)))
    assert images.classes == ("0", "1", "2", "3", "4")
    assert images[0][0].shape == (8, 8, 3)
    assert images[0][1] == 4


def test_an_epoch_of_shards_is_a_permutation_and_stays_in_a_window(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.images.shards._SHARDS_IN_A_WINDOW", 1)
    images = TarShards(shards, "train")
    shard_of = np.array([0, 0, 0, 1, 1, 1, 2])
    seen = [images.order(np.random.default_rng((0, epoch))) for epoch in range(5)]
    for order in seen:
        assert sorted(order) == list(range(7))
        assert (np.diff(shard_of[order]) != 0).sum() == 2  # one shard after the other
    assert len({tuple(order) for order in seen}) > 1
    batches = TrainingBatches(images, Recipe(steps=2, batch_size=7, augmentation="imagenet", image_size=16), seed=0)
    assert sorted(batches[1][1].tolist()) == [0, 0, 0, 1, 1, 2, 2]


def test_missing_and_damaged_shards_are_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        TarShards(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"holds no shards val/\*\.tar or \*val\*\.tar"):
        TarShards(shards, "val")
    images = TarShards(shards, "train")
    second = shards / "train" / "part-0001.tar"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(DataError, match=r"part-0001\.tar: the image at byte \d+ cannot be read .*No such file"):
        images[4]
    with pytest.raises(FileNotFoundError, match="shard 1 is missing"):
        TarShards(shards, "train")
    second.write_bytes(content[: len(content) // 2 + 300])
    with pytest.raises(DataError, match=r"part-0001\.tar: "):
        TarShards(shards, "train")
    second.write_bytes(content)
    (shards / "classes.txt").write_text("ant\n")
    with pytest.raises(DataError, match="names 1 classes; the shards have 3"):
        TarShards(shards, "train")


@pytest.mark.parametrize("augmentation", ["flip-crop", "imagenet"])
def test_the_parts_of_a_batch_are_the_batch(shards: Path, augmentation: str) -> None:
    images = TarShards(shards, "train", prepare=lambda image: image.resize((16, 16)))
    recipe = Recipe(
        steps=5,
        batch_size=6,
        augmentation=augmentation,  # type: ignore[arg-type]
        image_size=16,
        rand_augment="rand-m9-mstd0.5-inc1" if augmentation == "imagenet" else "",
    )
    whole = TrainingBatches(images, recipe, seed=1)
    parts = [TrainingBatches(images, recipe, seed=1, part=(number, 3)) for number in range(3)]
    for step in range(5):
        pixels, labels = whole[step]
        assert torch.equal(pixels, torch.cat([part[step][0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[step][1] for part in parts]))


@pytest.mark.parametrize("augmentation", ["flip", "flip-crop"])
def test_images_are_flipped_and_moved_as_torchvision_does(augmentation: str) -> None:
    """The same draws through torchvision's own transforms, from the seed of the step."""
    images = SyntheticImages(num_images=40, seed=1, options=SyntheticOptions(size=32))
    recipe = Recipe(steps=2, batch_size=40, augmentation=augmentation)  # type: ignore[arg-type]
    found, _ = TrainingBatches(images, recipe, seed=3)[1]
    steps: list[nn.Module] = [v2.RandomHorizontalFlip()]
    if augmentation == "flip-crop":
        steps.append(v2.RandomCrop(32, padding=4, padding_mode="reflect"))
    transform = v2.Compose(steps)
    order = np.random.default_rng((3, 1)).permutation(40)
    with seeded(mix(3, 1, "augmentation")):
        expected = [transform(torch.from_numpy(images[int(index)][0]).permute(2, 0, 1)) for index in order]
    assert torch.equal(found, torch.stack(expected))


def test_photographs_are_augmented_as_timm_does(shards: Path) -> None:
    """The same draws through timm's own pipeline, from the seed of the image."""
    from timm.data import create_transform

    images = TarShards(shards, "train")
    recipe = Recipe(steps=1, batch_size=4, augmentation="imagenet", image_size=16)
    pixels, _ = TrainingBatches(images, recipe, seed=5)[0]
    transform = create_transform(16, is_training=True, interpolation="bicubic", color_jitter=0.4)
    order = images.order(np.random.default_rng((5, 0)))
    for position in range(4):
        with seeded(mix(5, position, "augmentation")):
            expected = transform(Image.fromarray(images[int(order[position])][0]))
        normal = (pixels[position] / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )[:, None, None]
        assert torch.allclose(normal, expected, atol=1e-5)


def test_every_strength_of_every_operation_runs() -> None:
    """Among them posterising to no bits at all, which Pillow refuses."""
    from analysis.training.batches import _photographic_augmentation

    transform = _photographic_augmentation(16, "rand-m10-mstd3-inc1")
    for seed in range(300):
        with seeded(seed):
            assert transform(picture(1)).shape == (3, 16, 16)


def test_random_states_are_put_back() -> None:
    import random

    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), float(torch.rand(1))
    random.seed(1)
    torch.manual_seed(1)
    with seeded(7):
        random.random()
        torch.rand(3)
    assert (random.random(), float(torch.rand(1))) == expected


def test_ordered_batches_hold_every_image_once(shards: Path) -> None:
    images = TarShards(shards, "train", prepare=lambda image: image.resize((16, 16)))
    batches = OrderedBatches(images, 3)
    assert len(batches) == 3
    assert [batches[number][1].tolist() for number in range(3)] == [[0, 1, 2], [0, 1, 2], [0]]


def test_images_in_shards_are_read_as_those_in_folders(tmp_path: Path) -> None:
    """Upright, 16 bits scaled; copies that systems leave are no samples, and no shards."""
    upright = picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    contents: dict[str, bytes] = {}
    for name, image, options in (
        ("a.png", upright.rotate(90, expand=True), {"exif": exif}),
        ("b.png", Image.new("I;16", (4, 4), 13107), {}),
        (".ipynb_checkpoints/c.png", upright, {}),
        ("__MACOSX/d.png", upright, {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        contents[name] = buffer.getvalue()
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, content in [*contents.items(), ("a.cls", b"0"), ("b.cls", b"1")]:
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "._train-0.tar").write_bytes(b"left by a system")
    (tmp_path / "classes.txt").write_bytes("ant\nbee\n".encode("utf-8-sig"))
    images = TarShards(tmp_path, "train")
    assert images.classes == ("ant", "bee")
    assert len(images) == 2
    assert np.array_equal(images[0][0], np.asarray(upright))
    assert (images[1][0] == 51).all()  # a fifth of the whole range
