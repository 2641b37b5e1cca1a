"""Facial expression recognition with tensor regression layers.

    from fer import EmotionRecognizer

    recognizer = EmotionRecognizer.load("vgg16-cp-trl")
    for face in recognizer.analyze("photo.jpg"):
        print(face.box, face.emotion, face.probabilities)

``import fer`` is light: each name below loads its module when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fer.checkpoint import load_checkpoint
    from fer.emotions import EMOTIONS, Emotion
    from fer.errors import (
        CameraError,
        CheckpointError,
        ConfigError,
        DatasetError,
        DetectorError,
        ExportError,
        FerError,
        ImageError,
    )
    from fer.models import create_model
    from fer.recognizer import EmotionRecognizer, FacePrediction
    from fer.trl import CPTRL, TTTRL, TuckerTRL

__all__ = [
    "CPTRL",
    "EMOTIONS",
    "TTTRL",
    "CameraError",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DetectorError",
    "Emotion",
    "EmotionRecognizer",
    "ExportError",
    "FacePrediction",
    "FerError",
    "ImageError",
    "TuckerTRL",
    "create_model",
    "load_checkpoint",
]

__version__ = "0.1.0"

_HOMES = {
    "fer.checkpoint": ("load_checkpoint",),
    "fer.emotions": ("EMOTIONS", "Emotion"),
    "fer.errors": (
        "CameraError",
        "CheckpointError",
        "ConfigError",
        "DatasetError",
        "DetectorError",
        "ExportError",
        "FerError",
        "ImageError",
    ),
    "fer.models": ("create_model",),
    "fer.recognizer": ("EmotionRecognizer", "FacePrediction"),
    "fer.trl": ("CPTRL", "TTTRL", "TuckerTRL"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
