"""A user would lose faces, or get them sideways, negative or black, if any of these failed."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps

from fer.errors import ImageError
from fer.images import image_files, read_image

PHOTO = skimage.data.astronaut()[::2, 1::2][:, :240]  # (256, 240, 3), not square, so that turns show
GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))


def encode(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002 - Pillow's own name
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize(
    ("format", "tolerance"),
    [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("PPM", 0), ("JPEG", 6), ("WEBP", 6), ("GIF", 12), ("JPEG2000", 1)],
)
def test_formats(format: str, tolerance: float) -> None:  # noqa: A002
    pixels = read_image(encode(Image.fromarray(PHOTO), format))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert difference(pixels, PHOTO) <= tolerance


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_look_as_pillow_shows_them(mode: str) -> None:
    image = Image.fromarray(PHOTO).convert(mode)
    assert difference(read_image(image), np.asarray(image.convert("RGB"))) == 0


def test_cmyk_jpeg_is_not_negative() -> None:
    data = encode(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=95)
    assert difference(read_image(data), PHOTO) < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 6), (200, 30, 60, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 6))
    pixels = read_image(encode(image.quantize(), "PNG") if mode == "P" else image.convert(mode))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] < 255).any()


def test_half_transparent_is_half_white() -> None:
    image = np.dstack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 128, np.uint8)])
    assert (read_image(image) == 127).all()
    assert difference(read_image(encode(Image.fromarray(image), "PNG")), read_image(image)) <= 1


def test_16_bit_grey() -> None:
    wide = GREY.astype(np.uint16) * 257
    expected = np.repeat(GREY[..., None], 3, axis=2)
    for source in (wide, encode(Image.fromarray(wide), "PNG"), encode(Image.fromarray(wide), "TIFF")):
        assert difference(read_image(source), expected) == 0
    big_endian = Image.frombytes("I;16B", GREY.shape[::-1], wide.astype(">u2").tobytes())
    assert difference(read_image(big_endian), expected) == 0
    assert difference(read_image(Image.fromarray(wide.astype(np.int32))), expected) == 0


def test_a_dark_16_bit_image_stays_dark() -> None:
    assert read_image(encode(Image.fromarray(np.full((4, 4), 255, np.uint16)), "PNG")).max() == 0


@pytest.mark.parametrize("scale", [1 / 255, 1.0, 257.0])
def test_floats_in_any_range(scale: float) -> None:
    expected = np.repeat(GREY[..., None], 3, axis=2)
    floats = (GREY * scale).astype(np.float32)
    assert difference(read_image(floats), expected) <= 0.01
    assert difference(read_image(encode(Image.fromarray(floats), "TIFF")), expected) <= 0.01


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = Image.fromarray(PHOTO)
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what undoes each, as Image.Transpose
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, "PNG", exif=exif)
    assert difference(read_image(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))) == 0
    assert read_image(data).shape == PHOTO.shape
    assert difference(read_image(data), PHOTO) == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_matter() -> None:
    data = encode(Image.fromarray(PHOTO), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert read_image(data).shape == PHOTO.shape


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    for format in ("GIF", "WEBP", "PNG"):  # noqa: A001
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert (read_image(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2, 1), (5, 5, 3), (5, 5, 4)])
def test_tiny_arrays(shape: tuple[int, ...]) -> None:
    assert read_image(np.full(shape, 255, np.uint8)).shape == (*shape[:2], 3)


def test_bool_array() -> None:
    assert read_image(np.eye(3, dtype=bool)).max() == 255


def test_all_kinds_of_source_agree(tmp_path: Path) -> None:
    file = tmp_path / "é ü.png"
    Image.fromarray(PHOTO).save(file)
    for source in (file, str(file), file.read_bytes(), PHOTO, Image.fromarray(PHOTO), PHOTO[:, ::-1][:, ::-1]):
        assert difference(read_image(source), PHOTO) == 0


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.full((4, 4), np.nan),
        np.full((4, 4), -5.0),
        np.full((4, 4), 1e6),
        np.zeros((4, 4), complex),
    ],
)
def test_unusable_arrays(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"cannot read the array: expected"):
        read_image(array)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    whole = encode(Image.fromarray(PHOTO), "JPEG")
    contents = {
        "empty.jpg": b"",
        "text.png": b"not an image",
        "cut.jpg": whole[: len(whole) // 2],
        "cut.png": encode(Image.fromarray(PHOTO), "PNG")[:5000],
        "apple.heic": b"\0\0\0\x18ftypheic",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=rf"cannot read .*{name}: \S+"):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match=r"gone\.jpg: there is no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match=tmp_path.name):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="HEIC"):
        read_image(tmp_path / "apple.heic")
    with pytest.raises(ImageError, match="the image of 12 bytes"):
        read_image(b"not an image")
    with pytest.raises(ImageError, match="None"):
        read_image(None)  # type: ignore[arg-type]


def test_postscript_is_not_handed_to_ghostscript() -> None:
    """Else whoever may upload a picture could have a program run on it."""
    with pytest.raises(ImageError, match="not an image of a known format"):
        read_image(encode(Image.fromarray(PHOTO), "EPS"))


def test_large_images_are_read_and_huge_ones_refused() -> None:
    """Pillow warns above 89 million pixels, and warnings are errors here; a panorama is no attack."""
    limit = Image.MAX_IMAGE_PIXELS
    large = encode(Image.new("1", (10_000, 9_500)), "PNG")
    assert read_image(large).shape == (9_500, 10_000, 3)
    with pytest.raises(ImageError, match="60000 x 60000 pixels are too many, at most 200 million"):
        read_image(b"P5 60000 60000 255\n")
    with pytest.raises(ImageError, match="10000 x 9500 pixels are too many, at most 50 million"):
        read_image(large, max_pixels=50_000_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_reading_from_threads() -> None:
    data = encode(Image.fromarray(PHOTO), "PNG")
    results: list[float] = []
    threads = [
        threading.Thread(target=lambda: results.extend(difference(read_image(data), PHOTO) for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 20
    assert Image.MAX_IMAGE_PIXELS


def test_image_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "notes.txt", ".hidden.png", "sub/._c.webp", "odd.dat"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    found = [file.relative_to(tmp_path).as_posix() for file in image_files([tmp_path])]
    assert found == ["a.png", "b.JPG", "sub/c.webp"]
    named = image_files([tmp_path / "odd.dat", str(tmp_path / "a.png"), tmp_path, tmp_path / "sub" / ".." / "a.png"])
    assert [file.name for file in named] == ["odd.dat", "a.png", "b.JPG", "c.webp"]
    assert image_files([]) == []
    with pytest.raises(ImageError, match="gone"):
        image_files([tmp_path, tmp_path / "gone"])
