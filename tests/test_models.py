import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import vgg

from fer.config import IMAGENET_GREY, RECIPES, ModelConfig, Preprocessing
from fer.errors import CheckpointError
from fer.models import EmotionModel, create_model, layer_shapes, load_imagenet_trunk, replace_classifier
from fer.preprocessing import prepare
from fer.trl import CPTRL

HEADS = ("cp-trl", "tucker-trl", "tt-trl", "dense", "fc", "gap")


def on_meta(config: ModelConfig) -> EmotionModel:
    with torch.device("meta"):
        return EmotionModel(config)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (ModelConfig(poolings=4), (512, 3, 3)),
        (ModelConfig(poolings=3), (512, 6, 6)),
        (ModelConfig(poolings=5, batch_norm=False, preprocessing=Preprocessing(size=224)), (512, 7, 7)),
        (ModelConfig(trunk="cnn"), (256, 3, 3)),
        (ModelConfig(trunk="guide-cnn", preprocessing=Preprocessing(size=32, channels=3)), (64, 13, 13)),
    ],
)
def test_trunks_end_in_the_shapes_that_are_documented(config, shape):
    """Else a tensor regression layer would have other modes than the guide and the README say."""
    model = on_meta(config)
    assert tuple(model.trunk_shape()) == shape
    assert tuple(model.head.input_shape) == shape


def test_the_guides_small_network_is_built_as_in_the_guide():
    """Else whoever follows the guide would find another network."""
    model = create_model(RECIPES["guide-cnn"].model)
    kinds = [type(layer).__name__ for layer in model.trunk]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU"]
    assert [(c.in_channels, c.out_channels) for c in model.trunk if isinstance(c, nn.Conv2d)] == [(3, 32), (32, 64)]
    assert isinstance(model.head, CPTRL)
    assert model.head.rank == (100,)
    assert size(model.head) == 100 * (64 + 13 + 13 + 7) + 7
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_vgg16_is_torchvisions():
    """Else ImageNet's weights would not mean what they meant there."""
    ours = on_meta(RECIPES["guide-vgg16"].model).trunk
    with torch.device("meta"):
        theirs = torchvision.models.vgg16().features
    assert [type(a) for a in ours] == [type(b) for b in theirs]
    assert [p.shape for p in ours.parameters()][2:] == [p.shape for p in theirs.parameters()][2:]
    assert ours[0].weight.shape == (64, 1, 3, 3)


