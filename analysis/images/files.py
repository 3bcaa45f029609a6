"""Image files: finding them, and reading each as RGB."""

import fnmatch
import glob
import os
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from analysis.runs.settings import named_path
from analysis.runs.texts import printable, why_no_file

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what those are; others it reads by starting programs, such as Ghostscript for EPS."""
_CLUTTER = {"$recycle.bin", "@eadir", "__macosx", "__pycache__", "desktop.ini", "lost+found", "thumbs.db"}
"""Files and folders that systems leave among a user's own, in small letters."""
_BITS, _PHOTOMETRIC = 258, 262
"""Tags of TIFF."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is never meant: `.ipynb_checkpoints`, `__MACOSX`, `Thumbs.db`, ..."""
    return name.startswith(".") or name.lower() in _CLUTTER


def files_in(root: Path) -> list[Path]:
    """What is in a folder and its sub-folders and is no folder, sorted, but what is hidden.

    Links to files and folders are followed. A folder that several ways lead to is entered once, where it lies rather
    than by a link, so that no image counts twice and loops end.

    Raises:
        OSError: If a folder cannot be read.
    """
    return sorted(_walk(root))


def _walk(root: Path) -> dict[Path, bool]:
    """What `files_in` finds, and whether it is a file or a link to what is not there, which may be meant for one."""
    found: dict[Path, bool] = {}
    entered: set[Path] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        if folder.resolve() in entered:
            continue
        entered.add(folder.resolve())
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    continue
                path, is_link = folder / entry.name, entry.is_symlink()
                if path.is_dir() if is_link else entry.is_dir():  # of a link in a circle, an entry raises
                    (links if is_link else folders).append(path)
                else:
                    found[path] = path.is_file() or not path.exists() if is_link else entry.is_file()
    return found


def images_in(root: Path) -> tuple[list[Path], list[Path]]:
    """The images by their names among `files_in`, and the rest: other files, and pipes and the like of any name."""
    found = _walk(root)
    images = sorted(path for path, is_file in found.items() if is_file and path.suffix.lower() in IMAGE_SUFFIXES)
    return images, sorted(set(found).difference(images))


def folders_in(root: Path) -> list[Path]:
    """The folders directly in a folder, sorted, but those that are hidden; links to folders are some.

    Raises:
        FileNotFoundError: If a link leads nowhere: a folder would be missed.
    """
    found = sorted(path for path in root.iterdir() if not is_hidden(path.name))
    for path in found:
        if not path.exists():
            raise FileNotFoundError(f"data={str(path)!r}: a link to what is not there")
    return [path for path in found if path.is_dir()]


def images_beside(root: Path) -> list[tuple[str, str]]:
    """Images in a folder of classes that are in none of these, with this as the reason to skip them."""
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir())
    return [(printable(path.name), "in no folder of a class") for path in files if not is_hidden(path.name)]


def find_images(sources: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    """The files that are meant, in order, each once.

    Args:
        sources: Files, folders (every image file in them, see `files_in`) and patterns such as `photos/*.jpg` of both,
            of which hidden ones are left out but where the pattern names them.

    Raises:
        FileNotFoundError: If a source does not exist or matches no file.
        ValueError: If one is an empty text.
    """
    found: dict[tuple[Path, str], Path] = {}
    for source in [sources] if isinstance(sources, (str, PathLike)) else sources:
        path = named_path(source, "images")
        named = set(path.parts)
        matches = [path]
        if not path.exists():
            matches = [match for match in _matches(path) if not any(map(is_hidden, set(match.parts) - named))]
        files = []
        for match in matches:
            if match.is_dir():
                files += images_in(match)[0]
            elif match.exists() or match.is_symlink():
                files.append(match)
        if not files:
            what = "holds no image" if path.is_dir() else "no such file or folder, and no file matches"
            raise FileNotFoundError(f"images={str(source)!r}: {what}")
        for file in files:
            found.setdefault((file.parent.resolve(), file.name), file)
    return list(found.values())


def _matches(pattern: Path) -> list[Path]:
    """Files and folders that a pattern means; `**` stands for `files_in`, as `glob` would run in loops of links."""
    parts = pattern.parts
    if "**" not in parts:
        return [Path(match) for match in sorted(glob.glob(str(pattern)))]  # noqa: PTH207
    first = parts.index("**")
    folders = [folder for folder in _matches(Path(*parts[:first])) if folder.is_dir()]
    files = [(file, file.relative_to(folder).parts) for folder in folders for file in files_in(folder)]
    return [file for file, names in files if _fits(names, parts[first:])]


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_fits(names[start:], pattern[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


class ImageError(Exception):
    """A file that cannot be used as an image; the message is the reason."""


def read_rgb(file: Path | IO[bytes]) -> Image.Image:
    """One image file as RGB, upright; of several frames the first.

    Raises:
        ImageError: If it is missing, corrupt or no image, or `as_rgb` refuses it.
    """
    suffix, reason = (file.suffix.lower(), why_no_file(file)) if isinstance(file, Path) else ("", "")
    if reason:
        raise ImageError(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow refuses what is twice as large
            with Image.open(file, formats=_FORMATS) as image:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                found = as_rgb(image)
            if image.format == "PNG":
                _check_sums(file)
            return found
    except ImageError:
        raise
    except UnidentifiedImageError:
        if suffix in (".tif", ".tiff"):
            raise ImageError("corrupt, or a kind of TIFF that is not known, such as three channels of floats") from None
        known = suffix in IMAGE_SUFFIXES
        raise ImageError(
            "corrupt" if known else f"not an image of a kind that is read: {', '.join(_FORMATS)}"
        ) from None
    except Exception as error:  # Pillow's readers raise whatever the bytes bring about
        raise ImageError(f"corrupt ({str(error) or type(error).__name__})") from None


def _check_sums(file: Path | IO[bytes]) -> None:
    """Refuse a PNG whose bytes are not those that were written: Pillow makes pixels of them without a look at the sums.

    Raises:
        OSError or SyntaxError: If one is wrong.
    """
    if not isinstance(file, Path):
        file.seek(0)
    with Image.open(file, formats=("PNG",)) as image:
        image.verify()


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture as 8-bit RGB: 12-bit and 16-bit ones scaled, transparent ones laid on white.

    Raises:
        ImageError: If the range of its values is not known (floats, signed and 32-bit integers), or Pillow knows no way
            to RGB.
    """
    if image.mode.startswith(("I", "F")):
        image = _scaled(image)
    try:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"of a kind that cannot become RGB ({error})") from None


def _scaled(image: Image.Image) -> Image.Image:
    """More than 8 bits a pixel as 8, which Pillow's own conversion would clip."""
    if image.mode.startswith("F"):
        raise ImageError("its pixels are floats, of which the range is not known; expected 8 or 16 bits")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # Pillow's mode of these with 16 bits
        raise ImageError(
            "its pixels are signed or 32-bit integers, of which the range is not known; expected 8 or 16 bits"
        )
    tags = getattr(image, "tag_v2", {})
    brightest = 2 ** tags.get(_BITS, (16,))[0] - 1
    values = np.clip(np.asarray(image, dtype=np.float64) / brightest, 0, 1)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        values = 1 - values
    return Image.fromarray((255 * values + 0.5).astype(np.uint8))
