"""Which files are images, and what becomes of their pixels."""

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis import find_images, load_images, load_stimuli, predict
from analysis.images.files import ImageError, files_in, folders_in, read_rgb
from analysis.images.labelled import FolderImages, different_classes
from tests.analysis.recognition.test_prediction import COLOURS

CLUTTER = (".ipynb_checkpoints", ".git", "__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN")


def save(path: Path, colour: tuple[int, int, int] = (255, 0, 0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes, of which one is elsewhere, in two parts, with what systems leave among them."""
    save(tmp_path / "elsewhere" / "b.png")
    for part in ("train", "val"):
        root = tmp_path / "data" / part
        save(root / "ant" / "a.png")
        (root / "bee").symlink_to(tmp_path / "elsewhere")
        for name in CLUTTER:
            save(root / name / "copy.png")
            save(root / "ant" / name / "copy.png")
        for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
            shutil.copy(root / "ant" / "a.png", root / "ant" / name)
    return tmp_path / "data"


def test_hidden_files_are_never_images_and_hidden_folders_never_classes(data: Path) -> None:
    train = FolderImages(data, "train")
    assert train.classes == ("ant", "bee")
    assert len(train) == 2
    assert train.skipped == []
    assert [str(path.relative_to(data)) for path in find_images(data / "train")] == [
        "train/ant/a.png",
        "train/bee/b.png",
    ]
    assert sorted(load_images(data / "train", size=4).names) == ["ant/a.png", "bee/b.png"]
    assert [path.name for path in folders_in(data / "train")] == ["ant", "bee"]
    shutil.copytree(data / "train" / "ant", data / "stimuli")
    save(data / "stimuli" / "cat1-dog1.png")
    save(data / "stimuli" / "__MACOSX" / "cat1-dog1.png", (0, 0, 255))
    assert load_stimuli(data / "stimuli").names == ("cat1-dog1.png",)
    # What is asked for by its name is meant.
    hidden = data / "train" / "ant" / "._a.png"
    assert find_images(hidden) == [hidden]
    assert len(find_images(str(data / "train" / ".git" / "*.png"))) == 1
    assert len(find_images(str(data / "train" / "*" / "*.png"))) == 2


def test_what_is_not_used_for_training_is_told(data: Path) -> None:
    save(data / "train" / "alone.png")
    (data / "train" / "ant" / "notes.txt").write_text("no image")
    assert FolderImages(data, "train").skipped == [
        ("alone.png", "in no folder of a class"),
        ("ant/notes.txt", "not an image"),
    ]
    (data / "train" / "cat").mkdir()
    with pytest.raises(FileNotFoundError, match="train/cat': holds no image of the class"):
        FolderImages(data, "train")
    (data / "train" / "cat").rmdir()
    (data / "train" / "cat").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="train/cat': a link to what is not there"):
        FolderImages(data, "train")


def test_classes_that_differ_are_named_in_a_few_words(tmp_path: Path) -> None:
    for index in range(1000):
        (tmp_path / "train" / f"c{index:04}").mkdir(parents=True)
        (tmp_path / "train" / f"c{index:04}" / "a.png").touch()
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    train = FolderImages(tmp_path, "train")
    assert different_classes(train, FolderImages(tmp_path, "val")) == ""
    (tmp_path / "val" / "c0007").rename(tmp_path / "val" / "d")
    (tmp_path / "val" / "c0008").rename(tmp_path / "val" / "e")
    found = different_classes(train, FolderImages(tmp_path, "val"))
    assert found == "1000 and 1000 classes, not in both are c0007, c0008, d, ... (4 in all)"


def test_links_are_followed_each_folder_is_entered_once_and_loops_end(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    save(root / "2024" / "a.png")
    save(tmp_path / "outside" / "deep" / "b.png")
    (root / "1-latest").symlink_to(root / "2024")
    (root / "2024" / "up").symlink_to(root)
    (root / "more").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(root)
    (root / "c.png").symlink_to(root / "2024" / "a.png")
    (root / "gone.png").symlink_to(tmp_path / "nothing")
    expected = ["2024/a.png", "c.png", "gone.png", "more/deep/b.png"]
    assert [str(path.relative_to(root)) for path in files_in(root)] == expected
    # The same folder by several sources, and a pattern that runs into a loop.
    for sources in ([root, root / "1-latest", tmp_path / "outside"], str(root / "**" / "*.png"), str(root / "*")):
        found = {(path.parent.resolve().name, path.name) for path in find_images(sources)}
        assert found == {("2024", "a.png"), ("photos", "c.png"), ("photos", "gone.png"), ("deep", "b.png")}
        assert len(find_images(sources)) == 4
    chosen = load_images(root, size=4)
    assert sorted(chosen.names) == ["2024/a.png", "c.png", "more/deep/b.png"]
    assert chosen.skipped == (("gone.png", "no such file"),)
    assert predict(COLOURS, root).skipped == ((str(root / "gone.png"), "no such file"),)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "locked":  # chmod does not stop root
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="locked"):
        find_images(tmp_path)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(name)).mkdir()
    shutil.copy(save(tmp_path / "red.png"), os.fsdecode(name + b"/\xff.png"))
    assert sorted(load_images(tmp_path, size=4).names) == [r"caf\xe9/\xff.png", "red.png"]
    found = predict(COLOURS, Path(os.fsdecode(name)), partial=tmp_path / "partial.npz")
    assert found[0].image == rf"{tmp_path}/caf\xe9/\xff.png"
    assert found[0].names[0] == "red"
    found.table().to_csv(tmp_path / "table.csv")


def tiff(bits: int, photometric: int, sample_format: int, content: bytes, channels: int = 1) -> bytes:
    """An 8x8 little-endian TIFF, written out from its specification (TIFF 6.0, section 2)."""
    tags = [(256, 4, 8), (257, 4, 8), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 0)]
    tags += [(277, 3, channels), (278, 4, 8), (279, 4, len(content)), (339, 3, sample_format)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, start if tag == 273 else value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


RAMP = np.arange(64).reshape(8, 8)


def test_more_than_8_bits_are_scaled_as_what_they_are(tmp_path: Path) -> None:
    values = (RAMP * 1000).astype("<u2")
    path = tmp_path / "image.tif"
    for bits, photometric, content, expected in (
        (16, 1, values.tobytes(), RAMP * 1000 / 65535),
        (16, 0, values.tobytes(), 1 - RAMP * 1000 / 65535),  # white is zero
        (12, 1, bytes([0x80, 0x0F, 0xFF] * 32), np.tile([0x800 / 4095, 1.0], (8, 4))),
    ):
        path.write_bytes(tiff(bits, photometric, 1, content))
        found = np.asarray(read_rgb(path)).astype(float)
        assert np.abs(found - 255 * expected[..., None]).max() <= 0.5
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    picture = Image.fromarray(values)
    picture.save(tmp_path / "image.png")
    picture.save(tmp_path / "image.pgm")
    picture.save(tmp_path / "turned.png", exif=exif)
    for name, upright in (("image.png", RAMP), ("image.pgm", RAMP), ("turned.png", np.rot90(RAMP, -1))):
        found = np.asarray(read_rgb(tmp_path / name)).astype(float)[..., 1]
        assert np.abs(found - 255 * upright * 1000 / 65535).max() <= 0.5


def test_pixels_of_unknown_range_are_refused_by_name_never_black(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    floats, whole = "its pixels are floats", "its pixels are signed or 32-bit integers"
    unit, path = RAMP / 64, tmp_path / "bad.tif"
    for content, reason in (
        (tiff(32, 1, 3, unit.astype("<f4").tobytes()), floats),
        (tiff(32, 1, 3, (255 * unit).astype("<f4").tobytes()), floats),
        (tiff(32, 1, 1, RAMP.astype("<u4").tobytes()), whole),
        (tiff(16, 1, 2, RAMP.astype("<i2").tobytes()), whole),
        (tiff(64, 1, 3, unit.tobytes()), "corrupt, or a kind of TIFF that is not known"),
    ):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=reason):
            read_rgb(path)
        ((name, told),) = load_images(tmp_path, size=4).skipped
        assert (name, told.startswith(reason)) == ("bad.tif", True)
        assert len(predict(COLOURS, tmp_path).skipped) == 1
    picture = Image.fromarray(unit.astype(np.float32))
    found = predict(COLOURS, [Image.new("RGB", (8, 8), "red"), picture])
    assert [item.image for item in found] == ["image-0"]
    assert found.skipped[0][1].startswith(floats)


@pytest.mark.parametrize("name", ["drawing.eps", "drawing.png", "drawing.jpg"])
def test_no_program_is_started_to_read_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    program = tmp_path / "gs"  # Ghostscript, which Pillow reads EPS with
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    Image.new("RGB", (8, 8)).save(tmp_path / name, format="EPS")
    with pytest.raises(ImageError, match=r"corrupt|not an image"):
        read_rgb(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(OSError), Image.open(tmp_path / name) as image:
        image.load()
    assert (tmp_path / "ran").exists()


def test_pipes_sockets_and_circles_are_skipped_with_the_reason_wherever_files_are_looked_for(data: Path) -> None:
    pipe = "a pipe, a socket or a device, not a file"
    for part in ("train", "val"):
        folder = data / part / "ant"
        os.mkfifo(folder / "pipe.png")
        (folder / "to-pipe.png").symlink_to("pipe.png")
        (folder / "zero.png").symlink_to("/dev/zero")
        (folder / "circle.png").symlink_to("circle.png")
    train = data / "train"
    images = FolderImages(data, "train", size=4)
    assert images.skipped == [(f"ant/{name}.png", "not an image") for name in ("pipe", "to-pipe", "zero")]
    assert len(images) == 3  # a link in a circle may be meant for a file, as one that leads nowhere
    chosen = load_images(train, size=4)
    assert sorted(chosen.names) == ["ant/a.png", "bee/b.png"]
    reasons = dict(chosen.skipped)
    assert [reasons[f"ant/{name}.png"] for name in ("pipe", "to-pipe", "zero")] == [pipe] * 3
    assert "symbolic links" in reasons["ant/circle.png"]
    (named,) = find_images(train / "ant" / "pipe.png")
    with pytest.raises(ImageError, match=pipe):
        read_rgb(named)
    with pytest.raises(ValueError, match=f"none of 1 files is a usable image; .*{pipe}"):
        predict(COLOURS, named)
    (train / "ant" / "a.png").rename(train / "ant" / "cat1-dog1.png")
    os.mkfifo(train / "ant" / "cat2-dog1.png")
    stimuli = load_stimuli(train / "ant")
    assert stimuli.names == ("cat1-dog1.png",)
    assert ("cat2-dog1.png", pipe) in stimuli.skipped


def test_a_large_photograph_is_read_without_a_warning_and_a_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # of 64
    assert read_rgb(path).size == (8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ImageError, match=r"corrupt \(Image size \(64 pixels\) exceeds limit"):
        read_rgb(path)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_no_changed_byte_of_a_png_changes_a_pixel(tmp_path: Path, mode: str) -> None:
    # Chunks have checksums: with a wrong one, Pillow alone gives other pixels without a word.
    path, generator = tmp_path / "a.png", np.random.default_rng(0)
    grey = generator.integers(0, 256, (16, 16), np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(path)
    whole, content = np.asarray(read_rgb(path)), path.read_bytes()
    for place in range(8, len(content) - 12, 5):  # what follows is the mark of the end
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(ImageError):
            read_rgb(path)
    with path.open("rb") as file, pytest.raises(ImageError, match="corrupt"):
        read_rgb(file)
    path.write_bytes(content[:-1] + b"x")
    np.testing.assert_array_equal(read_rgb(path), whole)
