"""What commands write for a methods section."""

from collections.abc import Iterable, Mapping, Sequence

from analysis.models.loaded import DEFAULT_SIZE, LoadedModel
from analysis.models.specs import split_name
from analysis.models.untrained import UNTRAINED
from analysis.runs.folder import RunFolder
from analysis.runs.methods import Methods, networks_of, software, write_methods


def write_for_paper(
    methods: Methods,
    folder: RunFolder,
    environments: Iterable[Mapping[str, str]],
    specs: Sequence[str] = (),
    loaded: Sequence[LoadedModel] = (),
    *,
    prepared: bool = False,
    size: int | None = None,
) -> None:
    """Write `methods.txt` and `references.bib`, with what computed and where the networks are from.

    Args:
        methods: Of what was measured.
        folder: Gets the files.
        environments: Recorded with the results.
        specs: The networks as they were typed.
        loaded: The same, loaded.
        prepared: Tell for which size each prepared its images.
        size: Of the option that replaces the networks' own.
    """
    own = networks_of([split_name(spec)[1] for spec in specs], [type(item.module).__name__ for item in loaded])
    told = Methods(_described(loaded, prepared, size), own)
    write_methods(methods + told + software(environments), folder.replace)


def _described(loaded: Sequence[LoadedModel], prepared: bool, size: int | None) -> tuple[str, ...]:
    """A paragraph on what the networks are."""
    texts = []
    for item in loaded:
        if item.name.endswith(UNTRAINED):
            continue
        told = [item.source] if item.source not in ("", item.name) else []
        told += [f"images prepared at {size or item.input_size or DEFAULT_SIZE} pixels"] if prepared else []
        where = f" ({', '.join(told)})" if told else ""
        number = sum(parameter.numel() for parameter in item.module.parameters())
        texts.append(f"{item.name} is a {type(item.module).__name__} of {number:,} parameters{where}.")
    return (" ".join(texts),) if texts else ()
