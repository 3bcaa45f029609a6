"""Images at addresses of the web, fetched into memory."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import requests
from PIL import Image

from analysis.images.files import ImageError, read_rgb
from analysis.runs.texts import printable

_SCHEMES = ("http://", "https://")
_MOST_BYTES = 64 * 1024**2
_SECONDS_TO_CONNECT, _SECONDS_OF_SILENCE, _MOST_SECONDS = 10, 20, 120
_CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class WebImage:
    """A picture and where it is from."""

    address: str
    image: Image.Image

    @classmethod
    def fetch(cls, address: str) -> "WebImage":
        """The picture at an address, as RGB.

        Raises:
            ValueError: If it cannot be had in time, is too large or no image.
        """
        where = f"images={printable(address)!r}"
        try:
            content = _content(address)
        except (requests.RequestException, ValueError) as error:
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            raise ValueError(f"{where}: cannot be fetched ({reason})") from error
        try:
            return cls(printable(address), read_rgb(io.BytesIO(content)))
        except ImageError as error:
            raise ValueError(f"{where}: {error}") from error


def is_address(item: Any) -> bool:
    """Whether a text is an address of the web."""
    return isinstance(item, str) and item.lower().startswith(_SCHEMES)


def fetched(images: Sequence[str]) -> list[str | WebImage]:
    """Files, folders and patterns as they are, pictures in place of addresses: for several networks at once."""
    return [WebImage.fetch(item) if is_address(item) else item for item in images]


def _content(address: str) -> bytes:
    """What is there, as far as it is not too large or slow."""
    end = time.monotonic() + _MOST_SECONDS
    found = io.BytesIO()
    with requests.get(address, stream=True, timeout=(_SECONDS_TO_CONNECT, _SECONDS_OF_SILENCE)) as answer:
        if not answer.ok:
            raise ValueError(f"the server answers {answer.status_code} {answer.reason}")
        length = answer.headers.get("Content-Length", "")
        for chunk in answer.iter_content(_CHUNK):
            found.write(chunk)
            if found.tell() > _MOST_BYTES:
                raise ValueError(f"larger than {_MOST_BYTES // 1024**2} MiB")
            if time.monotonic() > end:
                raise ValueError(f"not complete after {_MOST_SECONDS} seconds")
        if length.isdecimal() and "Content-Encoding" not in answer.headers and found.tell() < int(length):
            raise ValueError(f"cut after {found.tell()} of {length} bytes")
    return found.getvalue()
