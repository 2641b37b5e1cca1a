"""Images in, expressions out: detector, crop and network together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fer.classifier import Classifier, predict_probabilities
from fer.config import DetectorName, RecognizerConfig, Runtime, TestTimeAugmentation
from fer.emotions import EMOTIONS, Emotion
from fer.errors import CheckpointError, ConfigError, ImageError
from fer.faces import Face, FaceDetector, create_detector, crop_face, find_faces
from fer.images import ImageSource, read_image
from fer.preprocessing import resize_face

__all__ = ["EmotionRecognizer", "FacePrediction", "load_classifier"]


@dataclass(frozen=True)
class FacePrediction:
    """A face and what it expresses.

    Attributes:
        face: where it is.
        emotion: the most probable one.
        confidence: its probability, 0..1.
        probabilities: of all seven, 0..1, calibrated; in the order of ``EMOTIONS``.
    """

    face: Face
    emotion: Emotion
    confidence: float
    probabilities: dict[Emotion, float]

    def __post_init__(self) -> None:
        if tuple(self.probabilities) != EMOTIONS:
            raise ValueError(f"expected a probability for each of {EMOTIONS}, not {self.probabilities}")
        if not all(0 <= p <= 1 for p in (self.confidence, *self.probabilities.values())):
            raise ValueError(f"probabilities must be in [0, 1], not {self.confidence}, {self.probabilities}")

    @classmethod
    def of(cls, face: Face, probabilities: NDArray[np.float32]) -> Self:
        """The prediction that a row of probabilities, (7,) in 0..1, makes of a face."""
        best = int(probabilities.argmax())
        values = np.clip(probabilities, 0, 1).tolist()
        return cls(face, Emotion(best), values[best], dict(zip(EMOTIONS, values, strict=True)))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x, y, width, height) in whole pixels of the image; may reach beyond its borders."""
        return self.face.box


