"""Images in, expressions out: detector, crop and network together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from fer.config import TestTimeAugmentation
from fer.emotions import EMOTIONS, Emotion
from fer.errors import ImageError
from fer.faces import DetectorName, Face, FaceDetector, create_detector, crop_face, find_faces
from fer.images import ImageSource, read_image
from fer.preprocessing import resize_face

if TYPE_CHECKING:
    from fer.checkpoint import Checkpoint

__all__ = ["EmotionRecognizer", "FacePrediction"]


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

    def __init__(self, checkpoint: "Checkpoint", detector: FaceDetector, *, tta: TestTimeAugmentation = "none") -> None:
        """Put a loaded checkpoint and a detector together; :meth:`load` does it by name.

        Args:
            checkpoint: from :func:`fer.checkpoint.load_checkpoint`.
            detector: what finds the faces.
            tta: views of a face whose logits are averaged; "flip" takes twice the time of "none".
        """
        self.checkpoint, self.detector, self.tta = checkpoint, detector, tta

    @classmethod
    def load(
        cls,
        checkpoint: str | Path = "vgg16-cp-trl",
        *,
        device: str = "auto",
        detector: DetectorName | FaceDetector = "auto",
        detector_model: Path | None = None,
        threshold: float = 0.6,
        tta: TestTimeAugmentation = "none",
        threads: int | None = None,
    ) -> Self:
        """A recogniser from a checkpoint.

        Args:
            checkpoint: a shipped name, or a checkpoint's folder.
            device: "auto" (CUDA, then Apple's MPS, then the CPU) or a PyTorch device.
            detector: a name (see :func:`fer.faces.create_detector`), or any detector.
            detector_model: YuNet's .onnx file.
            threshold: least score of a face, in (0, 1); for a detector given by name.
            tta: views of a face whose logits are averaged; "flip" takes twice the time of "none".
            threads: CPU threads of the detector and of the whole process's PyTorch; their own choice by default.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
            DetectorError: the detector's model file is missing or is not what it should be.
            ConfigError: a setting is out of range.
        """
        if isinstance(detector, str):
            detector = create_detector(detector, threshold=threshold, model=detector_model, threads=threads)
        import torch

        from fer.checkpoint import load_checkpoint

        if threads:
            torch.set_num_threads(threads)
        return cls(load_checkpoint(checkpoint, device=device), detector, tta=tta)

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
        from fer.inference import predict_probabilities

        return predict_probabilities(self.checkpoint, faces, tta=self.tta, batch_size=batch_size)

    def _cut(self, image: NDArray[np.uint8], faces: Sequence[Face]) -> list[NDArray[np.uint8]]:
        # At the network's size, as it would be made later anyway: a batch of large faces would fill the memory.
        size = self.checkpoint.config.model.preprocessing.size
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
