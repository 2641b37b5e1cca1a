import importlib.metadata
import subprocess
import sys

import pytest

import fer


def test_public_names_are_these_and_can_all_be_had():
    """Else code that worked with one release would fail with the next."""
    assert fer.__all__ == [
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
    for name in fer.__all__:
        assert name == "EMOTIONS" or getattr(fer, name).__module__.startswith("fer.")
    assert tuple(fer.Emotion) == fer.EMOTIONS
    with pytest.raises(AttributeError, match="has no attribute 'EmotionRecogniser'"):
        fer.EmotionRecogniser  # noqa: B018


def test_every_error_can_be_caught_as_one():
    """Else a program would have to name them all to go on after a bad image."""
    for name in fer.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(fer, name), fer.FerError)


def test_the_version_is_the_packages():
    """Else a report of a bug would name another release."""
    assert fer.__version__ == importlib.metadata.version("fer-trl")


def test_import_is_light_and_loading_a_recognizer_needs_neither_training_nor_web():
    """Else every program that only imports the package, and every webcam, would wait for libraries it does not use."""
    code = """if True:
        import sys

        def loaded(*names):
            return [name for name in names if name in sys.modules]

        import fer
        assert fer.Emotion(3).label == "happy"
        assert not loaded("torch", "gradio", "accelerate", "matplotlib", "albumentations", "cv2", "numpy"), loaded()
        fer.EmotionRecognizer, fer.load_checkpoint, fer.create_model
        assert not loaded("gradio", "accelerate", "matplotlib", "albumentations", "fer.training"), "heavy"
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
