from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from analysis import LabelMapping, ShapeBiasResult, load_stimuli
from analysis.images.synthetic.drawing import SyntheticOptions, _coverage, draw_image
from analysis.images.synthetic.outlines import CLASSES
from analysis.images.synthetic.sets import SyntheticImages, save_stimuli, stimulus_set
from analysis.images.synthetic.textures import TEXTURES
from analysis.shape_bias.categories import MAPPING

SEED = 11


def residual(pixels: NDArray[np.uint8], shape: str, texture: str, cue: str, index: int) -> float:
    """What is left of an image after one cue of a candidate class, drawn alone, is taken away."""
    alone = draw_image(
        shape,
        texture,
        shape_strength=float(cue == "shape"),
        texture_strength=float(cue == "texture"),
        seed=SEED,
        index=index,
    )
    return float(np.square(pixels.astype(float) - alone).mean())


def observer(responses: list[str], images: SyntheticImages) -> ShapeBiasResult:
    cues = [images.cues(index) for index in range(len(images))]
    return ShapeBiasResult(
        observer="observer",
        stimuli=tuple(f"{index}.png" for index in range(len(images))),
        shapes=tuple(CLASSES[shape] for shape, _ in cues),
        textures=tuple(CLASSES[texture] for _, texture in cues),
        shape_exemplars=tuple(f"{index}" for index in range(len(images))),
        texture_exemplars=tuple(f"{index}" for index in range(len(images))),
        responses=tuple(responses),
        categories=CLASSES,
    )


def test_observers_that_see_one_cue_in_the_pixels_have_bias_1_and_0() -> None:
    images = SyntheticImages(kind="conflict", num_images=132, seed=SEED)
    answers: dict[str, list[str]] = {"shape": [], "texture": []}
    for index in range(len(images)):
        pixels, _ = images[index]
        for cue, given_answers in answers.items():
            left = [residual(pixels, name, name, cue, index) for name in CLASSES]
            given_answers.append(CLASSES[int(np.argmin(left))])
    by_shape, by_texture = (observer(answers[cue], images) for cue in ("shape", "texture"))
    assert (by_shape.num_shape, by_shape.num_texture, by_shape.num_neither) == (132, 0, 0)
    assert (by_texture.num_shape, by_texture.num_texture, by_texture.num_neither) == (0, 132, 0)
    assert (by_shape.shape_bias, by_texture.shape_bias) == (1.0, 0.0)


def test_a_coin_between_the_cues_has_bias_one_half() -> None:
    images = SyntheticImages(kind="conflict", num_images=2640, seed=SEED)
    heads = np.random.default_rng(0).random(len(images)) < 0.5
    responses = [CLASSES[images.cues(i)[0 if head else 1]] for i, head in enumerate(heads)]
    result = observer(responses, images)
    low, high = result.confidence_interval("image", num_resamples=500)
    assert low < 0.5 < high
    assert high - low < 0.05
    assert result.coverage == 1


@pytest.mark.parametrize("name", CLASSES)
def test_an_absent_cue_leaves_no_trace(name: str) -> None:
    for index in range(3):
        flat = [
            draw_image(shape, name, shape_strength=0, texture_strength=1, seed=SEED, index=index)
            for shape in ("disc", "star")
        ]
        assert np.array_equal(flat[0], flat[1])
        plain = [
            draw_image(name, texture, shape_strength=1, texture_strength=0, seed=SEED, index=index)
            for texture in ("disc", "star")
        ]
        assert np.array_equal(plain[0], plain[1])


def test_textures_share_mean_and_contrast() -> None:
    for index in range(4):
        without = draw_image("disc", "disc", shape_strength=0, texture_strength=0, seed=SEED, index=index)
        contrasts = []
        for name in CLASSES:
            pixels = draw_image("disc", name, shape_strength=0, texture_strength=1, seed=SEED, index=index)
            change = pixels.astype(float) - without
            assert abs(change.mean()) < 0.3  # grey levels
            contrasts.append(change.std())
        assert max(contrasts) < 1.03 * min(contrasts)


def test_textures_are_told_apart_by_local_statistics() -> None:
    """A nearest-mean classifier of a few moments and of the radial power spectrum, no network."""
    images = SyntheticImages(kind="texture-only", num_images=360, seed=SEED)
    features, labels = [], []
    radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None]) * 64
    bands = np.digitize(radius, [2, 3.5, 5, 6.5, 8, 10, 12, 14, 17, 21, 26])
    for pixels, label in (images[index] for index in range(len(images))):
        grey = pixels.mean(2)
        grey = (grey - grey.mean()) / grey.std()
        power = np.abs(np.fft.fft2(grey)) ** 2
        spectrum = np.log([power[bands == band].mean() for band in range(12)])
        slope = np.abs(np.diff(grey))
        features.append([*spectrum, 2 * stats.skew(grey.ravel()), stats.kurtosis(grey.ravel()), 2 * slope.mean()])
        labels.append(label)
    table, classes = np.array(features), np.array(labels)
    table /= table[:180].std(0)
    means = np.array([table[:180][classes[:180] == label].mean(0) for label in range(12)])
    found = np.square(table[180:, None] - means).sum(2).argmin(1)
    assert (found == classes[180:]).mean() > 0.8
    assert len({texture for texture, _, _ in TEXTURES.values()}) == len(CLASSES)
    fine = [period for _, period, _ in TEXTURES.values() if period < 7.5]
    assert 3 <= len(fine) <= 9


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("disc", np.pi * 0.85**2),
        ("ring", np.pi * (0.96**2 - 0.48**2)),
        ("square", 2 * 0.98**2),
        ("triangle", 0.75 * np.sqrt(3) * 0.98**2),
        ("cross", 0.6 * 0.6 + 4 * 0.6 * 0.62),
        ("star", 5 * 0.98 * 0.42 * np.sin(np.pi / 5)),
    ],
)
def test_outlines_cover_their_area(name: str, area: float) -> None:
    axis = np.arange(96, dtype=np.float32)
    x, y = axis[None, :] - np.float32(47.3), axis[:, None] - np.float32(48.1)
    covered = _coverage(name, np.broadcast_to(x, (96, 96)), np.broadcast_to(y, (96, 96)), 36.0, 0.4)
    assert covered.sum() == pytest.approx(area * 36**2, rel=0.01)
    assert 0 < np.mean((covered > 0) & (covered < 1)) < 0.1  # a soft border, one pixel wide


