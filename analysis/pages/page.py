"""A page: from a template, with its data and scripts inlined, so that it asks nothing of any network."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from analysis.runs.folder import describe_call
from analysis.runs.writing import replacing

PAGE = "index.html"
"""Beside the files of a run."""
LINKED = (".csv", ".json", ".pdf", ".txt", ".bib")
"""Endings of files that pages link."""
_HEADING = re.compile(r"<h2>(.*?)</h2>", re.DOTALL)
_CONTENTS = "<!-- contents -->"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page; its columns can be sorted, and chosen where there are many.

    Args:
        columns: Headings.
        rows: Cells, as they are shown.
        note: Above it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page.

    Args:
        title: Its heading, in the list of contents.
        text: Below it.
        explorer: Identifier of an element that a script fills.
        maps: Groups of receptive fields.
        figures: SVG and caption of each; see `shown_drawings`.
        columns: Figures beside each other.
        tables: Below them.
    """

    title: str
    text: str = ""
    explorer: str = ""
    maps: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[Mapping[str, Any]] = ()
    columns: bool = True
    tables: Sequence[Table] = ()


def rendered(
    template: str,
    *,
    title: str,
    command: str,
    files: Iterable[str] = (),
    environment: Iterable[tuple[str, str]] = (),
    data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
    package: str = "analysis.pages",
    **context: Any,
) -> str:
    """A page from a template; every value that it names has to be there, and is escaped.

    Args:
        template: Its name.
        title: Of the page.
        command: What makes the page again.
        files: That the page links, relative to its folder.
        environment: What measured: names and values; of versions those that are not of what makes the page, too.
        data: For the scripts, by name.
        scripts: Names in `scripts/`; `tables` comes with every page.
        package: Whose templates come before the common ones.
        context: What else the template names.
    """
    loaders = [jinja2.PackageLoader(name) for name in dict.fromkeys((package, "analysis.pages"))]
    templates = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters["link"] = _link
    script = "\n".join(_source(f"{name}.js") for name in ("start", "tables", *scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    call = describe_call(command)
    versions, measured = call["versions"], []
    for name, value in environment:
        if name not in versions:
            measured.append((name, value))
        elif value.partition("+")[0] == versions[name].partition("+")[0]:
            versions[name] = value  # the package itself tells its build, too
        else:
            measured.append((f"{name} when measured", value))
    page = templates.get_template(template).render(
        title=title,
        call=call,
        environment=measured,
        files=sorted(files),
        style=Markup(_source("page.css")),
        data=script_json(data or {}),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        **context,
    )
    return _with_contents(page)


def write_page(path: Path, page: str) -> Path:
    """Write a page, whole or not at all; returns its path."""
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def files_below(folder: Path, *suffixes: str) -> list[str]:
    """Files with these endings in a folder and those below it, relative to it; hidden ones are of unfinished work."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix in suffixes)
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def script_json(content: Any) -> Markup:
    """JSON that no text in it can end; numbers that are not finite become null."""
    text = json.dumps(_finite(content), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def doubles(values: Any) -> str:
    """Numbers as a script reads them bit for bit: base64 of float64, little-endian."""
    return base64.b64encode(np.asarray(values, "<f8").tobytes()).decode()


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _link(path: str) -> str:
    """Of a file beside the page; never of anything else, whatever its name is."""
    return "./" + quote(path)


def _source(name: str) -> str:
    return (resources.files("analysis.pages") / "scripts" / name).read_text(encoding="utf-8")


def _with_contents(page: str) -> str:
    """The page with its headings numbered, and a list of them."""
    titles = _HEADING.findall(page)
    numbers = iter(range(1, len(titles) + 1))
    page = _HEADING.sub(lambda found: f'<h2 id="part-{next(numbers)}">{found[1]}</h2>', page)
    entries = "\n".join(f'<li><a href="#part-{number}">{title}</a></li>' for number, title in enumerate(titles, 1))
    return page.replace(_CONTENTS, f'<nav aria-label="Contents"><ol>\n{entries}\n</ol></nav>', 1)
