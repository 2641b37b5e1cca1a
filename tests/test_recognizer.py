"""A user would get no answer, or another face's answer, if any of these failed."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from fer import EMOTIONS, Emotion, EmotionRecognizer, FacePrediction
from fer.checkpoint import available_checkpoints, load_checkpoint
from fer.errors import CheckpointError, ConfigError, DetectorError, ImageError
from fer.faces import Face, crop_face, find_faces

PHOTO = skimage.data.astronaut()
LANDSCAPE = skimage.data.rocket()
PAIR = np.hstack([PHOTO, np.ascontiguousarray(PHOTO[:, ::-1]) // 3])  # one bright face, one dark


def probabilities(predictions: list[FacePrediction]) -> np.ndarray:
    return np.array([list(p.probabilities.values()) for p in predictions])


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def test_prediction_of_a_row() -> None:
    row = np.array([0.1, 0, 0, 0.6, 0.1, 0.1, 0.1], np.float32)
    prediction = FacePrediction.of(Face(1.2, 2.7, 3, 4, 0.5), row)
    assert prediction.emotion is Emotion.HAPPY
    assert prediction.confidence == pytest.approx(0.6)
    assert tuple(prediction.probabilities) == EMOTIONS
    assert prediction.probabilities[Emotion.ANGRY] == pytest.approx(0.1)
    assert prediction.box == (1, 3, 3, 4)


def test_impossible_predictions_are_refused() -> None:
    face = Face(0, 0, 1, 1, 0.5)
    with pytest.raises(ValueError, match="a probability for each"):
        FacePrediction(face, Emotion.SAD, 1.0, {Emotion.SAD: 1.0})
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        FacePrediction(face, Emotion.SAD, 2.0, dict.fromkeys(EMOTIONS, 0.1))


def test_every_face_gets_calibrated_probabilities(recognizer: EmotionRecognizer) -> None:
    predictions = recognizer.analyze(PAIR)
    assert len(predictions) == 2
    assert probabilities(predictions).sum(axis=1) == pytest.approx(1, abs=1e-5)
    for prediction in predictions:
        assert prediction.confidence == max(prediction.probabilities.values())
        assert prediction.probabilities[prediction.emotion] == prediction.confidence


def test_every_face_gets_its_own_answer(recognizer: EmotionRecognizer) -> None:
    predictions = recognizer.analyze(PAIR)
    assert np.abs(np.diff(probabilities(predictions), axis=0)).max() > 0.01
    for prediction in predictions:
        alone = recognizer.classify([crop_face(PAIR, prediction.face)])
        assert probabilities([prediction]) == pytest.approx(alone, abs=1e-3)
    assert {p.face for p in predictions} == set(find_faces(PAIR, recognizer.detector))


def test_all_kinds_of_source_agree(recognizer: EmotionRecognizer, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png(PHOTO))
    expected = recognizer.analyze(PHOTO)
    for source in (tmp_path / "photo.png", str(tmp_path / "photo.png"), png(PHOTO), Image.fromarray(PHOTO)):
        assert recognizer.analyze(source) == expected


def test_no_face_is_an_empty_answer(recognizer: EmotionRecognizer) -> None:
    assert recognizer.analyze(LANDSCAPE) == []
    assert recognizer.recognize(PHOTO, []) == []
    assert recognizer.classify([]).shape == (0, 7)


def test_a_cut_face_is_answered(recognizer: EmotionRecognizer) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
    (prediction,) = recognizer.analyze(noise)
    assert prediction.face.whole_image
    assert prediction.box == (0, 0, 48, 48)
    assert probabilities([prediction]) == pytest.approx(recognizer.classify([noise]), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_many_images_answer_as_each_alone(recognizer: EmotionRecognizer, batch_size: int, tmp_path: Path) -> None:
    images = [PHOTO, LANDSCAPE, tmp_path / "gone.jpg", PAIR, b"junk", PHOTO[:, ::-1], LANDSCAPE]
    results = list(recognizer.analyze_many(images, batch_size=batch_size))
    assert len(results) == len(images)
    for image, result in zip(images, results, strict=True):
        if isinstance(result, ImageError):
            with pytest.raises(ImageError, match=r"gone\.jpg|image of 4 bytes"):
                recognizer.analyze(image)
        else:
            alone = recognizer.analyze(image)
            assert [p.face for p in result] == [p.face for p in alone]
            if alone:
                assert probabilities(result) == pytest.approx(probabilities(alone), abs=1e-3)
    assert [i for i, result in enumerate(results) if isinstance(result, ImageError)] == [2, 4]


def test_images_share_batches_and_are_taken_when_needed(
    recognizer: EmotionRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    taken: list[int] = []
    classify = recognizer.classify
    monkeypatch.setattr(recognizer, "classify", lambda f, **options: (sizes.append(len(f)), classify(f, **options))[1])

    def images():
        for i in range(7):
            taken.append(i)
            yield PHOTO

    results = recognizer.analyze_many(images(), batch_size=3)
    next(results)
    assert taken == [0, 1, 2]
    assert len(list(results)) == 6
    assert sizes == [3, 3, 1]


def test_threads_share_a_recognizer(recognizer: EmotionRecognizer) -> None:
    expected = [recognizer.analyze(PHOTO), recognizer.analyze(PAIR)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(recognizer.analyze, [PHOTO, PAIR] * 3))
    for answer, right in zip(answers, expected * 3, strict=True):
        assert probabilities(answer) == pytest.approx(probabilities(right), abs=1e-3)


def test_flip_makes_mirror_images_agree(recognizer: EmotionRecognizer) -> None:
    recognizer = EmotionRecognizer(recognizer.checkpoint, recognizer.detector, tta="flip")
    face = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
    one, other = recognizer.classify([face, np.ascontiguousarray(face[:, ::-1])])
    assert one == pytest.approx(other, abs=1e-3)


def test_load_reports_what_is_wrong(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing-here"):
        EmotionRecognizer.load("nothing-here", detector="retinaface")
    with pytest.raises(DetectorError, match=r"gone\.onnx"):
        EmotionRecognizer.load(checkpoint, detector_model=tmp_path / "gone.onnx")
    with pytest.raises(ConfigError, match="threshold"):
        EmotionRecognizer.load(checkpoint, threshold=0)


def test_import_is_light() -> None:
    """PyTorch takes seconds to import; naming the class must not."""
    code = (
        "import sys, fer; fer.EmotionRecognizer; sys.exit(bool({'torch', 'onnxruntime', 'gradio'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("name", ["vgg16-cp-trl", "cnn-cp-trl"])
def test_shipped_checkpoint_sees_the_smile(name: str, recognizer: EmotionRecognizer) -> None:
    """Eileen Collins smiles in NASA's portrait."""
    if name not in available_checkpoints():
        pytest.skip(f"{name} is not shipped")
    shipped = EmotionRecognizer(load_checkpoint(name), recognizer.detector, tta="flip")
    (prediction,) = shipped.analyze(PHOTO)
    assert prediction.emotion is Emotion.HAPPY
    assert prediction.confidence > 0.5
