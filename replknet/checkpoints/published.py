"""The verified download of published weights."""

import hashlib
import http.client
import re
import sys
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import torch
from torch.hub import download_url_to_file

from replknet.checkpoints.reading import CheckpointError, load_state_dict
from replknet.checkpoints.writing import clear_leftovers, scratch_folder
from replknet.networks import PUBLISHED

_CHUNK = 1 << 20
_HEXADECIMAL = re.compile("[0-9a-f]{8,64}")


class DownloadError(ValueError):
    """Weights that could not be had, or are not the published ones; the message says where to put them by hand."""


def published_name(name: str) -> str | None:
    """`name` where it is one of `PUBLISHED`; of an architecture alone its first checkpoint; else None."""
    if name in PUBLISHED:
        return name
    return next((full for full, weights in PUBLISHED.items() if weights.architecture == name), None)


def download_weights(name: str, *, url: str | None = None, sha256: str | None = None, progress: bool = True) -> Path:
    """The file of one of `PUBLISHED`, fetched once and verified each time.

    It is kept in `torch.hub.get_dir()/checkpoints` and appears there only after its SHA-256 was found right, where one
    is published.

    Args:
        name: A key of `PUBLISHED`, or an architecture for its first checkpoint.
        url: Another address of the file, such as a mirror's.
        sha256: What its SHA-256 must be, or begin with, in hexadecimal; by default what is published. Where nothing is,
            only that the file can be read is found out; `sha256_of` says what to give here the next time.
        progress: Show a bar on the standard error stream, if that is a terminal, while it is fetched.

    Raises:
        ValueError: If there is no such name, or `sha256` is none.
        DownloadError: If the file cannot be fetched or written, arrives cut or different, or differs where it is.
    """
    full = published_name(name)
    if full is None:
        raise ValueError(f"name={name!r}: no published weights; expected one of {', '.join(PUBLISHED)}")
    weights = PUBLISHED[full]
    address = url or weights.url
    expected = weights.sha256 if sha256 is None else sha256.lower()
    if sha256 is not None and (not expected.startswith(weights.sha256) or not _HEXADECIMAL.fullmatch(expected)):
        what = f", which begins with {weights.sha256}" if weights.sha256 else ""
        raise ValueError(f"sha256={sha256!r}: expected 8 to 64 hexadecimal digits of the file's hash{what}")
    target = Path(torch.hub.get_dir()) / "checkpoints" / weights.file
    if urlsplit(address).scheme not in ("http", "https", "ftp", "file"):
        raise DownloadError(f"url={url!r}: expected an address such as {weights.url}")
    by_hand = f"fetch {address} by hand and put it at {target}"
    with suppress(OSError):  # a folder that may only be read
        clear_leftovers(target.parent, of=target.name)
    if target.is_file():
        found = sha256_of(target)
        if not found.startswith(expected):
            raise DownloadError(
                f"{full}: {target} is cut or not the published file (its SHA-256 starts with "
                f"{found[: len(expected)]}, expected {expected}); remove it, or {by_hand}"
            )
        return target
    if weights.page and url is None:
        raise DownloadError(f"{full}: is offered on a page for people; {by_hand}")
    shown = progress and sys.stderr.isatty()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target) as folder:  # a killed download leaves its file beside its target
            download_url_to_file(address, str(folder / target.name), hash_prefix=expected, progress=shown)
            if not expected:
                load_state_dict(folder / target.name)  # a cut file cannot be read
            (folder / target.name).replace(target)
    except (RuntimeError, CheckpointError) as error:  # torch's word for a wrong hash; a cut transfer ends in one, too
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
