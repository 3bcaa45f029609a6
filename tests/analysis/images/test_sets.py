from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import load_images
from analysis.images.dead_leaves import dead_leaves


def save(path: Path, color: object = (255, 0, 0), mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)  # type: ignore[arg-type]


def test_the_draw_is_spread_over_classes_and_repeatable(tmp_path: Path) -> None:
    for label in "abc":
        for index in range(5):
            save(tmp_path / label / f"{index}.png")
    chosen = load_images(tmp_path, size=4, num_images=6, seed=1)
    assert sorted(name[0] for name in chosen.names) == ["a", "a", "b", "b", "c", "c"]
    assert chosen.names == load_images(tmp_path, size=4, num_images=6, seed=1).names
    assert chosen.names != load_images(tmp_path, size=4, num_images=6, seed=2).names
    assert len(load_images(tmp_path, size=4)) == 15


def test_bad_files_are_replaced_and_named(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "empty.jpg").write_bytes(b"")
    chosen = load_images(tmp_path, size=4)
    assert chosen.names == ("good.png",)
    reasons = dict(chosen.skipped)
    assert reasons["notes.txt"].startswith("not an image")
    assert reasons["broken.png"].startswith("corrupt")
    assert reasons["empty.jpg"].startswith("corrupt")
    (tmp_path / "good.png").unlink()
    with pytest.raises(ValueError, match="none of 3 files is a usable image"):
        load_images(tmp_path, size=4)


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of 0 files"):
        load_images(tmp_path, size=4)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_images(tmp_path / "absent", size=4)
    with pytest.raises(ValueError, match="size="):
        load_images(size=0)
    with pytest.raises(ValueError, match="num_images=0"):
        load_images(size=4, num_images=0)
    with pytest.raises(ValueError, match="std="):
        load_images(size=4, std=(1, 0, 1))
    with pytest.raises(ValueError, match="std="):
        load_images(size=4, std=(float("nan"), 1, 1))
    with pytest.raises(ValueError, match=r"size=\(8, -1\): expected 1 to 16384 pixels"):
        load_images(size=(8, -1))
    with pytest.raises(ValueError, match="seed=-1: expected a whole number from 0"):
        load_images(size=4, seed=-1)
    with pytest.raises(ValueError, match=r"mean=\(nan, 0, 0\): expected three numbers"):
        load_images(size=4, num_images=1).normalized_by((float("nan"), 0, 0), (1, 1, 1))
    with pytest.raises(ValueError, match="images='': expected a path"):
        load_images("", size=4)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 51, (0.2, 0.2, 0.2)),
        ("RGBA", (255, 0, 0, 0), (1, 1, 1)),
        ("CMYK", (0, 255, 255, 0), (1, 0, 0)),
        ("I;16", 65535 // 5, (0.2, 0.2, 0.2)),
        ("1", 1, (1, 1, 1)),
        ("RGB", (0, 255, 0), (0, 1, 0)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, color: object, expected: tuple[float, ...]) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    save(tmp_path / f"image.{suffix}", color, mode)
    pixels = load_images(tmp_path, size=4).pixels(0)
    np.testing.assert_allclose(pixels.mean((1, 2)), expected, atol=1 / 250)


def test_exif_rotation_size_and_normalisation(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise: white on the right
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = load_images([tmp_path / "turned.png"], size=(8, 8)).pixels(0)
    assert pixels[:, :, 6:].min() > 0.9
    assert pixels[:, :, :2].max() < 0.1
    chosen = load_images([tmp_path / "turned.png"], size=(6, 4), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1))
    expected = (torch.from_numpy(chosen.pixels(0)) - 0.5) / torch.tensor([0.25, 0.5, 1]).view(3, 1, 1)
    torch.testing.assert_close(chosen[0], expected)
    assert chosen[0].shape == (3, 6, 4)


def test_dead_leaves_are_deterministic_and_cover_the_image() -> None:
    first = dead_leaves((48, 64), seed=0, index=0)
    assert first.shape == (3, 48, 64)
    np.testing.assert_array_equal(first, dead_leaves((48, 64), seed=0, index=0))
    assert np.abs(first - dead_leaves((48, 64), seed=0, index=1)).mean() > 0.05
    assert np.abs(first - dead_leaves((48, 64), seed=1, index=0)).mean() > 0.05
    generated = load_images(size=(48, 64), num_images=2)
    assert len(list(generated)) == 2


def test_dead_leaves_have_a_natural_power_spectrum() -> None:
    """Amplitude falls about as 1/f, as in natural images and unlike white noise (slope 0)."""
    spectrum = np.zeros((128, 128))
    for index in range(6):
        image = dead_leaves((128, 128), seed=3, index=index).mean(0)
        spectrum += np.abs(np.fft.fft2(image - image.mean())) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128), indexing="ij")
    frequency = np.hypot(fy, fx)
    bands = [(frequency >= low) & (frequency < 1.3 * low) for low in (0.03, 0.06, 0.12, 0.24)]
    power = [spectrum[band].mean() for band in bands]
    slope = np.polyfit(np.log([0.03, 0.06, 0.12, 0.24]), np.log(power), 1)[0]
    assert -3.5 < slope < -1.0
