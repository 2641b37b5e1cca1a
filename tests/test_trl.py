"""The tensor regression layers against tensorly, einsum, autograd's own check and their statistics."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import tensorly as tl
import tltorch
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fer.trl
from fer.trl import CPTRL, TTTRL, TensorRegressionLayer, TuckerTRL

LAYERS = (CPTRL, TuckerTRL, TTTRL)
SHAPES = ((6,), (5, 4), (6, 3, 2), (3, 2, 7), (2, 3, 2, 4), (1, 1, 1))
CLASSES = 4

each_layer = pytest.mark.parametrize("make", LAYERS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[True, False], ids=["fold", "contract"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both orders of contraction, each forced once."""
    monkeypatch.setattr(fer.trl, "_folding_pays", lambda *_: request.param)


def reference(layer: TensorRegressionLayer, x: Tensor) -> Tensor:
    """Scores from the dense tensor as tensorly builds it."""
    weight = layer.weight.to_tensor()  # (I1, .., IN, K)
    scores = torch.einsum("bi,ik->bk", x.flatten(1), weight.reshape(-1, layer.num_classes))
    return (scores if layer.bias is None else scores + layer.bias).detach()


def small(make: type[TensorRegressionLayer], rank: int = 3, **options: float) -> tuple[TensorRegressionLayer, Tensor]:
    return make((6, 3, 2), CLASSES, rank, **options).double(), torch.randn(5, 6, 3, 2, dtype=torch.float64)


# -- the map ----------------------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 3, 11])
@pytest.mark.usefixtures("order")
def test_scores_are_those_of_the_dense_tensor(
    make: type[TensorRegressionLayer], shape: tuple[int, ...], rank: int
) -> None:
    """Otherwise the layer trained is not the one in the papers. Ranks reach above every dimension."""
    layer = make(shape, CLASSES, rank).double()
    nn.init.normal_(layer.bias)
    for batch in (5, 1, 0):
        x = torch.randn(batch, *shape, dtype=torch.float64)
        expected = reference(layer, x)
        torch.testing.assert_close(layer.train()(x), expected)
        torch.testing.assert_close(layer.eval()(x), expected)
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), expected)


def test_the_weights_are_the_documented_formulas() -> None:
    """The docstrings' formulas are what a student reads: each written out once more, as einsum and with tensorly."""
    cp, tucker, tt = (make((6, 3, 2), CLASSES, 3).double() for make in LAYERS)
    a, b, c, v = cp.weight.factors
    expected = torch.einsum("ar,br,cr,kr->abck", a, b, c, v)
    torch.testing.assert_close(cp.fold().view(CLASSES, 6, 3, 2), expected.movedim(-1, 0))
    torch.testing.assert_close(tl.cp_to_tensor((None, [a, b, c, v])), expected)

    core, (a, b, c, v) = tucker.weight.core, tucker.weight.factors
    expected = torch.einsum("xyzw,ax,by,cz,kw->abck", core, a, b, c, v)
    torch.testing.assert_close(tucker.fold().view(CLASSES, 6, 3, 2), expected.movedim(-1, 0))
    torch.testing.assert_close(tl.tucker_to_tensor((core, [a, b, c, v])), expected)

    a, b, c, v = tt.weight.factors
    expected = torch.einsum("xay,ybz,zcw,wkx->abck", a, b, c, v)
    torch.testing.assert_close(tt.fold().view(CLASSES, 6, 3, 2), expected.movedim(-1, 0))
    torch.testing.assert_close(tl.tt_to_tensor([a, b, c, v]), expected)


@each_layer
@pytest.mark.parametrize("shape", [(6,), (4, 3), (4, 3, 2)], ids=str)
@pytest.mark.usefixtures("order")
def test_gradients(make: type[TensorRegressionLayer], shape: tuple[int, ...]) -> None:
    """A wrong gradient trains to a worse model and says nothing."""
    layer = make(shape, CLASSES, 2).double()
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *_: layer(x), (x, *layer.parameters()))


