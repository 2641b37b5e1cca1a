import numpy as np
import pytest
import torch

from fer.config import ModelConfig, Preprocessing
from fer.features import feature_file, trunk_features
from fer.models import EmotionModel, create_model
from fer.preprocessing import prepare

CONFIG = ModelConfig(trunk="guide-cnn", rank=2, preprocessing=Preprocessing(size=32))
FACES = np.random.default_rng(0).integers(0, 256, (40, 48, 48), np.uint8)  # more than one batch, and not a whole number


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_CACHE", str(tmp_path))


@pytest.fixture
def model() -> EmotionModel:
    torch.manual_seed(0)
    return create_model(CONFIG).eval()


def test_features_are_the_trunks_outputs(model):
    """Else a head trained on them would not fit its trunk."""
    features = trunk_features(model, FACES, "key")
    assert features.shape == (40, 64, 13, 13)
    assert features.dtype == np.float16
    with torch.no_grad():
        expected = model.trunk(torch.from_numpy(prepare(FACES, CONFIG.preprocessing)))
    assert features == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-3)


def test_the_second_time_they_come_from_the_cache(model, tmp_path):
    """Else every start of a run would compute for hours."""
    first = trunk_features(model, FACES, "key")
    (file,) = (tmp_path / "features").iterdir()  # and no .part is left
    assert file == feature_file(model, "key")
    written = file.stat().st_mtime_ns
    model.trunk.register_forward_hook(lambda *_: pytest.fail("computed again"))
    assert np.array_equal(trunk_features(model, FACES, "key"), first)
    assert file.stat().st_mtime_ns == written


def test_whatever_changes_them_has_its_own_file(model):
    """Else features of another network, of other images or of other pixels would be taken for these."""
    names = {feature_file(model, "key"), feature_file(model, "other images")}
    torch.manual_seed(1)
    names.add(feature_file(create_model(CONFIG), "key"))
    same = create_model(ModelConfig(trunk="guide-cnn", rank=2, preprocessing=Preprocessing(size=32, mean=0.4)))
    same.trunk.load_state_dict(model.trunk.state_dict())
    names.add(feature_file(same, "key"))
    assert len(names) == 4

    other_head = create_model(ModelConfig(trunk="guide-cnn", rank=9, preprocessing=Preprocessing(size=32)))
    other_head.trunk.load_state_dict(model.trunk.state_dict())
    assert feature_file(other_head, "key") in names
