"""Networks that answer stimuli, or have answered them in a run before."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from analysis.cli.console import progress_bar
from analysis.images.stimuli import StimulusSet
from analysis.models.loaded import LoadedModel
from analysis.runs.folder import RunFolder
from analysis.runs.identity import NetworkIdentity, identify
from analysis.runs.processes import by_first
from analysis.runs.results import ResultError
from analysis.shape_bias.categories import LabelMapping
from analysis.shape_bias.measuring import check_model, evaluate_shape_bias, fingerprint_of, preprocessing_of
from analysis.shape_bias.result import ShapeBiasOptions, ShapeBiasResult


@dataclass(frozen=True)
class AnsweringNetwork:
    """A network that can answer the stimuli, or has answered them already."""

    loaded: LoadedModel
    folder: str
    stimuli: StimulusSet
    mapping: LabelMapping
    identity: NetworkIdentity
    fingerprint: str
    saved: ShapeBiasResult | None
    """The logits that it would give again."""

    @classmethod
    def known(
        cls,
        loaded: LoadedModel,
        folder: str,
        chosen: StimulusSet,
        whole: StimulusSet,
        mapping: LabelMapping,
        changes: dict[str, Any],
        out: Path,
    ) -> Self:
        preprocessing = preprocessing_of(loaded, chosen.single_cues, **changes)
        identity = identify(loaded.module)
        fingerprint = fingerprint_of(identity, preprocessing, chosen)
        try:
            saved: ShapeBiasResult | None = ShapeBiasResult.load(out / folder)
        except (OSError, ResultError):
            saved = None
        if saved is not None and saved.fingerprint in (fingerprint, fingerprint_of(identity, preprocessing, whole)):
            among = set(chosen.names)
            saved = saved.restricted([name for name in saved.stimuli if name in among])
            saved.with_mapping(mapping)
        else:
            saved = None
            check_model(loaded, chosen, mapping, preprocessing)
        return cls(loaded, folder, chosen, mapping, identity, fingerprint, saved)


def answers_of(
    network: AnsweringNetwork,
    options: ShapeBiasOptions,
    wanted: Sequence[str] | None,
    changes: dict[str, Any],
    batch_size: int,
    workers: int,
    folder: RunFolder,
    overwrite: bool,
) -> ShapeBiasResult:
    """The answers of a network: those that are saved, decided anew, or given now and saved.

    Args:
        network: To answer.
        options: How its outputs become answers.
        wanted: Categories that it chooses among; None for all.
        changes: What replaces its own preparation of images, see `evaluate_shape_bias`.
        batch_size: Images at once.
        workers: Processes that load them.
        folder: Gets them.
        overwrite: Replace a result there that cannot be read.
    """
    known, target, name = network.saved, folder.path / network.folder, network.loaded.name
    if known is not None:
        renewed = _among(known.with_mapping(network.mapping).with_options(**asdict(options)), wanted)
        changed = (renewed.options, renewed.mapping) != (known.options, known.mapping)
        if changed and known.fingerprint == network.fingerprint:  # else these are some of the saved ones
            by_first(lambda: renewed.save(folder.add(network.folder), overwrite=True))
        return renewed
    if (target / "result.json").is_file() and not overwrite:
        try:
            ShapeBiasResult.load(target)
        except ResultError as error:
            raise ResultError(f"{error}; overwrite=True makes it anew") from error
    with progress_bar(name) as progress, _clear_errors_of(name):
        result = evaluate_shape_bias(
            network.loaded,
            network.stimuli,
            mapping=network.mapping,
            options=options,
            batch_size=batch_size,
            num_workers=workers,
            identity=network.identity,
            progress=progress,
            partial=by_first(lambda: folder.add(f"{network.folder}.partial.npz")),
            **changes,
        )
    result = _among(result, wanted)
    by_first(lambda: result.save(folder.add(network.folder), overwrite=True))
    return result


def _among(result: ShapeBiasResult, wanted: Sequence[str] | None) -> ShapeBiasResult:
    """Decided among the categories that were asked for, as it is then saved, too; its logits are of all classes."""
    return result if wanted is None else result.with_categories(wanted)


@contextmanager
def _clear_errors_of(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:  # a user's own code
        raise ValueError(f"model: {name} failed with {type(error).__name__}: {error}") from error
