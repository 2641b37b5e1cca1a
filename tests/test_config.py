import dataclasses
import json

import pytest

from fer.config import (
    RECIPES,
    Config,
    ModelConfig,
    Preprocessing,
    TrainConfig,
    command_line,
    from_dict,
    recipe,
    to_dict,
)
from fer.errors import ConfigError


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_the_way_through_json(name):
    """Else a checkpoint's config.json would not rebuild the network that was trained."""
    assert recipe(name).name == name
    assert from_dict(Config, json.loads(json.dumps(to_dict(RECIPES[name])))) == RECIPES[name]


def test_an_unknown_recipe_is_refused_with_those_that_are_known():
    """Else a typing error would end in a KeyError."""
    with pytest.raises(ConfigError, match="unknown recipe 'vgg19'; known are vgg16-cp-trl, cnn-cp-trl"):
        recipe("vgg19")


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Preprocessing, {"size": 8}, "size must be at least 16"),
        (Preprocessing, {"channels": 2}, "channels must be 1 or 3"),
        (Preprocessing, {"std": 0.0}, "std must be positive"),
        (ModelConfig, {"rank": 0}, "rank must be at least 1"),
        (ModelConfig, {"tensor_dropout": 1.0}, r"tensor dropout must be in \[0, 1\)"),
        (ModelConfig, {"dropout": -0.1}, "dropout"),
        (ModelConfig, {"poolings": 6}, "poolings must be 1 to 5"),
        (
            ModelConfig,
            {"poolings": 5, "preprocessing": Preprocessing(size=31)},
            "5 poolings leave nothing of 31 pixels",
        ),
        (TrainConfig, {"epochs": 0}, "epochs must be at least 1"),
        (TrainConfig, {"batch_size": 0}, "batch size"),
        (TrainConfig, {"lr": 0.0}, "lr must be positive"),
        (TrainConfig, {"trunk_lr": 0.0}, "trunk lr must be positive"),
        (TrainConfig, {"epochs": 2, "head_epochs": 3.0}, "head epochs"),
        (TrainConfig, {"freeze_blocks": -1}, "freeze blocks"),
        (TrainConfig, {"freeze_after": -1}, "freeze after"),
        (TrainConfig, {"warmup": 1.0}, "warmup"),
        (TrainConfig, {"ema": 1.0}, "ema"),
        (TrainConfig, {"label_smoothing": 1.0}, "label smoothing"),
        (TrainConfig, {"ferplus": 1.1}, "ferplus"),
        (TrainConfig, {"mixup": -1.0}, "mixup must not be negative"),
        (TrainConfig, {"limit": -1}, "limit must not be negative"),
        (TrainConfig, {"seed": -1}, "seed must not be negative"),
        (TrainConfig, {"scale": 1.0}, r"scale must be in \[0, 1\)"),
        (TrainConfig, {"erase": 1.5}, "erase"),
        (TrainConfig, {"freeze_trunk": True, "head_epochs": 1.0}, "leave head_epochs at 0"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_loaded(cls, values, message):
    """Else they would fail hours later, deep in a library."""
    with pytest.raises(ConfigError, match=message):
        cls(**values)


def test_settings_that_only_one_trunk_has_are_refused_for_others():
    """Else `fer train cnn-cp-trl --weights imagenet` would end in a traceback, or train what was to rest."""
    with pytest.raises(ConfigError, match="vgg16 trunk only; cnn starts with --weights none or"):
        Config("mine", ModelConfig(trunk="cnn"), TrainConfig(weights="imagenet"))
    for trunk, blocks in (("cnn", 0), ("vgg16", 4)):
        with pytest.raises(ConfigError, match=f"freeze blocks must be at most {blocks}, not 5"):
            Config("mine", ModelConfig(trunk=trunk), TrainConfig(freeze_blocks=5))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["model"].pop("rank"), "ModelConfig lacks rank"),
        (lambda d: d["model"].update(colour="grey"), "ModelConfig has unknown colour"),
        (lambda d: d["model"].update(rank="32"), "ModelConfig.rank must be int, not '32'"),
        (lambda d: d["model"].update(batch_norm=1), "ModelConfig.batch_norm must be bool"),
        (lambda d: d["model"].update(trunk="resnet"), "ModelConfig.trunk must be one of vgg16, cnn, guide-cnn"),
        (lambda d: d["model"].update(preprocessing=48), "Preprocessing must be an object, not int"),
        (lambda d: d["model"]["preprocessing"].update(mean=None), "Preprocessing.mean must be float"),
        (lambda d: d["training"].update(trunk_lr="fast"), "TrainConfig.trunk_lr must be float"),
        (lambda d: d["training"].update(epochs=0), "epochs must be at least 1"),
    ],
)
def test_a_damaged_record_is_refused_by_name(edit, message):
    """Else an edited config.json would build another network than its weights belong to."""
    values = to_dict(RECIPES["vgg16-cp-trl"])
    edit(values)
    with pytest.raises(ConfigError, match=message):
        from_dict(Config, values)


def test_whole_numbers_stand_for_floats_and_null_for_none():
    """Else a config.json written by another JSON library could not be read."""
    values = to_dict(RECIPES["guide-cnn"])
    values["model"]["tensor_dropout"] = 0
    values["training"]["trunk_lr"] = None
    config = from_dict(Config, values)
    assert config.model.tensor_dropout == 0.0
    assert isinstance(config.model.tensor_dropout, float)
    assert config.training.trunk_lr is None


def test_command_line_repeats_a_run():
    """Else the command on a model card would train something else."""
    base = RECIPES["guide-cnn"]
    training = dataclasses.replace(base.training, epochs=3, flip=False, resume=True, data="my data")
    config = Config("guide-cnn", dataclasses.replace(base.model, rank=7), training)
    assert command_line(config) == "fer train guide-cnn --rank 7 --data 'my data' --epochs 3 --no-flip"
    assert command_line(base) == "fer train guide-cnn"


def test_a_run_has_its_own_folder():
    """Else two recipes would write over each other."""
    assert RECIPES["cnn-cp-trl"].run_folder.as_posix() == "runs/cnn-cp-trl"
    elsewhere = dataclasses.replace(RECIPES["cnn-cp-trl"], training=TrainConfig(output="elsewhere"))
    assert elsewhere.run_folder.as_posix() == "elsewhere"