def test_texture_in_the_figure_only() -> None:
    options = SyntheticOptions(texture_region="figure")
    common = {"shape_strength": 1.0, "seed": SEED, "index": 0, "options": options}
    with_texture = draw_image("disc", "drop", texture_strength=1, **common).astype(int)  # type: ignore[arg-type]
    without = draw_image("disc", "drop", texture_strength=0, **common).astype(int)  # type: ignore[arg-type]
    changed = np.abs(with_texture - without).max(2) > 1
    figure = np.abs(without - np.median(without[:4], axis=(0, 1))).max(2) > 40
    assert changed[figure].mean() > 0.9
    assert changed[~figure].mean() < 0.1


@settings(max_examples=20, deadline=None)
@given(index=st.integers(0, 10_000), seed=st.integers(0, 2**40), balance=st.floats(-1, 1))
def test_an_image_depends_on_seed_and_index_alone(index: int, seed: int, balance: float) -> None:
    few = SyntheticImages(kind="conflict", num_images=index + 1, seed=seed, balance=balance)
    many = SyntheticImages(kind="conflict", num_images=20_000, seed=seed, balance=balance)
    many[0]
    assert np.array_equal(few[index][0], many[index][0])
    assert not np.array_equal(many[index][0], many[index + 132][0])
    assert max(few.strengths(index)) == 1


def test_sets_are_balanced() -> None:
    images = SyntheticImages(kind="conflict", num_images=264)
    cues = [images.cues(index) for index in range(264)]
    assert sorted(set(cues)) == sorted(set(cues[:132]))
    assert len(set(cues)) == 132
    assert all(shape != texture for shape, texture in cues)
    assert images.strengths(0) == (1, 1)
    drawn = SyntheticImages(num_images=500, balance=None)
    weakened = np.array([drawn.strengths(index) for index in range(500)])
    assert (weakened.max(1) == 1).all()
    assert abs((weakened[:, 0] < 1).mean() - 0.5) < 0.1
    assert SyntheticImages(kind="shape-only", num_images=1).strengths(0) == (1, 0)
    assert SyntheticImages(kind="texture-only", num_images=1).strengths(0) == (0, 1)


def test_saved_stimuli_are_read_back(tmp_path: Path) -> None:
    images = SyntheticImages(kind="conflict", num_images=24, seed=3)
    assert save_stimuli(images, tmp_path) == 24
    (tmp_path / "arrow" / "arrow1-bolt1.png").unlink()
    assert save_stimuli(images, tmp_path) == 1
    on_disk, in_memory = load_stimuli(tmp_path), stimulus_set(images)
    assert on_disk.names == in_memory.names
    assert on_disk.shapes == in_memory.shapes
    assert on_disk.textures == in_memory.textures
    assert on_disk.texture_exemplars == in_memory.texture_exemplars
    assert all(np.array_equal(on_disk.pixels(index), in_memory.pixels(index)) for index in range(24))


def test_shape_only_stimuli_have_no_texture() -> None:
    stimuli = stimulus_set(SyntheticImages(kind="shape-only", num_images=12))
    assert set(stimuli.textures) == {""}
    assert stimuli.names[0] == "arrow1.png"
    assert isinstance(MAPPING, LabelMapping)
    assert MAPPING.categories == CLASSES


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match="kind='texture-only'"):
        stimulus_set(SyntheticImages(kind="texture-only", num_images=1))
    with pytest.raises(ValueError, match="balance=2"):
        SyntheticImages(num_images=1, balance=2)
    with pytest.raises(ValueError, match="num_images=0"):
        SyntheticImages(num_images=0)
    with pytest.raises(ValueError, match="kind='both'"):
        SyntheticImages(kind="both", num_images=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape='cat'"):
        draw_image("cat", "disc", shape_strength=1, texture_strength=1, seed=0, index=0)
    with pytest.raises(ValueError, match=r"texture_strength=1\.5"):
        draw_image("disc", "disc", shape_strength=1, texture_strength=1.5, seed=0, index=0)
    with pytest.raises(ValueError, match="texture_scale=0"):
        SyntheticOptions(texture_scale=0)
    with pytest.raises(ValueError, match="texture_region='all'"):
        SyntheticOptions(texture_region="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size=8"):
        SyntheticOptions(size=8)
    for options, message in (
        ({"seed": -1}, "seed=-1"),
        ({"seed": 10**20}, "seed=1000"),
        ({"num_images": 10**20}, "num_images=1000"),
        ({"balance": float("nan")}, "balance=nan"),
        ({"kind": "shape-only", "balance": 0.5}, r"balance=0\.5: goes with two cues"),
        ({"kind": "texture-only", "balance": None}, "balance=None: goes with two cues"),
    ):
        with pytest.raises(ValueError, match=message):
            SyntheticImages(**{"num_images": 1, **options})  # type: ignore[arg-type]