def test_the_scratch_network_is_small():
    """Else it would be no choice for a small machine."""
    assert size(on_meta(RECIPES["cnn-cp-trl"].model)) < 3_000_000


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("trunk", ["vgg16", "cnn", "guide-cnn"])
def test_any_trunk_takes_any_head_and_both_learn(trunk, head):
    """Else some --trunk and --head could not be trained together."""
    torch.manual_seed(0)
    config = ModelConfig(trunk=trunk, head=head, rank=4, preprocessing=Preprocessing(size=32))
    model = create_model(config)
    logits = model(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.head.training


def test_the_fc_head_is_vggs_own():
    """Else 'fc instead' would compare with something else than VGG16's three layers."""
    head = on_meta(ModelConfig(head="fc", poolings=5, preprocessing=Preprocessing(size=224))).head
    with torch.device("meta"):
        theirs = torchvision.models.vgg16(num_classes=7).classifier
    assert [p.shape for p in head.parameters()] == [p.shape for p in theirs.parameters()]
    assert [m.p for m in head if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_the_same_seed_makes_the_same_network_in_channels_last():
    """Else a run could not be repeated, and would take longer than it must."""
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(create_model(ModelConfig(trunk="cnn", rank=4)))
    for a, b in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(a, b)
    kernels = [m.weight for m in models[0].modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_finding_the_shape_changes_nothing():
    """Else merely making a model would disturb its BatchNorm or its mode."""
    model = create_model(ModelConfig(trunk="cnn", rank=4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.trunk_shape()
    layer_shapes(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", RECIPES)
def test_layers_add_up_to_the_network(name):
    """Else `fer models RECIPE` would hide some layer or count it twice."""
    model = on_meta(RECIPES[name].model)
    rows = layer_shapes(model)
    assert sum(row[3] for row in rows) == size(model)
    assert rows[-1][1:3] == ("CPTRL", (7,))
    assert tuple(model.trunk_shape()) in {tuple(row[2]) for row in rows}


def test_the_layers_of_an_fc_head_are_shown_one_by_one():
    """Else `fer models` would not show what a tensor regression layer replaces."""
    model = on_meta(ModelConfig(trunk="guide-cnn", head="fc", preprocessing=Preprocessing(size=32)))
    rows = layer_shapes(model)
    assert [row[2:] for row in rows if row[1] == "Linear"] == [
        ((4096,), (64 * 13 * 13 + 1) * 4096),
        ((4096,), 4097 * 4096),
        ((7,), 4097 * 7),
    ]
    assert sum(row[3] for row in rows) == size(model)


@pytest.mark.parametrize(
    ("name", "attribute", "shape"),
    [
        ("alexnet", "classifier", (256, 6, 6)),
        ("vgg16", "classifier", (512, 7, 7)),
        ("resnet50", "fc", (2048, 7, 7)),
    ],
)
def test_a_known_networks_classifier_can_be_replaced(name, attribute, shape):
    """Else the guide's table could not be computed for it."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    found, layer = replace_classifier(model, rank=10, num_classes=1000)
    assert found == attribute
    assert (tuple(layer.input_shape), layer.num_classes, layer.rank) == (shape, 1000, (10,))


# -- ImageNet ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights of VGG16's convolutions, under torchvision's names."""
    torch.manual_seed(0)
    features = vgg.make_layers(vgg.cfgs["D"])
    weights: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(features):
        if isinstance(layer, nn.Conv2d):
            scale = (2 / (9 * layer.in_channels)) ** 0.5 * (1.7 if index else 1)  # sizes grow from layer to layer
            weights[f"features.{index}.weight"] = scale * torch.randn(layer.weight.shape)
            weights[f"features.{index}.bias"] = 0.1 * torch.randn(layer.out_channels)
    return weights


@pytest.fixture(scope="module")
def file(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file(state, path)
    return path


def trunk_of(file: Path, faces: np.ndarray, **settings: object) -> tuple[nn.Sequential, ModelConfig]:
    config = ModelConfig(head="gap", preprocessing=IMAGENET_GREY, **settings)
    model = create_model(config)
    load_imagenet_trunk(model.trunk, str(file), torch.from_numpy(prepare(faces, config.preprocessing)))
    return model.trunk.eval(), config


@torch.no_grad()
def test_batch_norm_is_inserted_without_changing_what_the_trunk_computes(file, synthetic):
    """Else training would start from features that the pretrained network does not have."""
    faces = synthetic.split("train").images
    plain, config = trunk_of(file, faces[:64], batch_norm=False)
    normed, _ = trunk_of(file, faces[:64], batch_norm=True)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in normed) == 13
    x = torch.from_numpy(prepare(faces[64:96], config.preprocessing))  # not those it was calibrated on
    expected, found = (t(x).double().transpose(0, 1).flatten(1) for t in (plain, normed))  # (512, positions)
    factor = (expected * found).sum(1) / (expected**2).sum(1)
    alive = expected.abs().amax(1) > 0
    assert alive.float().mean() > 0.9
    assert (factor[alive] > 0).all()
    error = (found - factor[:, None] * expected).norm(dim=1) / found.norm(dim=1)
    assert error[alive].max() < 1e-4
    for layer in normed:  # and neither explodes nor dies on the way
        x = layer(x)
        if isinstance(layer, nn.BatchNorm2d):
            assert 0.1 < x.std() < 10


@torch.no_grad()
def test_the_grey_first_layer_sees_what_the_rgb_one_sees_in_grey_images(file, state, synthetic):
    """Else ImageNet's edge detectors would answer to grey faces as they never did."""
    faces = synthetic.split("train").images[:8]
    grey = torch.from_numpy(faces[:, None] / 255.0).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    rgb = (grey.expand(-1, 3, -1, -1) - mean) / std
    expected = nn.functional.conv2d(rgb, state["features.0.weight"], state["features.0.bias"], padding=1)
    inside = (..., slice(1, -1), slice(1, -1))  # the border pads with zeros, which are another grey in each
    for channels in (1, 3):
        p = dataclasses.replace(IMAGENET_GREY, channels=channels)
        model = create_model(ModelConfig(head="gap", batch_norm=False, preprocessing=p))
        load_imagenet_trunk(model.trunk, str(file), torch.empty(0))
        found = model.trunk[0](torch.from_numpy(prepare(faces, p)))
        assert (found - expected)[inside].abs().max() < 1e-4


@torch.no_grad()
def test_a_pth_file_is_read_too(state, file, tmp_path, synthetic):
    """Else torchvision's own download could not be given as --weights."""
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    faces = synthetic.split("train").images[:8]
    a, _ = trunk_of(tmp_path / "vgg16.pth", faces, poolings=3)
    b, _ = trunk_of(file, faces, poolings=3)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert a.training is False


def test_unusable_weights_are_refused_by_name(state, tmp_path):
    """Else a wrong file would give a traceback, or a network that is silently wrong."""
    trunk = create_model(ModelConfig(head="gap", batch_norm=False)).trunk

    def refusal(path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_imagenet_trunk(trunk, str(path), torch.empty(0))
        return str(caught.value)

    assert "no weights at" in refusal(tmp_path / "gone.safetensors")
    for name in ("junk.safetensors", "junk.pth"):
        (tmp_path / name).write_bytes(b"not weights at all")
        assert "cannot read weights from" in refusal(tmp_path / name)
    less = {name: tensor for name, tensor in state.items() if name != "features.28.bias"}
    save_file(less, tmp_path / "less.safetensors")
    assert "has no features.28.bias: expected VGG16's" in refusal(tmp_path / "less.safetensors")
    other = state | {"features.0.weight": torch.zeros(64, 1, 3, 3)}
    save_file(other, tmp_path / "other.safetensors")
    assert "features.0 of shape (64, 1, 3, 3), expected (64, 3, 3, 3)" in refusal(tmp_path / "other.safetensors")
