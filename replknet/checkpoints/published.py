"""Published weights: where they are, what they are, and their verified download."""

import hashlib
import http.client
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.error import HTTPError
from urllib.parse import urlsplit

import torch
from torch.hub import download_url_to_file

from replknet.checkpoints.writing import clear_leftovers, scratch_folder

BASE_URL = "https://download.openmmlab.com/mmclassification/v0/replknet/"
_HALF = (0.5, 0.5, 0.5)
_CHUNK = 1 << 20


class DownloadError(ValueError):
    """Weights that could not be had, or are not the published ones; the message says where to put them by hand."""


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published checkpoint.

    Args:
        architecture: A key of `PRESETS`.
        file: Its name; ends in the start of its SHA-256.
        training_data: What it was trained on, in order.
        image_size: Side in pixels of the images that the accuracies belong to.
        top1: Accuracy on ImageNet-1K in percent, as mmpretrain reports it.
        top5: The same within five guesses.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        license: Of the code it was published with.
        source: Who published it, and where.
    """

    architecture: str
    file: str
    training_data: str
    image_size: int
    top1: float
    top5: float
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    license: str = "MIT"
    source: str = "Ding et al. 2022, github.com/DingXiaoH/RepLKNet-pytorch, as converted by mmpretrain"

    @property
    def sha256(self) -> str:
        """The first eight hexadecimal digits."""
        return self.file.removesuffix(".pth").rpartition("-")[2]

    @property
    def url(self) -> str:
        return BASE_URL + self.file

    @property
    def crop(self) -> float:
        """Part of the short side that the centre crop keeps: below 384 pixels 0.875, from there on all of a square."""
        return 0.875 if self.image_size < 384 else 1.0


PUBLISHED: Mapping[str, PublishedWeights] = MappingProxyType(
    {
        "replknet_31b.in1k_224": PublishedWeights(
            architecture="replknet_31b",
            file="replknet-31B_3rdparty_in1k_20221118-fd08e268.pth",
            training_data="ImageNet-1K",
            image_size=224,
            top1=83.48,
            top5=96.57,
        ),
        "replknet_31b.in1k_384": PublishedWeights(
            architecture="replknet_31b",
            file="replknet-31B_3rdparty_in1k-384px_20221118-03a170ce.pth",
            training_data="ImageNet-1K",
            image_size=384,
            top1=84.84,
            top5=97.34,
        ),
        "replknet_31b.in22k_ft_in1k_224": PublishedWeights(
            architecture="replknet_31b",
            file="replknet-31B_in21k-pre_3rdparty_in1k_20221118-54ed5c46.pth",
            training_data="ImageNet-22K, ImageNet-1K",
            image_size=224,
            top1=85.20,
            top5=97.56,
        ),
        "replknet_31b.in22k_ft_in1k_384": PublishedWeights(
            architecture="replknet_31b",
            file="replknet-31B_in21k-pre_3rdparty_in1k-384px_20221118-76c92b24.pth",
            training_data="ImageNet-22K, ImageNet-1K",
            image_size=384,
            top1=85.99,
            top5=97.75,
        ),
        "replknet_31l.in22k_ft_in1k_384": PublishedWeights(
            architecture="replknet_31l",
            file="replknet-31L_in21k-pre_3rdparty_in1k-384px_20221118-dc3fc07c.pth",
            training_data="ImageNet-22K, ImageNet-1K",
            image_size=384,
            top1=86.63,
            top5=98.00,
        ),
        "replknet_xl.meg73m_ft_in1k_320": PublishedWeights(
            architecture="replknet_xl",
            file="replknet-XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d.pth",
            training_data="MegData73M, ImageNet-1K",
            image_size=320,
            top1=87.57,
            top5=98.39,
            mean=_HALF,
            std=_HALF,
        ),
    }
)
"""Published checkpoints by "architecture.tag", each with its preprocessing.

References:
    Accuracies and file names: mmpretrain, configs/replknet. Preprocessing: the official repository.
"""


def published_name(name: str) -> str | None:
    """`name` where it is one of `PUBLISHED`; of an architecture alone its first checkpoint; else None."""
    if name in PUBLISHED:
        return name
    return next((full for full, weights in PUBLISHED.items() if weights.architecture == name), None)


def download_weights(name: str, *, url: str | None = None, progress: bool = True) -> Path:
    """The file of one of `PUBLISHED`, fetched once and verified each time.

    It is kept in `torch.hub.get_dir()/checkpoints` and appears there only after its SHA-256 was found right.

    Args:
        name: A key of `PUBLISHED`, or an architecture for its first checkpoint.
        url: Another address of the file, such as a mirror's.
        progress: Show a bar on the standard error stream, if that is a terminal, while it is fetched.

    Raises:
        ValueError: If there is no such name.
        DownloadError: If the file cannot be fetched or written, arrives cut or different, or differs where it is.
    """
    full = published_name(name)
    if full is None:
        raise ValueError(f"name={name!r}: no published weights; expected one of {', '.join(PUBLISHED)}")
    weights = PUBLISHED[full]
    address = url or weights.url
    target = Path(torch.hub.get_dir()) / "checkpoints" / weights.file
    if urlsplit(address).scheme not in ("http", "https", "ftp", "file"):
        raise DownloadError(f"url={url!r}: expected an address such as {weights.url}")
    by_hand = f"fetch {address} by hand and put it at {target}"
    with suppress(OSError):  # a folder that may only be read
        clear_leftovers(target.parent, of=target.name)
    if target.is_file():
        found = sha256_of(target)
        if not found.startswith(weights.sha256):
            raise DownloadError(
                f"{full}: {target} is cut or not the published file (its SHA-256 starts with "
                f"{found[: len(weights.sha256)]}, expected {weights.sha256}); remove it, or {by_hand}"
            )
        return target
    shown = progress and sys.stderr.isatty()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target) as folder:  # a killed download leaves its file beside its target
            download_url_to_file(address, str(folder / target.name), hash_prefix=weights.sha256, progress=shown)
            (folder / target.name).replace(target)
    except RuntimeError as error:  # torch's word for a wrong hash; a cut transfer ends in one, too
        raise DownloadError(
            f"{full}: {address} arrived cut or is not the published file ({error}); try again, or {by_hand}"
        ) from error
    except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise DownloadError(f"{full}: could not be fetched ({error}); {by_hand}") from error
    return target


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