@each_layer
def test_both_orders_of_contraction_agree(make: type[TensorRegressionLayer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which order is taken depends on the batch size; training must not."""
    layer, x = small(make)
    x.requires_grad_()
    results = []
    for fold in (True, False):
        monkeypatch.setattr(fer.trl, "_folding_pays", lambda *_, fold=fold: fold)
        scores = layer(x)
        results.append((scores, *torch.autograd.grad(scores.square().sum(), (x, *layer.parameters()))))
    for folded, contracted in zip(*results, strict=True):
        torch.testing.assert_close(folded, contracted)


@pytest.mark.parametrize(
    ("batch", "rank", "folds"), [(32, 64, True), (32, 10_000, True), (1, 64, False), (32, 1, False)]
)
def test_the_cheaper_order_is_taken(batch: int, rank: int, folds: bool) -> None:
    """At rank 10,000 and a batch of 32 the other one takes five times as long."""
    assert fer.trl._folding_pays(512, rank, 7, batch) is folds


@each_layer
@pytest.mark.parametrize("rank", [1, 32, 2000])
def test_folded_and_unfolded_agree_in_single_precision(make: type[TensorRegressionLayer], rank: int) -> None:
    """What was validated while training is what the app answers."""
    layer = make((512, 3, 3), 7, rank)
    x = torch.rand(4, 512, 3, 3)
    unfolded = layer(x)
    with torch.inference_mode():
        torch.testing.assert_close(layer.eval()(x), unfolded, rtol=1e-5, atol=1e-5)


@each_layer
def test_channels_last_and_one_sample_at_a_time_give_the_same_scores(make: type[TensorRegressionLayer]) -> None:
    """The trunks run in channels_last; the webcam shows one face, a folder many."""
    layer, x = small(make)
    expected = reference(layer, x)
    for view in (x.to(memory_format=torch.channels_last), x[::2].repeat_interleave(2, 0)[:0]):
        torch.testing.assert_close(layer(view), expected[: len(view)])
        torch.testing.assert_close(layer.eval()(view), expected[: len(view)])
    torch.testing.assert_close(torch.cat([layer.train()(one[None]) for one in x]), expected)


@each_layer
def test_without_bias(make: type[TensorRegressionLayer]) -> None:
    """``bias=False`` must hold in training, in evaluation and in what is exported."""
    layer = make((6, 3, 2), CLASSES, 3, bias=False)
    x = torch.zeros(2, 6, 3, 2)
    assert layer.bias is None
    assert not layer(x).any()
    assert not layer.eval()(x).any()
    assert layer.to_linear().bias is None


# -- tensor dropout ---------------------------------------------------------------------------------------------------


def diagonal(make: type[TensorRegressionLayer], size: int, p: float) -> TensorRegressionLayer:
    """The identity on ``size`` numbers, each through a component of its own: the scores for ones are the mask."""
    layer = make((size,), size, size, tensor_dropout=p)
    with torch.no_grad():
        for factor in layer.weight.parameters():
            factor.copy_(torch.eye(size).view(factor.shape))
    return layer


@each_layer
@pytest.mark.parametrize("size", [100, 600])
def test_dropout_drops_the_share_it_was_given(make: type[TensorRegressionLayer], size: int) -> None:
    """On tltorch's TRL tensor dropout has no effect at all, and a user who regularises with it gets nothing."""
    p, draws = 0.4, 30
    layer = diagonal(make, size, p)
    masks = torch.stack([layer(torch.ones(1, size)) for _ in range(draws)]).detach()
    modes = 2 if make is TuckerTRL else 1  # Tucker has components in the input's and in the classes' mode
    kept = (1 - p) ** modes
    values = torch.tensor([0, 1 / kept])
    assert (masks.unsqueeze(-1) - values).abs().amin(-1).max() < 1e-6
    error = math.sqrt(kept * (1 - kept) / masks.numel())
    assert (masks > 0).double().mean().item() == pytest.approx(kept, abs=5 * error)
    assert not torch.equal(masks[0], masks[1])


@each_layer
@pytest.mark.parametrize("rank", [1, 4, 600])
def test_dropout_keeps_the_expectation(make: type[TensorRegressionLayer], rank: int) -> None:
    """Else a network meets other scores in use than it was trained for. Rank 1 too: tltorch's dropout fails there."""
    layer = make((6, 3), CLASSES, rank, tensor_dropout=0.3).double()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    with torch.no_grad():
        draws = torch.stack([layer(x) for _ in range(1500)])
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - layer.eval()(x)).abs() < 5 * error).all()


