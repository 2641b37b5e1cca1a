"""Any image that people have, as RGB pixels: files, bytes, arrays and PIL images.

Where Pillow is not installed, as beside ONNX Runtime alone, OpenCV reads files and bytes: fewer formats, what is
transparent or deeper than 8 bits as OpenCV takes it, and no error for a file that was cut off.
"""

import io
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.errors import ImageError

try:
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
except ModuleNotFoundError:
    PILLOW = False
else:
    PILLOW = True

__all__ = ["MAX_PIXELS", "SUFFIXES", "ImageSource", "image_files", "read_image"]

ImageSource: TypeAlias = "str | Path | bytes | NDArray[Any] | Image.Image"

#: Largest image that is read; as RGB it takes 600 MB.
MAX_PIXELS = 200_000_000

#: What a folder is searched for. A file that is named itself is read whatever its suffix.
SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip

#: Pillow hands these to Ghostscript, whatever the file is called: not for what strangers send.
_UNSAFE = {"EPS"}

#: Pillow warns or fails above its own limit, a global; ours is checked below, so the global is lifted while we open.
_opening = threading.Lock()


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels of an image as they should be seen.

    Files are turned upright by their EXIF orientation, transparent parts are laid on white, animations give their
    first frame, CMYK and palettes become RGB, and grey of 16 or 32 bits or of floating point is brought to 8 bits.

    Args:
        source: a path, the bytes of a file, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4)
            RGBA. Arrays may be bool, uint8, uint16, other integers in 0..65535, or floats in 0..1, 0..255 or 0..65535;
            which of the ranges it is, is told by the largest value.
        max_pixels: largest image that is read; one with a palette and transparency takes 12 bytes a pixel meanwhile.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        ImageError: the image is missing, damaged, of an unknown format or larger than ``max_pixels``; the message
            names the file.
    """
    name = _name(source)
    try:
        if isinstance(source, np.ndarray):
            return _from_array(source, max_pixels)
        if not PILLOW:
            content = source if isinstance(source, bytes) else Path(source).read_bytes()  # type: ignore[arg-type]
            return _opencv(content, max_pixels)
        if isinstance(source, Image.Image):
            return _decode(source, max_pixels)
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file, _open(file) as image:
            return _decode(image, max_pixels)
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise ImageError(f"cannot read {name}: {_reason(error, name)}") from error


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Image files of files and folders.

    Args:
        paths: files are taken as they are; folders are searched, with their subfolders, for the suffixes of images,
            passing over hidden files.

    Returns:
        In the order of ``paths``, each folder's sorted by name, none twice.

    Raises:
        ImageError: a path does not exist.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        elif path.exists():
            found = [path]
        else:
            raise ImageError(f"cannot open {path}: there is no such file or folder")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _open(stream: Any) -> "Image.Image":
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            Image.init()
            return Image.open(stream, formats=[name for name in Image.ID if name not in _UNSAFE])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(image: "Image.Image", max_pixels: int) -> NDArray[np.uint8]:
    _check_size(image.width, image.height, max_pixels)
    image.load()
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        return _from_array(np.asarray(image), max_pixels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image.getchannel("A"))
        image = paper
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _opencv(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if pixels is None:
        raise ImageError("OpenCV cannot read it; save it as JPEG or PNG, or install pillow, which reads more")
    _check_size(pixels.shape[1], pixels.shape[0], max_pixels)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _upright(image: "Image.Image") -> "Image.Image":
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # damaged EXIF says nothing about the pixels
        return image


def _from_array(array: NDArray[Any], max_pixels: int) -> NDArray[np.uint8]:
    shape = array.shape
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))) or 0 in shape:
        raise ImageError(f"expected pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {shape}")
    _check_size(shape[1], shape[0], max_pixels)
    pixels = _to_8_bits(array.reshape(*shape[:2], -1))
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*shape[:2], 3)))


def _to_8_bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise ImageError(f"expected integer or floating-point pixels, not {array.dtype}")
    lowest, highest = float(array.min()), float(array.max())
    if not (lowest >= -1 and highest <= 65535):  # also false for NaN
        raise ImageError(f"expected values in 0..1, 0..255 or 0..65535, not {lowest:g}..{highest:g}")
    unit = array.dtype.kind == "f" and highest <= 1.5  # resampling overshoots a little
    scale = 255 if unit else 1 if highest <= 255 else 255 / 65535
    return np.clip(np.rint(array * float(scale)), 0, 255).astype(np.uint8)


def _check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise ImageError(f"{width} x {height} pixels are too many, at most {most // 10**6} million; scale it down")


def _name(source: ImageSource) -> str:
    if isinstance(source, np.ndarray):
        return "the array"
    if isinstance(source, bytes):
        return f"the image of {len(source)} bytes"
    if PILLOW and isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "the PIL image"
    return str(source)


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if PILLOW and isinstance(error, UnidentifiedImageError):
        heic = Path(name).suffix.lower() in (".heic", ".heif")
        return f"{'HEIC is not supported' if heic else 'it is not an image of a known format'}; save it as JPEG or PNG"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