class EmotionRecognizer:
    """Finds the faces of images and tells their expressions.

    Use :meth:`analyze` for an image, :meth:`analyze_many` for many (their faces share the network's batches),
    :meth:`recognize` for faces that are located already and :meth:`classify` for faces that are cut already. May be
    used from several threads.
    """

    def __init__(self, checkpoint: Classifier, detector: FaceDetector, *, tta: TestTimeAugmentation = "none") -> None:
        """Put a loaded checkpoint and a detector together; :meth:`load` does it by name.

        Args:
            checkpoint: from :func:`load_classifier`, or of one's own.
            detector: what finds the faces.
            tta: views of a face whose logits are averaged; "flip" takes twice the time of "none".
        """
        self.checkpoint, self.detector, self.tta = checkpoint, detector, tta

    @classmethod
    def load(
        cls,
        checkpoint: str | Path = "vgg16-cp-trl",
        *,
        runtime: Runtime = "torch",
        device: str = "auto",
        detector: DetectorName | FaceDetector = "auto",
        detector_model: Path | None = None,
        threshold: float = 0.6,
        max_side: int = 1280,
        tta: TestTimeAugmentation = "none",
        threads: int = 0,
    ) -> Self:
        """A recogniser from a checkpoint.

        Args:
            checkpoint: a shipped name, a checkpoint's folder or, for ONNX Runtime, a .onnx file.
            runtime: "torch", or "onnx": ONNX Runtime on the CPU, with what ``fer export`` wrote and without PyTorch.
            device: "auto" (CUDA, then Apple's MPS, then the CPU) or a PyTorch device.
            detector: a name (see :func:`fer.faces.create_detector`), or any detector.
            detector_model: YuNet's .onnx file.
            threshold: least score of a face, in (0, 1); for a detector given by name.
            max_side: a longer image is scaled down to this many pixels before it is searched; as above.
            tta: views of a face whose logits are averaged; "flip" takes twice the time of "none".
            threads: CPU threads of the detector and of the network; 0 leaves the choice to them.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it was not exported.
            DetectorError: the detector's model file is missing or is not what it should be.
            ConfigError: a setting is out of range.
        """
        if isinstance(detector, str):
            detector = create_detector(
                detector, threshold=threshold, model=detector_model, max_side=max_side, threads=threads
            )
        classifier = load_classifier(checkpoint, runtime=runtime, device=device, threads=threads)
        return cls(classifier, detector, tta=tta)

    @classmethod
    def from_config(cls, config: RecognizerConfig) -> Self:
        """As :meth:`load`, from the options of a command."""
        names = (option.name for option in fields(RecognizerConfig))
        return cls.load(**{name: getattr(config, name) for name in names})

    def analyze(self, image: ImageSource) -> list[FacePrediction]:
        """The faces of an image and their expressions, the most certainly found face first.

        Args:
            image: whatever :func:`fer.images.read_image` reads: a path, bytes, RGB array or PIL image.

        Returns:
            A prediction for each face; empty where there is none.

        Raises:
            ImageError: the image cannot be read.
        """
        pixels = read_image(image)
        return self.recognize(pixels, find_faces(pixels, self.detector))

    def analyze_many(
        self, images: Iterable[ImageSource], *, batch_size: int = 64
    ) -> Iterator[list[FacePrediction] | ImageError]:
        """As :meth:`analyze` for many images; faces of several images go through the network together.

        Args:
            images: as for :meth:`analyze`; taken one at a time, when needed.
            batch_size: faces to gather before the network runs.

        Yields:
            For each image, in order: its predictions, or, where it cannot be read, the error that tells why.
        """
        found: list[list[Face] | ImageError] = []
        crops: list[NDArray[np.uint8]] = []
        for image in images:
            try:
                pixels = read_image(image)
                faces = find_faces(pixels, self.detector)
                found.append(faces)
                crops += self._cut(pixels, faces)
            except ImageError as error:
                found.append(error)
            if not crops or len(crops) >= batch_size:
                yield from self._predict(found, crops, batch_size)
                found, crops = [], []
        yield from self._predict(found, crops, batch_size)

    def recognize(self, image: NDArray[np.uint8], faces: Sequence[Face]) -> list[FacePrediction]:
        """The expressions of faces in an image.

        Args:
            image: (H, W, 3) uint8, RGB.
            faces: where they are.
        """
        rows = self.classify(self._cut(image, faces))
        return [FacePrediction.of(face, row) for face, row in zip(faces, rows, strict=True)]

    def classify(self, faces: Sequence[NDArray[np.uint8]], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Calibrated probabilities of faces that are cut already.

        Args:
            faces: grey, (H, W) uint8 each, of any size, cut as :func:`fer.faces.crop_face` does.
            batch_size: faces at a time.

        Returns:
            (B, 7) float32 in 0..1, in the order of ``EMOTIONS``.
        """
        return predict_probabilities(self.checkpoint, faces, tta=self.tta, batch_size=batch_size)

    def _cut(self, image: NDArray[np.uint8], faces: Sequence[Face]) -> list[NDArray[np.uint8]]:
        # At the network's size, as it would be made later anyway: a batch of large faces would fill the memory.
        size = self.checkpoint.preprocessing.size
        return [resize_face(crop_face(image, face), size) for face in faces]

    def _predict(
        self, found: Sequence[list[Face] | ImageError], crops: Sequence[NDArray[np.uint8]], batch_size: int
    ) -> Iterator[list[FacePrediction] | ImageError]:
        rows = iter(self.classify(crops, batch_size=batch_size))
        for faces in found:
            if isinstance(faces, ImageError):
                yield faces
            else:
                yield [FacePrediction.of(face, row) for face, row in zip(faces, rows, strict=False)]


def load_classifier(
    name: str | Path, *, runtime: Runtime = "torch", device: str = "auto", threads: int = 0
) -> Classifier:
    """The network of a checkpoint alone; see :meth:`EmotionRecognizer.load`.

    Args:
        name: a shipped name, a checkpoint's folder or, for ONNX Runtime, a .onnx file.
        runtime: "torch" or "onnx".
        device: "auto" or a PyTorch device.
        threads: CPU threads, with PyTorch those of the whole process; 0 leaves the choice to the runtime.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or it was not exported.
        ConfigError: there is no such device.
    """
    if runtime == "onnx":
        if device not in ("auto", "cpu"):
            raise ConfigError(f"runtime onnx works on the CPU, not on device {device!r}: leave the device at auto")
        from fer.onnx_runtime import load_onnx

        return load_onnx(name, threads=threads)
    if Path(name).suffix == ".onnx":
        raise CheckpointError(f"{name} is for ONNX Runtime: choose runtime onnx (--runtime onnx), or a checkpoint")
    import torch

    from fer.checkpoint import load_checkpoint

    if threads:
        torch.set_num_threads(threads)
    return load_checkpoint(name, device=device)