@each_layer
def test_dropout_only_where_it_was_asked_for(make: type[TensorRegressionLayer]) -> None:
    """A random answer in use is a bug, unless ``drop_at_test`` asks for it to measure uncertainty."""
    layer, x = small(make, 8, tensor_dropout=0.5)
    expected = reference(layer, x)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x))
        layer.drop_at_test = True
        assert not torch.equal(layer(x), layer(x))
        layer.drop_at_test = False
        torch.testing.assert_close(layer(x), expected)
    layer.train().tensor_dropout = 0.0
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("rank", [3, 600])
def test_dropping_is_leaving_components_out(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """High ranks select the kept components instead of zeroing the others, which must not change a score."""
    layer, x = small(CPTRL, rank, tensor_dropout=0.5)
    mask = 2 * torch.arange(rank, dtype=torch.float64).remainder(2)
    monkeypatch.setattr(layer, "_kept", lambda *_: mask)
    a, b, c, v = layer.weight.factors
    torch.testing.assert_close(layer(x), torch.einsum("nabc,ar,br,cr,kr,r->nk", x, a, b, c, v, mask))


@pytest.mark.parametrize("size", [50, 600])
def test_what_is_dropped_is_not_trained_in_that_step(size: int) -> None:
    """Dropped is dropped: a component that took no part in the answer gets no gradient, the others get theirs."""
    layer = diagonal(CPTRL, size, 0.5)
    mask = layer(torch.ones(1, size))
    mask.sum().backward()
    for factor in layer.weight.factors:
        torch.testing.assert_close(factor.grad.mean(0), mask[0].detach())


@each_layer
@pytest.mark.parametrize("rank", [2, 600])
def test_everything_dropped_leaves_the_bias(make: type[TensorRegressionLayer], rank: int) -> None:
    """At low rank all components can fall at once; that step must not crash a training of hours."""
    layer = make((6, 3, 2), CLASSES, rank, tensor_dropout=1 - 1e-9)
    nn.init.normal_(layer.bias)
    for batch in (1, 64):
        scores = layer(torch.randn(batch, 6, 3, 2))
        scores.sum().backward()
        assert torch.equal(scores, layer.bias.expand_as(scores))


# -- initial scale ----------------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize(("shape", "rank"), [((64, 3, 3), 8), ((64, 3, 3), 64), ((256,), 5), ((4, 4, 4, 4), 16)])
def test_the_first_scores_have_the_size_of_the_activations(
    make: type[TensorRegressionLayer], shape: tuple[int, ...], rank: int
) -> None:
    """tltorch starts with scores ~70 times the activations, and the first steps only undo that."""
    variance = torch.stack([make(shape, 7, rank).fold().square().mean() for _ in range(60)]).mean()
    assert 0.5 < (variance * math.prod(shape)).sqrt() < 2
    assert not make(shape, 7, rank).bias.any()


@each_layer
def test_a_layer_made_without_memory_can_be_initialised_later(make: type[TensorRegressionLayer]) -> None:
    """The way to build large models on the "meta" device; CP's component weights have to become ones there too."""
    with torch.device("meta"):
        layer = make((6, 3, 2), CLASSES, 3)
    layer.to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data.fill_(math.nan)
    layer.reset_parameters()
    x = torch.randn(5, 6, 3, 2)
    torch.testing.assert_close(layer(x), reference(layer, x))


# -- the folded weight ------------------------------------------------------------------------------------------------


def step(optimizer: type[torch.optim.Optimizer], **options: bool) -> Callable[[TensorRegressionLayer, Tensor], None]:
    def change(layer: TensorRegressionLayer, x: Tensor) -> None:
        layer(x).square().sum().backward()
        optimizer(layer.parameters(), lr=0.1, **options).step()

    return change


def in_place(layer: TensorRegressionLayer, _: Tensor) -> None:
    with torch.no_grad():
        layer.weight.factors[1].mul_(2)


def one_number(layer: TensorRegressionLayer, _: Tensor) -> None:
    with torch.no_grad():
        next(layer.weight.parameters())[0, 0] += 1


def other_values(layer: TensorRegressionLayer) -> dict[str, Tensor]:
    return {name: value * 1.5 for name, value in layer.state_dict().items()}


def load(layer: TensorRegressionLayer, _: Tensor) -> None:
    layer.load_state_dict(other_values(layer))


def load_by_assignment(layer: TensorRegressionLayer, _: Tensor) -> None:
    layer.load_state_dict(other_values(layer), assign=True)


def load_in_inference_mode(layer: TensorRegressionLayer, _: Tensor) -> None:
    with torch.inference_mode():
        nn.Sequential(layer).load_state_dict({f"0.{name}": value for name, value in other_values(layer).items()})


def vector(layer: TensorRegressionLayer, _: Tensor) -> None:
    flat = nn.utils.parameters_to_vector(layer.parameters()).detach()
    nn.utils.vector_to_parameters(flat * 2, layer.parameters())


def data_then_eval(layer: TensorRegressionLayer, _: Tensor) -> None:
    layer.train()
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    layer.eval()


def data_then_unfold(layer: TensorRegressionLayer, _: Tensor) -> None:
    next(layer.weight.parameters()).data.mul_(2)
    layer.unfold()


def replace(layer: TensorRegressionLayer, _: Tensor) -> None:
    layer.weight.factors[0] = nn.Parameter(layer.weight.factors[0].detach() * 2)


def replace_weight(layer: TensorRegressionLayer, _: Tensor) -> None:
    layer.weight = type(layer)((6, 3, 2), CLASSES, 3).double().weight


def half_and_back(layer: TensorRegressionLayer, _: Tensor) -> None:
    layer.half().double()


def reset(layer: TensorRegressionLayer, _: Tensor) -> None:
    layer.reset_parameters()


CHANGES = {
    "SGD": step(torch.optim.SGD),
    "foreach": step(torch.optim.AdamW, foreach=True),
    "fused": step(torch.optim.AdamW, fused=True),
    **{f.__name__: f for f in (in_place, one_number, load, load_by_assignment, load_in_inference_mode, vector)},
    **{f.__name__: f for f in (data_then_eval, data_then_unfold, replace, replace_weight, half_and_back, reset)},
}


@each_layer
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_factor_is_folded_anew(
    make: type[TensorRegressionLayer], change: Callable[[TensorRegressionLayer, Tensor], None]
) -> None:
    """A stale cache answers with the weights of an epoch ago, and no error shows it."""
    layer, x = small(make)
    layer.eval()
    with torch.inference_mode():
        before = layer(x)
    change(layer, x)
    with torch.inference_mode():
        after = layer(x)
    torch.testing.assert_close(after, reference(layer, x))
    assert not torch.equal(before, after)


@each_layer
def test_the_folded_weight_is_kept_while_nothing_changes(make: type[TensorRegressionLayer]) -> None:
    """Folding anew for each frame is what makes tltorch's layer 100 times as slow."""
    layer, x = small(make)
    layer.eval()
    first = layer.fold()
    with torch.inference_mode():
        layer(x)
    with torch.no_grad():
        layer(x)
    assert layer.fold().data_ptr() == first.data_ptr()
    assert first.shape == (CLASSES, 36)
    assert not first.requires_grad


@each_layer
def test_a_new_factor_is_not_mistaken_for_a_freed_one(make: type[TensorRegressionLayer]) -> None:
    """Factors are told apart by their address, which the next tensor may get once the memory is free."""
    layer, _ = small(make)
    factor = layer.weight.factors[0]
    memory = StorageWeakRef(factor.untyped_storage())
    layer.fold()
    factor.data = factor.data * 2
    assert not memory.expired()
    layer.fold()
    assert memory.expired()


@each_layer
def test_copies_have_a_folded_weight_of_their_own(make: type[TensorRegressionLayer]) -> None:
    """An averaged model (EMA) is a deep copy that changes in place while the original goes on training."""
    layer, x = small(make)
    size = pickled_size(layer)
    with torch.no_grad():
        layer.eval()(x)
    assert pickled_size(layer) == size
    ema = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    ema.update_parameters(layer)
    for scale in (2, 3):
        with torch.no_grad():
            layer.weight.factors[0].mul_(scale)
            torch.testing.assert_close(ema(x), reference(ema.module, x))
            ema.update_parameters(layer)
            torch.testing.assert_close(ema(x), reference(ema.module, x))
            torch.testing.assert_close(layer(x), reference(layer, x))
            other = copy.deepcopy(layer)
            other.weight.factors[0].zero_()
            torch.testing.assert_close(layer(x), reference(layer, x))
            torch.testing.assert_close(other(x), reference(other, x))


def pickled_size(module: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(module, file)
    return len(file.getvalue())


@each_layer
def test_training_goes_on_after_inference_mode(make: type[TensorRegressionLayer]) -> None:
    """Tensors made in inference mode cannot be trained through: a validation must not leave one behind."""
    layer, x = small(make)
    with torch.inference_mode():
        layer.eval()(x)
    layer.requires_grad_(False)
    x.requires_grad_()
    scores = layer(x)  # nothing learned but the input's gradient wanted, as for a saliency map: by the folded weight
    torch.testing.assert_close(torch.autograd.grad(scores[:, 1].sum(), x)[0][0].flatten(), layer.fold()[1])
    layer.requires_grad_(True)
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@each_layer
def test_a_layer_made_in_inference_mode_is_right_too(make: type[TensorRegressionLayer]) -> None:
    """Its parameters keep no count of changes; it may fold at every call, but not answer with old values."""
    with torch.inference_mode():
        layer, x = small(make)
        layer.eval()
        torch.testing.assert_close(layer(x), reference(layer, x))
        layer.weight.factors[0].mul_(2)
        torch.testing.assert_close(layer(x), reference(layer, x))


@each_layer
def test_autocast_does_not_cost_the_factors_their_precision(make: type[TensorRegressionLayer]) -> None:
    """Products of four factors in bfloat16 are off by percents; and a map folded so would stay for all later calls."""
    layer = make((64, 3, 3), 7, 16)
    x = torch.rand(8, 64, 3, 3)
    expected = reference(layer, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(x)
        layer.eval()
        with torch.no_grad():
            layer(x)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@each_layer
def test_to_linear_is_the_same_map(make: type[TensorRegressionLayer]) -> None:
    """An exported model answers as the model does, and changing one does not change the other."""
    layer, x = small(make)
    nn.init.normal_(layer.bias)
    linear = layer.eval().to_linear()
    expected = reference(layer, x)
    torch.testing.assert_close(linear(x.flatten(1)), expected)
    nn.init.zeros_(linear.weight)
    torch.testing.assert_close(layer(x), expected)


@each_layer
def test_the_evidence_adds_up_to_the_scores(make: type[TensorRegressionLayer]) -> None:
    """A map of where the scores come from that does not sum to them would be a picture of something else."""
    layer, x = small(make)
    nn.init.normal_(layer.bias)
    evidence = layer.evidence(x.requires_grad_())
    assert evidence.shape == (5, CLASSES, 3, 2)
    assert not evidence.requires_grad
    torch.testing.assert_close(evidence.sum((2, 3)) + layer.bias.detach(), reference(layer, x))
    flat = make((6,), CLASSES, 2)
    assert flat.evidence(torch.randn(5, 6)).shape == (5, CLASSES)


# -- from a trained map -----------------------------------------------------------------------------------------------


def dense(shape: tuple[int, ...], bias: bool = True) -> nn.Linear:
    return nn.Linear(math.prod(shape), CLASSES, bias=bias).double().eval()


@each_layer
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_full_rank_conversion_is_the_dense_map(
    make: type[TensorRegressionLayer], shape: tuple[int, ...], bias: bool
) -> None:
    """Who converts a classifier without giving up rank must not lose a single prediction."""
    linear = dense(shape, bias)
    layer = make.from_linear(linear, shape, math.prod(shape) * CLASSES if make is CPTRL else 1000)
    x = torch.randn(5, *shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x.flatten(1)))
    assert layer.fold().dtype == torch.float64
    assert not layer.training
    layer.train()(x).square().sum().backward()
    for factor in layer.parameters():  # the terms that CP has to spare can learn too, through their one factor of zeros
        assert torch.isfinite(factor.grad).all()
    if make is CPTRL:
        assert min(sum(f.grad[:, r].abs().sum() for f in layer.weight.factors) for r in range(layer.rank[0])) > 0


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_conversion_finds_a_map_of_that_rank(rank: int) -> None:
    """A gap head is such a map; alternating least squares that stop early would cost it accuracy."""
    for shape in ((30, 3, 3), (3, 8, 5)):
        torch.manual_seed(rank)
        teacher = CPTRL(shape, CLASSES, rank).double()
        layer = CPTRL.from_linear(teacher.to_linear(), shape, rank)
        assert layer.num_parameters == teacher.num_parameters
        error = (layer.fold() - teacher.fold()).norm() / teacher.fold().norm()
        assert error < 1e-3


def test_a_global_average_is_found_at_the_rank_of_its_classes() -> None:
    """gap and one linear layer is a CP map of rank K: constant over the positions."""
    weight = torch.randn(CLASSES, 20, dtype=torch.float64)
    linear = dense((20, 3, 3))
    with torch.no_grad():
        linear.weight.copy_((weight / 9).view(CLASSES, 20, 1, 1).expand(-1, -1, 3, 3).flatten(1))
    layer = CPTRL.from_linear(linear, (20, 3, 3), CLASSES)
    torch.testing.assert_close(layer.fold(), linear.weight.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rank", [2, 6])
def test_a_conversion_is_as_near_as_tensorlys(rank: int) -> None:
    """The longest mode is compressed first, which must not cost any of the fit; Tucker and TT are tensorly's own."""
    shape = (20, 2, 3)
    linear = dense(shape)
    weight = linear.weight.detach().view(CLASSES, *shape).movedim(0, -1)

    def error(layer: TensorRegressionLayer) -> float:
        return float((layer.fold() - linear.weight.detach()).norm())

    theirs = tl.cp_to_tensor(tl.decomposition.parafac(weight, rank, init="random", random_state=0, n_iter_max=100))
    assert error(CPTRL.from_linear(linear, shape, rank)) <= 1.02 * float((theirs - weight).norm())
    tucker = TuckerTRL.from_linear(linear, shape, rank)
    theirs = tl.tucker_to_tensor(tl.decomposition.tucker(weight, list(tucker.rank)))
    assert error(tucker) == pytest.approx(float((theirs - weight).norm()), rel=1e-6)
    tt = TTTRL.from_linear(linear, shape, rank)
    theirs = tl.tt_to_tensor(tl.decomposition.tensor_train(weight, [1, *tt.rank, 1]))
    assert error(tt) == pytest.approx(float((theirs - weight).norm()), rel=1e-6)


@each_layer
def test_a_higher_rank_is_never_a_worse_fit(make: type[TensorRegressionLayer]) -> None:
    """A curve of accuracy against rank that goes down would be the fit's fault, not the rank's."""
    linear = dense((12, 3, 2))
    errors = [
        float((make.from_linear(linear, (12, 3, 2), rank).fold() - linear.weight.detach()).norm())
        for rank in (1, 4, 24)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8


@each_layer
def test_a_map_of_zeros_can_be_converted(make: type[TensorRegressionLayer]) -> None:
    """A pruned class, or a head at the start of training: no factor may become NaN."""
    linear = dense((6, 3, 2))
    nn.init.zeros_(linear.weight)
    layer = make.from_linear(linear, (6, 3, 2), 2)
    assert layer.fold().abs().max() < 1e-9


@each_layer
def test_inputs_decide_what_a_low_rank_is_spent_on(make: type[TensorRegressionLayer]) -> None:
    """A map fitted to correlated features has large weights in directions that never occur; scores are what counts."""
    linear, mixing = dense((12, 3, 2)), torch.randn(12, 12, dtype=torch.float64) * 4.0 ** -torch.arange(12)
    x = torch.einsum("nabc,da->ndbc", torch.randn(800, 12, 3, 2, dtype=torch.float64), mixing)
    scores = linear(x.flatten(1))

    def error(layer: TensorRegressionLayer) -> float:
        return (layer(x) - scores).square().mean().item()

    plain, weighted = make.from_linear(linear, (12, 3, 2), 3), make.from_linear(linear, (12, 3, 2), 3, x=x)
    assert error(weighted) < error(plain) / 2
    full = make.from_linear(linear, (12, 3, 2), 24 if make is CPTRL else 1000, x=x)
    torch.testing.assert_close(full(x), scores)


@pytest.mark.parametrize("rank", [(2, 100, 7), (100, 1, 7), (1, 100, 100)])
def test_a_train_is_cut_to_what_its_bonds_can_use(rank: tuple[int, ...]) -> None:
    """Else a rank that its neighbours cannot feed would end in an error of shapes."""
    linear = dense((16, 3, 3))
    layer = TTTRL.from_linear(linear, (16, 3, 3), rank)
    assert layer.fold().shape == linear.weight.shape
    assert all(mine <= wanted for mine, wanted in zip(layer.rank, rank, strict=True))


@each_layer
def test_inputs_that_never_vary_are_no_error(make: type[TensorRegressionLayer]) -> None:
    """A dead trunk should be told by its accuracy, not by linear algebra."""
    x = torch.zeros(10, 6, 3, 2, dtype=torch.double)
    layer = make.from_linear(dense((6, 3, 2)), (6, 3, 2), 4, x=x)
    assert layer.truncated(2, x).fold().isfinite().all()


@pytest.mark.parametrize("make", [TuckerTRL, TTTRL])
def test_cutting_down_heeds_how_the_inputs_come(make: type[TensorRegressionLayer]) -> None:
    """Else rank would be spent on what never occurs."""
    torch.manual_seed(0)
    layer = make((24, 3, 3), CLASSES, 24).eval().requires_grad_(False)
    x = torch.einsum(
        "bchw,cd->bdhw", torch.randn(500, 24, 3, 3), torch.randn(24, 24) @ torch.diag(0.7 ** torch.arange(24))
    )
    with torch.no_grad():
        error = [(layer.truncated(3, *given)(x) - layer(x)).norm().item() for given in ((), (x,))]
    assert error[1] < 0.9 * error[0]


@each_layer
def test_a_map_of_another_size_is_refused(make: type[TensorRegressionLayer]) -> None:
    with pytest.raises(ValueError, match=r"a map of 36 inputs does not act on \(6, 3, 3\)"):
        make.from_linear(dense((6, 3, 2)), (6, 3, 3), 2)


# -- cut down ---------------------------------------------------------------------------------------------------------


def test_truncation_keeps_the_components_of_the_largest_norm() -> None:
    """Without inputs there is nothing else to go by."""
    layer, _ = small(CPTRL, 5)
    with torch.no_grad():
        layer.weight.factors[2].mul_(torch.tensor([1.0, 9.0, 0.1, 5.0, 3.0]))
    norms = layer.component_norms()
    terms = torch.einsum("ar,br,cr,kr->rabck", *layer.weight.factors)
    torch.testing.assert_close(norms, terms.flatten(1).norm(dim=1).detach())
    best = norms.argsort(descending=True)
    for rank in (1, 3, 5):
        cut = layer.truncated(rank)
        expected = terms[best[:rank]].sum(0).movedim(-1, 0).flatten(1)
        torch.testing.assert_close(cut.fold(), expected.detach())
        assert cut.rank == (rank,)


def test_truncation_by_inputs_leaves_out_what_they_do_not_use() -> None:
    """The largest component in weights may act on a channel that is always zero."""
    layer, x = CPTRL((6, 3, 2), CLASSES, 3).double().eval(), torch.randn(400, 6, 3, 2, dtype=torch.float64)
    x[:, 0] = 0
    with torch.no_grad():
        layer.weight.factors[0][:, 1] = torch.tensor([1e3, 0, 0, 0, 0, 0])
        layer.weight.factors[0][0, [0, 2]] = 0
    assert layer.component_norms().argmax() == 1
    torch.testing.assert_close(layer.truncated(2, x)(x), layer(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(layer.truncated(2)(x), layer(x), atol=0.1)


def test_truncation_merges_parallel_components() -> None:
    """Two that act alike are one: the class factors of the one that stays take over the other's."""
    layer, x = CPTRL((6, 3, 2), CLASSES, 4).double().eval(), torch.randn(400, 6, 3, 2, dtype=torch.float64) + 1
    with torch.no_grad():
        for factor in layer.weight.factors[:3]:
            factor[:, 3] = factor[:, 0]
    nn.init.normal_(layer.bias)
    torch.testing.assert_close(layer.truncated(3, x)(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_the_class_factors_are_refitted_by_least_squares(bias: bool) -> None:
    """For its components the cut layer is the best there is, as numpy finds it, and each more component a gain."""
    layer = CPTRL((6, 3, 2), CLASSES, 6, bias=bias).double().eval()
    x = torch.randn(500, 6, 3, 2, dtype=torch.float64) + 0.5
    scores = layer(x)
    last = math.inf
    for rank in (1, 2, 3, 4, 5, 6):
        cut = layer.truncated(rank, x)
        a, b, c, _ = cut.weight.factors
        activations = torch.einsum("nabc,ar,br,cr->nr", x, a, b, c)
        if bias:
            activations = torch.cat([activations, torch.ones(500, 1)], 1)
        solution = torch.linalg.lstsq(activations.detach(), scores.detach()).solution
        torch.testing.assert_close(cut(x), activations @ solution, rtol=1e-3, atol=1e-3)
        error = (cut(x) - scores).square().sum().item()
        assert error <= last * (1 + 1e-6)
        last = error
    torch.testing.assert_close(layer.truncated(6, x)(x), scores, rtol=1e-4, atol=1e-4)


def test_common_shifts_of_the_classes_do_not_count() -> None:
    """A component that raises all classes alike changes no prediction, however large it is."""
    layer, x = CPTRL((6, 3, 2), CLASSES, 3).double().eval(), torch.randn(400, 6, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.factors[3][:, 1] = 1e3
    cut = layer.truncated(2, x)
    torch.testing.assert_close(cut(x).softmax(1), layer(x).softmax(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [TuckerTRL, TTTRL])
def test_tucker_and_tt_are_cut_by_their_singular_values(make: type[TensorRegressionLayer]) -> None:
    layer, _ = small(make, 3)
    cut = layer.truncated(2)
    assert max(cut.rank) == 2
    error = (cut.fold() - layer.fold()).norm() / layer.fold().norm()
    again = make.from_linear(layer.to_linear(), (6, 3, 2), 2)
    assert 0 < error < 1
    torch.testing.assert_close(cut.fold(), again.fold())


@each_layer
def test_a_cut_layer_goes_on_as_the_layer_was(make: type[TensorRegressionLayer]) -> None:
    """Dropout, precision and mode are the layer's own, and the layer itself stays as it is."""
    layer, x = make((6, 3, 2), CLASSES, 3, tensor_dropout=0.3).float().eval(), torch.randn(64, 6, 3, 2)
    before = copy.deepcopy(layer.state_dict())
    cut = layer.truncated(2, x)
    assert cut.tensor_dropout == 0.3
    assert cut.fold().dtype == torch.float32
    assert not cut.training
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_rank_that_is_not_there_cannot_be_cut_to() -> None:
    layer, x = small(CPTRL, 3)
    for rank in (0, 4):
        with pytest.raises(ValueError, match=r"rank must be in 1\.\.3"):
            layer.truncated(rank, x)


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 32, 10_000])
def test_the_readmes_parameter_counts(rank: int) -> None:
    """The table of parameters is the reason to use a TRL: 533 R at 512x7x7 -> 7, 525 R at 512x3x3, dense 175,616."""
    layer = CPTRL((512, 7, 7), 7, rank)
    assert layer.num_parameters == 533 * rank == sum(p.numel() for p in layer.weight.parameters())
    assert layer.dense_parameters == 175_616
    assert CPTRL.parameters_at((512, 3, 3), 7, rank) == 525 * rank


@each_layer
@pytest.mark.parametrize("shape", [*SHAPES, (40, 3, 3), (9, 9, 9)], ids=str)
def test_the_break_even_rank_is_the_last_that_fits(make: type[TensorRegressionLayer], shape: tuple[int, ...]) -> None:
    """Above it the "smaller" layer is the larger one."""
    dense = math.prod(shape) * CLASSES
    fits = [rank for rank in range(1, dense + 2) if make.parameters_at(shape, CLASSES, rank) <= dense]
    assert make.break_even_rank(shape, CLASSES) == max(fits, default=0)


def test_the_break_even_rank_of_the_guides_layer() -> None:
    """The figure that the README explains rank with."""
    assert CPTRL.break_even_rank((512, 7, 7), 7) == 329


@each_layer
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 3, 50])
def test_counted_parameters_are_the_learned_ones(
    make: type[TensorRegressionLayer], shape: tuple[int, ...], rank: int
) -> None:
    """`fer models` prints counts without building the models."""
    layer = make(shape, CLASSES, rank)
    assert layer.num_parameters == sum(p.numel() for p in layer.weight.parameters())
    assert layer.num_parameters == make.parameters_at(shape, CLASSES, rank)
    assert f"{layer.num_parameters:,}" in repr(layer)


def test_ranks_are_cut_to_what_a_bond_can_use() -> None:
    """More would be parameters that no map needs."""
    assert TuckerTRL((512, 3, 3), 7, 32).rank == (32, 3, 3, 7)
    assert TTTRL((512, 3, 3), 7, 32).rank == (32, 21, 7)
    assert TuckerTRL((512, 3, 3), 7, (16, 2, 2, 5)).rank == (16, 2, 2, 5)
    assert TTTRL((512, 3, 3), 7, (16, 8, 4)).rank == (16, 8, 4)
    assert CPTRL((512, 3, 3), 7, 10_000).rank == (10_000,)


# -- mistakes, files --------------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 7, 4), "input_shape"),
        (((512, 0, 3), 7, 4), "input_shape"),
        (((512, 3, 3), 0, 4), "input_shape"),
        (((512, 3, 3), 7, 0), "rank"),
        (((512, 3, 3), 7, (1, 2)), "rank"),
        (((512, 3, 3), 7, (4, 4, 4, 0)), "rank"),
        (((512, 3, 3), 7, 4, 1.0), "tensor_dropout"),
        (((512, 3, 3), 7, 4, -0.1), "tensor_dropout"),
        (((512, 3, 3), 7, 4, math.nan), "tensor_dropout"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    make: type[TensorRegressionLayer], arguments: tuple, message: str
) -> None:
    """A message that names the setting, rather than a shape error from within a library."""
    shape, classes, rank, *dropout = arguments
    with pytest.raises(ValueError, match=message):
        make(shape, classes, rank, **({"tensor_dropout": dropout[0]} if dropout else {}))


@each_layer
@pytest.mark.parametrize("wrong", [(6, 3, 2), (5, 3, 2, 6), (5, 6, 1, 1), (5, 36)], ids=str)
def test_inputs_of_another_shape_are_refused(make: type[TensorRegressionLayer], wrong: tuple[int, ...]) -> None:
    """A tensor with its axes in another order has the right number of entries, and would give nonsense."""
    layer, _ = small(make)
    x = torch.randn(*wrong, dtype=torch.float64)
    for use in (layer.train(), copy.deepcopy(layer).eval(), layer.evidence):
        with pytest.raises(ValueError, match=r"expected samples of shape \(6, 3, 2\)"):
            use(x)


@each_layer
def test_a_saved_layer_comes_back(make: type[TensorRegressionLayer]) -> None:
    """A checkpoint answers as the model that was trained."""
    layer, x = small(make)
    other, _ = small(make)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))


@each_layer
def test_weights_trained_with_tltorch_load(make: type[TensorRegressionLayer]) -> None:
    """Who comes from the guide has such weights; CP's component weights are learned there and must not be lost."""
    layer, x = small(make)
    name = layer.name.removesuffix("-trl")
    theirs = tltorch.TRL((6, 3, 2), (CLASSES,), bias=True, factorization=name, rank=layer.weight.rank).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    state = theirs.state_dict()
    for module, prefix in ((layer, ""), (nn.Sequential(layer), "0.")):
        module.load_state_dict({prefix + key: value for key, value in state.items()})
        torch.testing.assert_close(layer(x), theirs(x))
        torch.testing.assert_close(layer.eval()(x), theirs(x))
