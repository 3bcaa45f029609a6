from pathlib import Path

import numpy as np
import pytest

from analysis import error_consistency, mean_consistency, read_observers, read_responses
from tests.analysis.shape_bias.observers import crossed, observer

NAMES = [name for name, _ in crossed(2, 2)]


def test_by_hand() -> None:
    network = observer(list(zip(NAMES, ("cat", "cat", "dog", "dog"), strict=True)), name="network")
    same = observer(list(zip(NAMES, ("cat", "cat", "dog", "dog"), strict=True)), name="same")
    other = observer(list(zip(NAMES, ("cat", "dog", "cat", "dog"), strict=True)), name="other")
    assert mean_consistency(network, [same]).kappa == 1.0
    found = mean_consistency(network, [same, other])  # other: observed 1/2, expected 1/2
    assert (found.kappa, found.num_people, found.num_images) == (0.5, 2, 4)
    assert np.isnan(mean_consistency(network, [same]).low)


def test_somebody_who_is_always_right_does_not_count() -> None:
    network, perfect, same = (
        observer([(name, answer) for name, answer in zip(NAMES, answers, strict=True)], name=name)
        for name, answers in (
            ("network", ("cat",) * 4),
            ("perfect", ("cat",) * 4),
            ("same", ("cat", "cat", "cat", "dog")),
        )
    )
    assert np.isnan(mean_consistency(network, [perfect]).kappa)
    assert mean_consistency(network, [perfect, same]).kappa == 0.0


def test_published_value_and_its_parts(shared: Path) -> None:
    """ResNet-50 with the ten people: 0.0674 (Geirhos et al. 2020)."""
    people = read_observers(shared / "data" / "cue-conflict-human")
    (path,) = (shared / "data" / "cue-conflict-models").glob("*resnet50_session-1.csv")
    network = read_responses(path)
    found = mean_consistency(network, people)
    assert found.kappa == pytest.approx(0.0674, abs=5e-5)
    assert found.kappa == pytest.approx(
        np.mean([error_consistency(network, person, num_resamples=1).kappa for person in people]), abs=1e-12
    )
    assert found.low < found.kappa < found.high
    by_image = mean_consistency(network, people, cluster="image")
    assert found.high - found.low > by_image.high - by_image.low  # shared exemplars are not independent images
    with pytest.raises(ValueError, match="people: expected at least one"):
        mean_consistency(network, [])
