"""A machine without PyTorch would get no answer, or another one, if any of these failed."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import skimage.data

from fer import EmotionRecognizer
from fer.config import PredictConfig
from fer.errors import CheckpointError, ConfigError
from fer.faces import RetinaFace
from fer.onnx_runtime import OnnxCheckpoint, load_onnx

PHOTO = skimage.data.astronaut()
PAIR = np.hstack([PHOTO, np.ascontiguousarray(PHOTO[:, ::-1]) // 3])
NOISE = np.random.default_rng(0).integers(0, 256, (9, 48, 48), np.uint8)
FACES = (NOISE * np.linspace(0, 1, 9)[:, None, None]).astype(np.uint8)  # from black to full contrast

#: All that a machine needs to recognise: four packages, and what these need themselves.
NEEDED = {"numpy", "cv2", "onnxruntime", "retinaface", "google", "flatbuffers", "packaging", "fer"}

ALONE = """if True:
    import importlib.metadata, json, sys
    installed = set(importlib.metadata.packages_distributions()) - set({needed!r}) - set(sys.stdlib_module_names)
    assert {{"torch", "torchvision", "tltorch", "tensorly", "gradio", "safetensors", "PIL", "tqdm"}} <= installed

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in installed:
                raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

    sys.meta_path.insert(0, Blocked())
    from fer import EmotionRecognizer, ImageError

    recognizer = EmotionRecognizer.load({checkpoint!r}, runtime="onnx", detector="retinaface", tta="flip")
    faces = [recognizer.analyze({photo!r}), recognizer.analyze(open({photo!r}, "rb").read())]
    for junk in ("/nowhere/photo.png", b"junk", b""):
        try:
            recognizer.analyze(junk)
            raise AssertionError(f"{{junk}} was read")
        except ImageError:
            pass
    print(json.dumps([[face.box, list(face.probabilities.values())] for found in faces for face in found]))
"""


@pytest.fixture(scope="module")
def detector() -> RetinaFace:
    return RetinaFace(threads=1)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(exported, tmp_path / "copy")


def recognizer(folder: Path, detector: RetinaFace, runtime: str, **options: str) -> EmotionRecognizer:
    return EmotionRecognizer.load(folder, runtime=runtime, device="cpu", detector=detector, **options)


def refusal(name: object, **options: str) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        EmotionRecognizer.load(name, detector="retinaface", **options)
    return str(caught.value)


def edit_metadata(file: Path, **changes: str) -> None:
    model = onnx.load(file)
    meta = {prop.key: prop.value for prop in model.metadata_props} | changes
    onnx.helper.set_model_props(model, meta)
    onnx.save(model, file)


def test_four_packages_are_enough(exported, detector, tmp_path):
    """Else a small machine would have to install PyTorch, many times the size of all that it uses."""
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), cv2.cvtColor(PAIR, cv2.COLOR_RGB2BGR))
    code = ALONE.format(needed=NEEDED, checkpoint=str(exported), photo=str(photo))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = recognizer(exported, detector, "torch", tta="flip").analyze(photo)
    assert len(expected) == 2
    answers = json.loads(done.stdout)
    for (box, probabilities), face in zip(answers, expected * 2, strict=True):
        assert tuple(box) == face.box
        assert probabilities == pytest.approx(list(face.probabilities.values()), abs=1e-4)


@pytest.mark.parametrize("tta", ["none", "flip", "ten-crop"])
def test_both_runtimes_agree(exported, detector, tta):
    """Else the choice of a runtime would be a choice of answers."""
    torch_, onnx_ = (recognizer(exported, detector, runtime, tta=tta) for runtime in ("torch", "onnx"))
    expected = torch_.classify(FACES)
    assert np.ptp(expected, axis=0).max() > 0.1
    assert onnx_.classify(FACES) == pytest.approx(expected, abs=1e-4)
    assert onnx_.classify(FACES, batch_size=2) == pytest.approx(expected, abs=1e-4)
    assert onnx_.classify([]).shape == (0, 7)


def test_threads_share_a_network(exported):
    """Else two visitors of the page would disturb each other."""
    network = load_onnx(exported, threads=2)
    batches = [np.random.default_rng(i).standard_normal((4, 1, 48, 48)).astype(np.float32) for i in range(8)]
    expected = [network.logits(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(network.logits, batches * 4))
    for answer, right in zip(answers, expected * 4, strict=True):
        assert answer == pytest.approx(right, abs=1e-5)


def test_the_file_is_found_by_folder_and_by_path(folder, tmp_path, detector):
    """Else a user would not get the network that they exported."""
    both = load_onnx(folder)
    assert isinstance(both, OnnxCheckpoint)
    assert both.file == folder / "model.onnx"
    (folder / "model.onnx").rename(folder / "model-int8.onnx")
    assert load_onnx(folder).file == folder / "model-int8.onnx"
    alone = (folder / "model-int8.onnx").rename(tmp_path / "mine.onnx")
    assert load_onnx(alone).file == alone
    config = PredictConfig(checkpoint=str(alone), runtime="onnx", detector="retinaface")
    assert EmotionRecognizer.from_config(config).analyze(PHOTO)[0].face == detector.detect(PHOTO)[0]


def test_what_is_missing_is_said_with_the_command_that_makes_it(folder, tmp_path):
    """Else a user would not know where the file comes from."""
    (folder / "model.onnx").unlink()
    message = refusal(folder, runtime="onnx")
    assert "has neither model.onnx nor model-int8.onnx" in message
    assert f"`fer export {folder} --format onnx`" in message
    assert "`fer export NAME --out" in refusal(tmp_path / "gone.onnx", runtime="onnx")
    assert "no checkpoint 'vgg17'" in refusal("vgg17", runtime="onnx")


def test_runtime_and_settings_that_do_not_go_together_are_refused(exported):
    """Else --device cuda would quietly be slow, or an .onnx file end in PyTorch's traceback."""
    assert "leave the device at auto" in refusal(exported, runtime="onnx", device="cuda")
    assert "choose runtime onnx" in refusal(exported / "model.onnx")


@pytest.mark.parametrize("change", [{"temperature": 3.0}, {"sha256": "0" * 64}])
def test_a_file_older_than_its_checkpoint_is_noticed(folder, change):
    """Else a user who trained on would go on using the old network."""
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | change))
    message = refusal(folder, runtime="onnx")
    assert "was exported before the checkpoint beside it last changed" in message
    assert f"`fer export {folder}`" in message
    assert load_onnx(folder / "model.onnx").name == "tiny"  # by its own name it is used as it is


def test_damaged_and_foreign_files_are_refused(folder):
    """Else they would end in a traceback of ONNX Runtime's, or answer nonsense."""
    file = folder / "model.onnx"
    content = file.read_bytes()
    for junk in (content[: len(content) // 2], b"<html>not found</html>", b""):
        file.write_bytes(junk)
        assert "export it again, or fetch it again" in refusal(file, runtime="onnx")
    file.write_bytes(content)
    edit_metadata(file, format="0")
    assert "format is '0', expected '1'" in refusal(file, runtime="onnx")
    file.write_bytes(content)
    edit_metadata(file, preprocessing='{"size": 48}')
    assert "Preprocessing lacks" in refusal(file, runtime="onnx")
    file.write_bytes(content)
    edit_metadata(file, labels='["happy"]')
    assert "labels are ['happy']" in refusal(file, runtime="onnx")
