"""What a user types for a network: a name of its own before it, and names that differ where none is given."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import replknet
from analysis.runs.texts import few

NETWORK_FILE = "network.safetensors"
"""In the folder of a training, and of each cell of a study."""
_NO_NAME = {":", "/", os.sep}
"""Characters of paths and of names of libraries, which a name before "=" cannot have."""


def split_name(text: str, argument: str = "model") -> tuple[str, str]:
    """The two parts of "NAME=SPEC"; the name is empty where there is none.

    What comes before the first "=" is a name unless it has "/" or ":", or the whole is that of a file or folder.

    Args:
        text: What was typed.
        argument: For messages.

    Raises:
        ValueError: If a part is empty, the name cannot be printed, or the text could be meant in both ways.
    """
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or _NO_NAME & set(name):
        return "", text
    if any(map(os.path.exists, (text, text.rpartition(":")[0]))):  # a path that is too long is none
        if os.path.exists(rest):  # noqa: PTH110
            raise ValueError(
                f"{argument}={text!r}: may be the file of this name, or {rest!r} called {name!r}; expected "
                f"'./{text}' for the one, another name for the other"
            )
        return "", text
    if not name or not rest or not name.isprintable():
        raise ValueError(f"{argument}={text!r}: expected NAME=SPEC with a name before and a network after the '='")
    return name, rest


def distinct(names: Sequence[str], specs: Sequence[str], libraries: Iterable[str]) -> list[str]:
    """Names that differ, as far as the specs do: where several share one, each gets more of its path or library.

    Args:
        names: Of the networks.
        specs: What each was typed as; empty where the name is the user's own and stays.
        libraries: Prefixes of specs that belong to a name.
    """
    shared = {name for name, number in Counter(names).items() if number > 1}
    found = list(names)
    for name in shared:
        own = [index for index, other in enumerate(names) if other == name and specs[index]]
        for index in own:
            prefix, _, _ = specs[index].partition(":")
            if prefix in libraries:
                found[index] = f"{prefix}:{name}"
        paths = [index for index in own if found[index] == name]
        parts = {index: _parts(specs[index]) for index in paths}
        for length in range(1, 1 + max(map(len, parts.values()), default=0)):
            longer = {index: "/".join(own_parts[-length:]) for index, own_parts in parts.items()}
            if len(set(longer.values())) == len(paths) and name not in longer.values():
                break
        else:
            longer = {index: specs[index] for index in paths}
        for index in paths:
            found[index] = longer[index]
    return found


def _parts(spec: str) -> tuple[str, ...]:
    """Of a path, without what every such path has."""
    path = Path(spec)
    if path.name == NETWORK_FILE:
        return path.parent.parts
    return path.with_suffix("").parts if path.is_file() else path.parts


def network_in(folder: Path) -> Path:
    """The file of the network that was trained in a folder.

    Raises:
        ValueError: If there is none; where there are several, in a study's folder, with their names.
    """
    if (folder / NETWORK_FILE).is_file():
        return folder / NETWORK_FILE
    cells = sorted(path.parent for path in folder.glob(f"cells/*/{NETWORK_FILE}"))
    held = f"it is a study; its networks are {few(list(map(str, cells)))}" if cells else "no network was trained there"
    raise ValueError(f"model={str(folder)!r}: expected a folder with {NETWORK_FILE}; {held}")


def near_names(spec: str) -> str:
    """Networks whose names are like one that is unknown, as words in brackets; empty if there are none."""
    import timm
    import torchvision

    if not spec.isprintable() or not 0 < len(spec) < 100:
        return ""
    bare = spec.rpartition(":")[2]
    libraries = {"timm": timm.is_model(bare), "torchvision": bare in torchvision.models.list_models()}
    if spec.partition(".")[0] in replknet.PRESETS:  # which timm knows, too, where they are registered
        libraries = {}
    found = [f"{library}:{bare}" for library, known in libraries.items() if known]
    found = found or difflib.get_close_matches(spec, [*replknet.PRESETS, *replknet.PUBLISHED], n=2, cutoff=0.75)
    if not found:
        known = [*timm.list_models(), *torchvision.models.list_models()]
        near = difflib.get_close_matches(bare, known, n=2, cutoff=0.8)
        found = [f"{'timm' if timm.is_model(name) else 'torchvision'}:{name}" for name in near]
    return f" (did you mean {' or '.join(found)}?)" if found else ""
