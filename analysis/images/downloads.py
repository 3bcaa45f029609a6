"""Published stimuli, fetched from their own repository and verified."""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import pooch
import requests

from analysis.images.files import IMAGE_SUFFIXES
from analysis.images.stimuli import PublishedSet, published_sets
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
    """Fetch a published set of stimuli, each file verified before it appears under its name.

    It is verified by the SHA-256 that this library records, or, in a set that a commit lists, by git's id of its
    content, which GitHub tells over HTTPS at each call. Files that are there and right are kept, so that a second call
    completes an interrupted one.

    Args:
        name: Of the set: "cue-conflict" or another of `published_sets`.
        directory: Gets the files and folders of the set.
        url: Another address of them; what a commit lists is asked of GitHub nevertheless.
        progress: Called with the number of files that are there and of all.

    Returns:
        The number of files fetched by this call.

    Raises:
        DownloadError: If a file that is there already differs from the published one (it is not touched), a file
            cannot be fetched or arrives different, or the list of them cannot be had; everything fetched before stays.

    References:
        The set's own `citation`.
    """
    if name not in published_sets():
        raise DownloadError(f"name={name!r}: expected one of {', '.join(published_sets())}")
    published = published_sets()[name]
    root = named_path(directory, "directory")
    if root.exists() and not root.is_dir():
        raise DownloadError(f"directory={str(root)!r}: exists and is not a folder")
    registry, commit = (published.files, "") if published.files else _listed(published)
    url = url or published.url.format(commit=commit)
    wanted = []
    for path, digest in registry.items():
        if not (root / path).is_file():
            wanted.append(path)
        elif not _has_digest((root / path).read_bytes(), digest):
            raise DownloadError(f"{root / path}: differs from the published file; remove it, or choose another folder")
    done = len(registry) - len(wanted)
    if progress is not None:
        progress(done, len(registry))
    for folder in {Path(path).parent for path in wanted}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel(logging.ERROR)  # it would print a line for every file
    clear_leftovers(root, of=_SCRATCH)
    with scratch_folder(root / _SCRATCH) as scratch, ThreadPoolExecutor(_CONNECTIONS) as pool:
        names = dict.fromkeys(registry)  # without hashes: pooch knows none of git's
        source = pooch.create(scratch, base_url=url.rstrip("/") + "/", registry=names, retry_if_failed=_TRIES - 1)
        for folder in {Path(path).parent for path in wanted}:
            (scratch / folder).mkdir(parents=True, exist_ok=True)  # pooch's threads would race for it

        def fetch(path: str) -> None:
            source.fetch(path, downloader=lambda url, file, _: _fetch(url, file, registry[path]))
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


def _fetch(url: str, output_file: str, digest: str) -> None:
    """One file. Pooch's own downloader leaves the connection of a failed request open."""
    with requests.get(url, stream=True, timeout=_TIMEOUT) as response, Path(output_file).open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_content(1 << 16):
            file.write(chunk)
    if not _has_digest(Path(output_file).read_bytes(), digest):
        raise ValueError("arrived different from the published file")


def _has_digest(content: bytes, digest: str) -> bool:
    """Whether it has this SHA-256, or this id of a blob in git (40 digits)."""
    if len(digest) == 40:
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == digest
    return hashlib.sha256(content).hexdigest() == digest


def _listed(published: PublishedSet) -> tuple[Mapping[str, str], str]:
    """Path and git's id of the images of single cues in a commit, and the whole id of that commit.

    References:
        GitHub's REST API, "Get a commit" and "Get a tree"; the Git book, section 10.2 (ids of blobs).
    """
    try:
        commit = str(_json(f"{published.repository}/commits/{published.commit}")["sha"])
        tree = _json(f"{published.repository}/git/trees/{commit}?recursive=1")
        blobs = {str(entry["path"]): str(entry["sha"]) for entry in tree["tree"] if entry["type"] == "blob"}
        usable = tree["truncated"] is False and re.fullmatch(rf"{published.commit}[0-9a-f]*", commit) is not None
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DownloadError(f"{published.repository}: the list of the files cannot be had ({reason})") from error
    found: dict[str, str] = {}
    for folder in published.class_folders:
        start = f"{published.folder}{folder}/"
        own = {path.removeprefix(published.folder): digest for path, digest in blobs.items() if path.startswith(start)}
        found |= {path: digest for path, digest in own.items() if _is_image_of(folder, path)}
        usable = usable and bool(own)
    if not usable or not all(re.fullmatch("[0-9a-f]{40}", digest) for digest in found.values()):
        raise DownloadError(
            f"{published.repository}: expected a whole list of the files of commit {published.commit}, found another"
        )
    return found, commit


def _is_image_of(folder: str, path: str) -> bool:
    pure = PurePosixPath(path)
    return str(pure.parent) == folder and pure.suffix.lower() in IMAGE_SUFFIXES


def _json(url: str) -> Any:
    with requests.get(url, timeout=_TIMEOUT, headers={"Accept": "application/vnd.github+json"}) as response:
        response.raise_for_status()
        return response.json()
