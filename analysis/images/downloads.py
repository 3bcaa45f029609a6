"""Published stimuli, fetched from their own repository and verified."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from os import PathLike
from pathlib import Path

import pooch
import requests

from analysis.images.stimuli import published_sets
from analysis.runs.settings import named_path
from analysis.runs.writing import clear_leftovers, scratch_folder

_CONNECTIONS = 8
_SCRATCH = "downloads"
_TRIES = 3
_TIMEOUT = 30.0
"""Seconds without an answer."""


class DownloadError(ValueError):
    """A file that could not be had, or is not the published one; the message names it."""


def download_stimuli(
    name: str,
    directory: str | PathLike[str],
    *,
    url: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Fetch a published set of stimuli, each file verified by its SHA-256 before it appears under its name.

    Files that are there and right are kept, so that a second call completes an interrupted one.

    Args:
        name: Of the set: "cue-conflict" or another of `published_sets`.
        directory: Gets the files and folders of the set.
        url: Another address of them.
        progress: Called with the number of files that are there and of all.

    Returns:
        The number of files fetched by this call.

    Raises:
        DownloadError: If a file that is there already differs from the published one (it is not touched), or a file
            cannot be fetched or arrives different; everything fetched before stays.

    References:
        The set's own `citation`.
    """
    if name not in published_sets():
        raise DownloadError(f"name={name!r}: expected one of {', '.join(published_sets())}")
    published = published_sets()[name]
    url = url or published.url
    root = named_path(directory, "directory")
    if root.exists() and not root.is_dir():
        raise DownloadError(f"directory={str(root)!r}: exists and is not a folder")
    registry = dict(published.files)
    wanted = []
    for path, digest in registry.items():
        if not (root / path).is_file():
            wanted.append(path)
        elif pooch.file_hash(str(root / path)) != digest:
            raise DownloadError(f"{root / path}: differs from the published file; remove it, or choose another folder")
    done = len(registry) - len(wanted)
    if progress is not None:
        progress(done, len(registry))
    for folder in {Path(path).parent for path in wanted}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel(logging.ERROR)  # it would print a line for every file
    clear_leftovers(root, of=_SCRATCH)
    with scratch_folder(root / _SCRATCH) as scratch, ThreadPoolExecutor(_CONNECTIONS) as pool:
        source = pooch.create(scratch, base_url=url.rstrip("/") + "/", registry=registry, retry_if_failed=_TRIES - 1)
        for folder in {Path(path).parent for path in wanted}:
            (scratch / folder).mkdir(parents=True, exist_ok=True)  # pooch's threads would race for it

        def fetch(path: str) -> None:
            source.fetch(path, downloader=_fetch)
            (scratch / path).replace(root / path)

        waiting = {pool.submit(fetch, path): path for path in wanted}
        try:
            for future in as_completed(waiting):
                try:
                    future.result()
                except (requests.RequestException, OSError, ValueError) as error:
                    reason = " ".join(str(error).split())[:200]
                    raise DownloadError(
                        f"{url.rstrip('/')}/{waiting[future]}: {reason}; {done} of {len(registry)} files are there, "
                        "the same command goes on"
                    ) from error
                done += 1
                if progress is not None:
                    progress(done, len(registry))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return len(wanted)


def _fetch(url: str, output_file: str, _: pooch.Pooch) -> None:
    """One file. Pooch's own downloader leaves the connection of a failed request open."""
    with requests.get(url, stream=True, timeout=_TIMEOUT) as response, Path(output_file).open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_content(1 << 16):
            file.write(chunk)
