"""Image files: finding them, and reading each as RGB."""

import glob
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def find_images(sources: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    """The files that are meant, in order, each once.

    Args:
        sources: Files, folders (every image file in them and their sub-folders, sorted) and patterns such as
            `photos/*.jpg`.

    Raises:
        FileNotFoundError: If a source does not exist or matches no file.
    """
    found: dict[Path, None] = {}
    for source in [sources] if isinstance(sources, (str, PathLike)) else sources:
        path = Path(source)
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
        elif path.exists():
            files = [path]
        else:
            files = [Path(match) for match in sorted(glob.glob(str(source), recursive=True))]  # noqa: PTH207
        files = [file for file in files if file.is_file()]
        if not files:
            what = "holds no image" if path.is_dir() else "no such file or folder, and no file matches"
            raise FileNotFoundError(f"images={str(source)!r}: {what}")
        found.update(dict.fromkeys(files))
    return list(found)


class ImageError(Exception):
    """A file that cannot be used as an image; the message is the reason."""


def read_rgb(path: Path) -> Image.Image:
    """One image file as RGB, upright.

    Raises:
        ImageError: If it is missing, corrupt or no image.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except UnidentifiedImageError:
        kind = "corrupt" if path.suffix.lower() in IMAGE_SUFFIXES else "not an image"
        raise ImageError(kind) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"corrupt ({error})") from None
    return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture as 8-bit RGB: 16-bit ones scaled, transparent ones laid on white."""
    if image.mode.startswith(("I", "F")):  # 16 bits a pixel: Pillow's own conversion would clip, not scale
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.clip(values / 65535 * 255 + 0.5, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")
