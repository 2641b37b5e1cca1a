import numpy as np
import pytest
import torch

from fer.config import ModelConfig, Preprocessing, TrainConfig
from fer.features import augmented_features, feature_file, trunk_features, tta_features
from fer.inference import predict_logits
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


def compute_nothing(_, inputs, __):
    assert len(inputs[0]) == 1, "computed again"  # one face finds the shape


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
    model.trunk.register_forward_hook(compute_nothing)
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


def test_another_pooling_has_its_own_file():
    """Two VGG16 trunks that differ in the last pooling alone have the same weights, and another grid."""
    torch.manual_seed(0)
    four, five = (create_model(ModelConfig(head="gap", batch_norm=False, poolings=poolings)) for poolings in (4, 5))
    five.trunk.load_state_dict(four.trunk.state_dict())
    assert feature_file(four, "key") != feature_file(five, "key")


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flip", 2), ("ten-crop", 10)])
def test_a_head_on_the_views_says_what_the_whole_model_says(model, tta, count):
    """`fer rank` compares heads by these, and its figures have to be those of `fer evaluate`."""
    views = tta_features(model, FACES, "key", tta)
    assert len(views) == count
    with torch.no_grad():
        logits = np.mean([model.head(torch.from_numpy(view.astype(np.float32))).numpy() for view in views], axis=0)
    expected = predict_logits(model, FACES, CONFIG.preprocessing, tta=tta)
    assert logits == pytest.approx(expected, abs=2e-3 * float(np.abs(expected).max()))


def test_the_face_itself_is_kept_once(model, tmp_path):
    """It is a view of "none" and of "flip"; the middle of ten crops is another."""
    trunk_features(model, FACES, "key")
    tta_features(model, FACES, "key", "flip")
    assert len(list((tmp_path / "features").iterdir())) == 2
    tta_features(model, FACES, "key", "ten-crop")
    assert len(list((tmp_path / "features").iterdir())) == 12


def test_random_views_differ_and_are_the_same_again(model, tmp_path):
    """A head needs several views of a face; a resumed benchmark needs those it had, and more of them at will."""
    training = TrainConfig()
    first = augmented_features(model, FACES, "key", 2, training)
    assert [view.shape for view in first] == [(40, 64, 13, 13)] * 2
    plain = trunk_features(model, FACES, "key")
    for a, b in ((first[0], first[1]), (first[0], plain), (first[1], plain)):
        assert all((a[i] != b[i]).mean() > 0.5 for i in range(40))
    more = augmented_features(model, FACES, "key", 3, training)
    assert np.array_equal(more[:2], first)
    for file in (tmp_path / "features").iterdir():
        file.unlink()
    assert np.array_equal(augmented_features(model, FACES, "key", 2, training), first)
    still = TrainConfig(flip=False, shift=0, scale=0, rotation=0, brightness=0, erase=0)
    assert np.array_equal(augmented_features(model, FACES, "key", 1, still)[0], plain)
