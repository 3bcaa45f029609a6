"""What commands write for a methods section."""

from collections.abc import Iterable, Mapping, Sequence

from analysis.models.loaded import LoadedModel
from analysis.models.specs import split_name
from analysis.runs.folder import RunFolder
from analysis.runs.methods import Methods, networks_of, software, write_methods


def write_for_paper(
    methods: Methods,
    folder: RunFolder,
    environments: Iterable[Mapping[str, str]],
    specs: Sequence[str] = (),
    loaded: Sequence[LoadedModel] = (),
) -> None:
    """Write `methods.txt` and `references.bib`, with what computed and where the networks are from.

    Args:
        methods: Of what was measured.
        folder: Gets the files.
        environments: Recorded with the results.
        specs: The networks as they were typed.
        loaded: The same, loaded.
    """
    own = networks_of([split_name(spec)[1] for spec in specs], [type(item.module).__name__ for item in loaded])
    write_methods(methods + software(environments) + Methods((), own), folder.replace)
