"""Pictures of every mode: faithful, or refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctm_core.data.picture_files import Refused, decode, list_pictures, read_picture
from ctm_core.runtime.errors import UserError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = np.stack([GREY, GREY[::-1], GREY.T], -1)
NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
WHITE = np.full_like(GREY, 255)


def png(image: Image.Image, **options: object) -> bytes:
    made = io.BytesIO()
    image.save(made, format="PNG", **options)
    return made.getvalue()


def rgba(*channels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack(channels, -1))


SAME: dict[str, Callable[[], Image.Image]] = {
    "8 bits": lambda: Image.fromarray(GREY),
    "16 bits": lambda: Image.fromarray(GREY.astype(np.uint16) * 257),
    "opaque LA": lambda: rgba(GREY, WHITE),
}


@pytest.mark.parametrize("name", SAME)
def test_grey_is_one_channel(name: str) -> None:
    image = decode(png(SAME[name]()))
    assert image.mode == "L" and np.array_equal(np.asarray(image), GREY)


def test_sixteen_bits_are_rounded() -> None:
    levels = np.array([[0, 128, 129, 65535], [257, 385, 386, 65000]], dtype=np.uint16)
    made = np.asarray(decode(png(Image.fromarray(levels))))
    assert np.array_equal(made, np.round(levels / 257).astype(np.uint8))


def test_one_bit_is_black_and_white() -> None:
    bits = GREY > 100
    assert np.array_equal(np.asarray(decode(png(Image.fromarray(bits)))), bits * np.uint8(255))


def test_colours_are_three_channels() -> None:
    for image in (Image.fromarray(RGB), rgba(RGB[..., 0], RGB[..., 1], RGB[..., 2], WHITE)):
        made = decode(png(image))
        assert made.mode == "RGB" and np.array_equal(np.asarray(made), RGB)
    few = Image.fromarray((RGB // 64) * 64)
    palette = few.quantize(colors=64)
    assert np.array_equal(np.asarray(decode(png(palette))), np.asarray(palette.convert("RGB")))


SEEN_THROUGH: dict[str, Callable[[], bytes]] = {
    "RGBA": lambda: png(rgba(WHITE, WHITE, WHITE, GREY)),
    "LA": lambda: png(rgba(WHITE, GREY)),
    "palette": lambda: png(Image.fromarray(RGB).quantize(16), transparency=3),
    "RGB colour": lambda: png(Image.fromarray(RGB), transparency=tuple(int(v) for v in RGB[0, 0])),
    "grey level": lambda: png(Image.fromarray(GREY), transparency=7),
}


@pytest.mark.parametrize("name", SEEN_THROUGH)
def test_transparency_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="alpha channel that is not opaque"):
        decode(SEEN_THROUGH[name]())


def animated() -> bytes:
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
    return png(frames[0], save_all=True, append_images=frames[1:])


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "animated": (animated, "animated"),
    "truncated": (lambda: png(Image.fromarray(NOISE))[:-200], "truncated|corrupt"),
    "text": (lambda: b"no picture", "not a PNG or JPEG"),
    "empty": (lambda: b"", "not a PNG or JPEG"),
    "thin": (lambda: png(Image.new("L", (130_000, 1))), "130000 x 1"),
    "huge": (lambda: png(Image.new("1", (20_000, 20_000))), "more pixels"),
    "tiff": (lambda: saved(Image.fromarray(GREY), "TIFF"), "not a PNG or JPEG"),
}


def saved(image: Image.Image, kind: str) -> bytes:
    made = io.BytesIO()
    image.save(made, format=kind)
    return made.getvalue()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    content = make()
    with pytest.raises(Refused, match=reason) as first:
        decode(content)
    with pytest.raises(Refused) as second:
        decode(bytes(bytearray(content)))
    assert str(first.value) == str(second.value) and "0x" not in str(first.value)


def test_orientation_is_a_choice() -> None:
    made = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(RGB[:8]).save(made, format="JPEG", exif=exif, quality=95)
    assert decode(made.getvalue()).size == (8, 16)
    assert decode(made.getvalue(), orient=False).size == (16, 8)


def test_cmyk_is_converted() -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    assert decode(saved(image, "JPEG")).mode == "RGB"


def test_previews_behind_a_photograph_do_not_count() -> None:
    """Cameras append smaller copies to a JPEG file, as frames of the format MPO."""
    photograph = Image.fromarray(RGB)
    made = io.BytesIO()
    photograph.save(made, "MPO", save_all=True, append_images=[photograph.reduce(2)])
    assert np.array_equal(
        np.asarray(decode(made.getvalue())), np.asarray(decode(saved(photograph, "JPEG")))
    )


def test_want_of_memory_is_no_fault_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ctm_core.data.picture_files._eight_bits", full)
    with pytest.raises(MemoryError):
        decode(png(Image.fromarray(GREY)))


def test_a_folder_alone_is_listed(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPEG/c.png", "d/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = list_pictures(tmp_path, nested=False)
    assert listing.files == ["a.png", "b.JPEG"] and listing.left_out == ["d"]


def test_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(Image.fromarray(RGB)))
    assert read_picture(tmp_path / "a.png").shape == (3, 16, 16)
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"b\.png cannot be read as a picture: it is not a PNG"):
        read_picture(tmp_path / "b.png")


def test_a_folder_is_listed_whole(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.png", "c.jpg", "._a.png", ".DS_Store", "notes.txt", "01/d.JPEG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = list_pictures(tmp_path)
    assert listing.files == ["01/d.JPEG", "a.png", "b.PNG", "c.jpg"]
    assert listing.left_out == [".DS_Store", "._a.png", "notes.txt"]
    sentence = listing.describe_left_out() or ""
    assert "macOS" in sentence and "*.txt" in sentence and ".DS_Store" in sentence
    assert list_pictures(tmp_path / "01").describe_left_out() is None
