import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fer.config import HeadTraining, ModelConfig, Preprocessing, TrainConfig
from fer.dataset import Dataset
from fer.errors import ConfigError
from fer.heads import HeadData, as_linear, fit_linear, head_data, head_logits, shares_right, train_head
from fer.models import EmotionModel, create_head, create_model

CONFIG = ModelConfig(trunk="guide-cnn", head="dense", preprocessing=Preprocessing(size=16))
SHAPE = torch.Size((64, 5, 5))
BUDGET = HeadTraining(views=2, epochs=3, batch_size=32, lr=3e-3)


@pytest.fixture(scope="module")
def model() -> EmotionModel:
    torch.manual_seed(0)
    return create_model(CONFIG).eval()


@pytest.fixture(scope="module")
def data(synthetic: Dataset) -> Dataset:
    """Some of the schematic faces; the first ten of train are called copies, the first ten of val leaked."""
    splits = {}
    for name, split in synthetic.splits.items():
        marks = {"copies" if name == "train" else "leaked": np.arange(210) < 10}
        marks |= {other: np.zeros(210, bool) for other in {"copies", "leaked"} - marks.keys()}
        splits[name] = dataclasses.replace(split, images=split.images[:210], labels=split.labels[:210], **marks)
    return dataclasses.replace(synthetic, splits=splits)


@pytest.fixture(scope="module")
def features(model, data, tmp_path_factory) -> HeadData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FER_CACHE", str(tmp_path_factory.mktemp("cache")))
        return head_data(model, data, BUDGET, TrainConfig(), "flip")


def head(kind: str, **settings) -> nn.Module:
    torch.manual_seed(1)
    return create_head(dataclasses.replace(CONFIG, head=kind, **settings), SHAPE).eval()


def test_copies_are_left_out_and_views_take_turns(features, data):
    """A copy would count twice; one view alone would be learned by heart."""
    assert features.chosen.tolist() == list(range(10, 210))
    assert [len(views) for views in (features.views, features.val)] == [2, 2]
    rows = np.array([11, 12, 205])
    x, targets = features.batch(rows, 0)
    y, _ = features.batch(rows, 1)
    assert x.shape == (3, *SHAPE)
    assert torch.equal(x[0], torch.tensor(features.views[1][11]).float())
    assert torch.equal(y[0], torch.tensor(features.views[0][11]).float())
    assert torch.equal(features.batch(rows, 2)[0], x)
    assert targets.argmax(1).tolist() == data.split("train").labels[rows].tolist()


@pytest.fixture(scope="module")
def learnable() -> HeadData:
    """Features that tell the classes well, but not perfectly, apart."""
    rng = np.random.default_rng(0)
    templates, labels = rng.normal(0, 0.2, (7, *SHAPE)), rng.integers(0, 7, 600)
    templates += rng.normal(0, 0.3, (7, 64, 1, 1))

    def view() -> np.ndarray:
        return (templates[labels] + rng.normal(0, 1, (600, *SHAPE))).astype(np.float16)

    targets, leaked = np.eye(7, dtype=np.float32)[labels], np.arange(200) < 100
    return HeadData(
        "noise", [v[:400] for v in (view(), view())], np.arange(400), targets, [view()[400:]], labels[400:], leaked
    )


@pytest.mark.parametrize("kind", ["dense", "cp-trl", "tucker-trl", "tt-trl", "gap"])
def test_a_head_learns_and_the_seed_decides_how(learnable, kind):
    """A table of heads is worth nothing where one of them was not trained, or where a second run differs."""
    heads = [head(kind, rank=8) for _ in range(2)]
    assert shares_right(head_logits(heads[0], learnable.val), learnable)[0] < 0.4
    for one in heads:
        train_head(one, learnable, dataclasses.replace(BUDGET, epochs=10, lr=1e-2), seed=3)
    first, second = (head_logits(one, learnable.val) for one in heads)
    assert np.array_equal(first, second)
    assert not heads[0].training
    accuracy, leak_free = shares_right(first, learnable)
    assert accuracy > 0.8
    assert leak_free == pytest.approx((first.argmax(1) == learnable.labels)[100:].mean())


def test_any_number_of_steps_will_do(features):
    """Ten were one division by nothing."""
    for batch_size, epochs in ((200, 1), (100, 1), (20, 1), (40, 2), (200, 10)):
        config = HeadTraining(epochs=epochs, batch_size=batch_size)
        head = create_head(ModelConfig(rank=2), torch.Size(features.views[0].shape[1:]))
        train_head(head, features, config)
        assert all(p.isfinite().all() for p in head.parameters())


def test_more_images_a_step_than_there_are_is_refused(features):
    """Else the training would silently do nothing."""
    with pytest.raises(ConfigError, match="batch size 256 is larger than the 200 training images"):
        train_head(head("dense"), features, HeadTraining(), seed=0)


@pytest.mark.parametrize("kind", ["dense", "gap", "cp-trl", "tucker-trl", "tt-trl"])
def test_a_linear_head_is_read_off_exactly(kind):
    """The first step of a conversion; what is lost here no fine-tuning would know about."""
    one = head(kind, rank=5).double()
    for parameter in one.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(6, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        expected = one(x)
    one.float()
    torch.testing.assert_close(as_linear(one, SHAPE)(x.flatten(1).float()).double(), expected, rtol=1e-3, atol=1e-3)


def test_the_fitted_map_of_a_linear_head_is_that_head(features):
    """Least squares that do not find a map which is there would not find the nearest one either."""
    one = head("gap")
    linear = fit_linear(one, features, ridge=1e-9)
    x, _ = features.batch(features.chosen, 0)
    with torch.no_grad():
        expected, found = one(x), linear(x.flatten(1))
    assert float((found - expected).norm() / expected.norm()) < 1e-2


def test_the_fitted_map_follows_a_head_with_hidden_layers(features):
    """fc has no equal among linear maps; the nearest one has to agree with it far more often than chance."""
    one = head("fc")
    train_head(one, features, dataclasses.replace(BUDGET, epochs=1, lr=1e-3), seed=0)
    linear = nn.Sequential(nn.Flatten(), fit_linear(one, features))
    theirs, ours = (head_logits(h, features.val) for h in (one, linear))
    assert (theirs.argmax(1) == ours.argmax(1)).mean() > 0.6
