"""Images with changed bytes and of odd kinds, alone, in folders, in tar shards."""

import io
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

import analysis
from analysis.images.files import ImageError, read_rgb
from tests.fuzz.engine import Case, WrongError, family
from tests.fuzz.mutating import INTERESTING, TEXTS, mutated_bytes

_SIDE = 24
_KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("png", "RGB", {}), ("png", "RGBA", {}), ("png", "L", {}), ("png", "LA", {}), ("png", "P", {}), ("png", "1", {}),
    ("png", "I;16", {}), ("png", "P", {"transparency": 3}), ("jpg", "RGB", {}), ("jpg", "L", {}), ("jpg", "CMYK", {}),
    ("jpg", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
    ("jpg", "RGB", {"progressive": True}), ("tiff", "RGB", {}), ("tiff", "I;16", {}), ("tiff", "F", {}),
    ("tiff", "CMYK", {}), ("tiff", "RGB", {"compression": "tiff_lzw"}), ("tiff", "LAB", {}), ("webp", "RGB", {}),
    ("webp", "RGBA", {"lossless": True}),
    ("gif", "P", {}), ("gif", "P", {"save_all": True, "append_images": [Image.new("P", (_SIDE, _SIDE), 5)]}),
    ("bmp", "RGB", {}), ("ppm", "RGB", {}), ("ppm", "I;16", {}),
)  # fmt: skip


def _picture(random: Random) -> tuple[str, bytes]:
    """The ending and the content of an image file."""
    suffix, mode, options = random.choice(_KINDS)
    pixels = np.frombuffer(random.randbytes(_SIDE * _SIDE * 3), np.uint8).reshape(_SIDE, _SIDE, 3)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16)[..., 0] * 200)
    elif mode == "LAB":
        image = Image.frombytes("LAB", image.size, image.tobytes())
    else:
        image = image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, {"jpg": "jpeg"}.get(suffix, suffix), **options)
    return suffix, stream.getvalue()


@family()
def image_bytes(random: Random, folder: Path) -> Case:
    """An image is refused or becomes RGB; no changed byte of a PNG, which has checksums, changes a pixel."""
    suffix, content = _picture(random)
    path = folder / f"a.{suffix}"
    path.write_bytes(content)
    try:
        whole = np.asarray(read_rgb(path)) if suffix == "png" else None
    except ImageError:
        whole = None
    path.write_bytes(mutated_bytes(random, content))

    def run() -> None:
        found = read_rgb(path)
        if found.mode != "RGB" or not found.width or not found.height:
            raise WrongError(f"{found.mode} of {found.size}")
        if whole is not None and not np.array_equal(np.asarray(found), whole):
            raise WrongError("other pixels, although the file has checksums")

    return Case(f"read_rgb, {suffix}, other bytes", run, (ImageError,))


@family()
def image_folders(random: Random, folder: Path) -> Case:
    """Sets of images with damaged ones among them: each is used or named as skipped."""
    names = []
    for index in range(4):
        suffix, content = _picture(random)
        odd = random.choice(("", "", "", *TEXTS)).replace("/", "").replace("\0", "")[:50]
        name = f"cat{index + 1}-dog1.{suffix}" if random.random() < 0.7 else f"a{index}{odd}.{suffix}"
        try:
            (folder / name).write_bytes(content if random.random() < 0.5 else mutated_bytes(random, content))
            names.append(name)
        except (OSError, UnicodeError):
            continue
    kind = random.choice(("load_images", "load_stimuli", "labelled_files", "FolderImages", "predict"))
    if kind in ("labelled_files", "FolderImages"):
        inner = folder / "val" / "a"
        inner.mkdir(parents=True)
        for name in names:
            (folder / name).rename(inner / name)

    def run() -> None:
        if kind == "load_images":
            found = analysis.load_images(folder, size=8)
            if len(found.names) + len(found.skipped) != len(names):
                raise WrongError(f"{len(found.names)} used and {len(found.skipped)} skipped of {len(names)}")
            if not all(torch.isfinite(image).all() and image.shape == (3, 8, 8) for image in found):
                raise WrongError("an image is not finite")
        elif kind == "load_stimuli":
            stimuli = analysis.load_stimuli(folder)
            if len(stimuli) + len(stimuli.skipped) != len(names):
                raise WrongError(f"{len(stimuli)} used and {len(stimuli.skipped)} skipped of {len(names)}")
        elif kind == "labelled_files":
            analysis.labelled_files(folder / "val", ("a",))
        elif kind == "FolderImages":
            images = analysis.FolderImages(folder, "val", size=8)
            for index in range(len(images)):
                images[index]
        else:
            found_predictions = analysis.predict("replknet_nano_k3", folder, size=32)
            if len(found_predictions) + len(found_predictions.skipped) != len(names):
                raise WrongError("some are neither used nor skipped")

    return Case(f"{kind} of {len(names)} files", run)


@family()
def shards(random: Random, folder: Path) -> Case:
    """Tar files with changed bytes, odd labels and odd members."""
    stream = io.BytesIO()
    what = random.choice(("bytes", "labels", "names", "classes"))
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for index in range(3):
            suffix, content = "png", _picture(random)[1]
            label = str(index % 2)
            if what == "labels" and index == 1:
                label = random.choice((*TEXTS, *map(str, INTERESTING), '{"label": 1}', "1_0", "٣", "1.0"))
            name = f"{index:03d}"
            if what == "names" and index == 1:
                name = random.choice((*(text for text in TEXTS if "\0" not in text), "000", "a.b"))
            for ending, data in (
                (suffix, content),
                (random.choice(("cls", "cls", "json")), label.encode("utf-8", "replace")),
            ):
                if ending == "json" and what != "labels":
                    data = f'{{"label": {label}}}'.encode()
                info = tarfile.TarInfo(f"{name}.{ending}".encode("utf-8", "replace").decode())
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    content = stream.getvalue()
    (folder / "val-000.tar").write_bytes(mutated_bytes(random, content) if what == "bytes" else content)
    if what == "classes":
        (folder / "classes.txt").write_bytes(mutated_bytes(random, b"cat\ndog\n"))

    def run() -> None:
        found = analysis.TarShards(folder, "val")
        for index in range(len(found)):
            image, label = found[index]
            if image.ndim != 3 or not 0 <= label < len(found.classes):
                raise WrongError(f"image of {image.shape}, class {label} of {len(found.classes)}")

    return Case(f"TarShards, {what}", run)
