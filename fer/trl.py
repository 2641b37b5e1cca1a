"""Tensor regression layers (TRL) with tensor dropout.

A TRL maps an activation tensor straight to class scores, without flattening it first::

    y[b, k] = sum_{i1..iN} x[b, i1, .., iN] * W[i1, .., iN, k] + bias[k]

and keeps W, the regression tensor, factorised at low rank: as a sum of R rank-one tensors (CP), as a small core with a
matrix for every mode (Tucker), or as a chain of small cores (tensor train, TT). Tensor dropout removes rank components
at random while training, so that no class rests on a single one.

References:
    Kossaifi, Lipton, Kolbeinsson, Khanna, Furlanello, Anandkumar: Tensor Regression Networks. JMLR 21 (2020).
    Kolbeinsson, Kossaifi, Panagakis, Bulat, Anandkumar, Tzoulaki, Matthews: Tensor Dropout for Robust Learning. IEEE
    Journal of Selected Topics in Signal Processing 15 (2021).
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, reduce
from typing import Any, ClassVar, Self

import tensorly
import torch
from tensorly.decomposition import parafac, tensor_train, tucker
from tltorch.factorized_tensors import CPTensor, FactorizedTensor, TTTensor, TuckerTensor
from torch import Tensor, nn

__all__ = ["CPTRL", "TTTRL", "TensorRegressionLayer", "TuckerTRL"]


class TensorRegressionLayer(nn.Module, ABC):
    """What the three factorisations share: dropout, folding, choice of the cheaper order of contraction.

    Where nothing is to be learned and nothing dropped, the factors are folded once into the dense map that they stand
    for and kept, so that a call costs what ``nn.Linear`` on the flattened input costs, at any rank. Otherwise the layer
    either folds within the call or multiplies the input with the factors, whichever is the cheaper.

    Args:
        input_shape: shape of one sample, (I1, .., IN), without the batch.
        num_classes: K.
        rank: rank of the factorisation; see the subclasses.
        tensor_dropout: probability in [0, 1) with which a rank component is dropped; what is kept is scaled by
            1 / (1 - p), so that the expectation is the full weight.
        bias: adds a learned bias, zero at the start.

    Attributes:
        weight: tensorly-torch's factorised tensor, of shape (I1, .., IN, K).
        tensor_dropout: as above; may be changed at any time.
        drop_at_test: drop in evaluation mode too (Monte Carlo dropout: repeated calls then sample the model's
            uncertainty).

    Raises:
        ValueError: a size, the rank or the dropout is out of range.
    """

    name: ClassVar[str]
    weight: FactorizedTensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        rank: int | Sequence[int],
        *,
        tensor_dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        shape = (*input_shape, num_classes)
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(f"input_shape and num_classes must be positive, not {tuple(input_shape)}, {num_classes}")
        if not 0 <= tensor_dropout < 1:
            raise ValueError(f"tensor_dropout must be in [0, 1), not {tensor_dropout}")
        self.input_shape = torch.Size(input_shape)
        self.num_classes = num_classes
        self.rank = self._full_rank(shape, rank)
        self.tensor_dropout = tensor_dropout
        self.drop_at_test = False
        factors = [nn.Parameter(torch.empty(s)) for s in self._factor_shapes(shape, self.rank)]
        self.weight = self._factorized(factors)
        self.bias = nn.Parameter(torch.empty(num_classes)) if bias else None
        self._cache: tuple[list[tuple[int, int]], Tensor, list[Tensor]] | None = None
        self.reset_parameters()

    # -- what a factorisation defines ---------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def _full_rank(shape: Sequence[int], rank: int | Sequence[int]) -> tuple[int, ...]:
        """The rank of every bond for a tensor of that shape; a single number is cut to what each bond can use."""

    @staticmethod
    @abstractmethod
    def _factor_shapes(shape: Sequence[int], rank: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Shapes of all learned factors."""

    @abstractmethod
    def _factorized(self, factors: list[nn.Parameter]) -> FactorizedTensor: ...

    @abstractmethod
    def _drop(self, factors: list[Tensor]) -> list[Tensor]:
        """The factors without a random part of the rank components, and the rest scaled up."""

    @staticmethod
    @abstractmethod
    def _fit(weight: Tensor, rank: tuple[int, ...]) -> Sequence[Tensor]:
        """All factors of a near approximation to a regression tensor, (I1, .., IN, K) float64."""

    @abstractmethod
    def _halves(self, factors: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Two matrices whose product is the regression tensor: (L, R) for the first modes, (R, K * rest) for the rest.

        The classes stand before the rest of the modes. R is the rank of the bond between the two halves.
        """

    # -- from a trained map -------------------------------------------------------------------------------------------

    @classmethod
    @torch.no_grad()
    def from_linear(
        cls,
        linear: nn.Linear,
        input_shape: Sequence[int],
        rank: int | Sequence[int],
        *,
        tensor_dropout: float = 0.0,
        x: Tensor | None = None,
    ) -> Self:
        """A layer fitted to a trained dense map on the flattened input, to replace it or to start training from.

        CP is fitted by alternating least squares (exact once the rank reaches the number of entries over the longest
        mode), Tucker by higher-order orthogonal iteration, TT by successive SVDs; all minimise the squared difference
        of the weights, and at full rank the layer is the map. With inputs, the difference is weighted by the covariance
        of their channels: what the map does with directions that hardly occur then costs no rank.

        Args:
            linear: the map, (K, I1 * .. * IN), and its bias if it has one.
            input_shape: (I1, .., IN).
            rank: as of the layer.
            tensor_dropout: as of the layer.
            x: (B, I1, .., IN), inputs as they come in use, a few thousand; I1 are the channels.

        Raises:
            ValueError: the map's inputs are not as many as the shape has entries, or a setting is out of range.
        """
        classes, bias = linear.out_features, linear.bias is not None
        if math.prod(input_shape) != linear.in_features:
            raise ValueError(f"a map of {linear.in_features} inputs does not act on {tuple(input_shape)}")
        layer = cls(input_shape, classes, rank, tensor_dropout=tensor_dropout, bias=bias).to(linear.weight)
        weight = linear.weight.view(classes, *input_shape).movedim(0, -1).double()
        with tensorly.backend_context("pytorch"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Trying to compute SVD with")  # where the rank is above a mode's size
            if x is None:
                fitted = cls._fit(weight, layer.rank)
            else:
                root = _channel_root(x).to(weight)
                fitted = list(cls._fit(torch.tensordot(root.t(), weight, 1), layer.rank))
                channels = len(fitted) - weight.ndim  # the factor of the first mode: Tucker's core stands before it
                factor = fitted[channels]
                solved = torch.linalg.solve_triangular(root.t(), factor.reshape(len(root), -1), upper=True)
                fitted[channels] = solved.view_as(factor)
        for factor, values in zip(layer._factors(), fitted, strict=True):
            factor.copy_(values)
        if layer.bias is not None:
            layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    def truncated(self, rank: int, x: Tensor | None = None) -> Self:
        """A layer of a lower rank that does nearly what this one does, without training.

        For Tucker and TT: the folded map, decomposed anew, where singular values order the components.

        Args:
            rank: of the new layer.
            x: (B, I1, .., IN), inputs as they come in use, a few thousand; see :meth:`from_linear`.
        """
        return self.from_linear(self.to_linear(), self.input_shape, rank, tensor_dropout=self.tensor_dropout, x=x)

    # -- size ---------------------------------------------------------------------------------------------------------

    @classmethod
    def parameters_at(cls, input_shape: Sequence[int], num_classes: int, rank: int | Sequence[int]) -> int:
        """Number of learned parameters at that rank, without the bias."""
        shape = (*input_shape, num_classes)
        return sum(math.prod(s) for s in cls._factor_shapes(shape, cls._full_rank(shape, rank)))

    @classmethod
    def break_even_rank(cls, input_shape: Sequence[int], num_classes: int) -> int:
        """The largest rank at which the factorisation is no larger than the dense map that it stands for.

        For CP on 512x7x7 -> 7 it is 329: each component costs 512 + 7 + 7 + 7 = 533 numbers, the map 175,616. 0 where
        even rank 1 is larger.
        """
        dense = math.prod(input_shape) * num_classes
        fits, exceeds = 0, dense + 1
        while exceeds - fits > 1:  # parameters grow with the rank: bisect
            rank = (fits + exceeds) // 2
            if cls.parameters_at(input_shape, num_classes, rank) <= dense:
                fits = rank
            else:
                exceeds = rank
        return fits

    @property
    def num_parameters(self) -> int:
        """Number of learned parameters, without the bias."""
        return self.parameters_at(self.input_shape, self.num_classes, self.rank)

    @property
    def dense_parameters(self) -> int:
        """Number of parameters of the dense map, without the bias."""
        return math.prod(self.input_shape) * self.num_classes

    # -- weights ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw normal factors such that the regression tensor's entries have a standard deviation of 1/sqrt(I1*..*IN).

        The first logits then have the size of the activations. The variance of an entry is the product of the factors'
        variances times the number of terms summed into it, which is the product of the ranks.
        """
        factors = list(self.weight.parameters())
        std = 1 / math.sqrt(math.prod(self.input_shape))
        each = (std / math.sqrt(math.prod(self.rank))) ** (1 / len(factors))
        for factor in factors:
            factor.normal_(std=each)
        for ones in self.weight.buffers():  # CP's component weights
            ones.fill_(1)
        if self.bias is not None:
            self.bias.zero_()

    def fold(self) -> Tensor:
        """The dense map that the factors stand for, cached until one of them changes.

        Returns:
            (K, I1 * .. * IN), the weight of an equal ``nn.Linear`` on the flattened input; detached, not to be written
            to. A factor changed through ``parameter.data`` or by one of PyTorch's fused optimizers shows no trace of
            it: call :meth:`unfold` after that, or :meth:`train` or :meth:`eval`, which do.
        """
        return self._folded(self._factors()).t()

    def unfold(self) -> None:
        """Drop the cached dense map."""
        self._cache = None

    def train(self, mode: bool = True) -> Self:
        """As of any module; drops the cached dense map."""
        self.unfold()
        return super().train(mode)

    def to_linear(self) -> nn.Linear:
        """An equal ``nn.Linear`` on the flattened input, for export."""
        weight = self.fold()
        linear = nn.Linear(weight.shape[1], weight.shape[0], self.bias is not None, weight.device, weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    # -- use ----------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Class scores.

        Args:
            x: (B, I1, .., IN).

        Returns:
            (B, K).

        Raises:
            ValueError: the shape is another one.
        """
        if x.shape[1:] != self.input_shape:
            raise self._mismatch(x)
        factors = self._factors()
        drops = (self.training or self.drop_at_test) and self.tensor_dropout > 0
        learns = torch.is_grad_enabled() and any(f.requires_grad for f in factors)
        if not (drops or learns):
            dense, bias = self._folded(factors), self._parameters["bias"]
            return x.flatten(1) @ dense if bias is None else torch.addmm(bias, x.flatten(1), dense)
        self.unfold()  # PyTorch's fused optimizers leave no trace on what they change
        if torch.is_autocast_enabled(x.device.type):  # products of many factors lose too much in half precision
            with torch.autocast(x.device.type, enabled=False):
                return self._apply_factors(x.to(factors[0].dtype), factors, drops)
        return self._apply_factors(x, factors, drops)

    def evidence(self, x: Tensor) -> Tensor:
        """Where the scores come from: each position's share of each class's score.

        What flattening loses and a TRL keeps: the sum over I2..IN, plus the bias, is the score.

        Args:
            x: (B, I1, .., IN); I1 are the channels.

        Returns:
            (B, K, I2, .., IN), detached.

        Raises:
            ValueError: the shape is another one.
        """
        if x.shape[1:] != self.input_shape:
            raise self._mismatch(x)
        weight = self.fold().view(self.num_classes, *self.input_shape)
        return torch.einsum("bc...,kc...->bk...", x.detach(), weight)

    def extra_repr(self) -> str:
        """Shapes, rank, dropout and size for ``print(model)``."""
        shapes = f"{tuple(self.input_shape)} -> {self.num_classes}, rank={self.rank}"
        size = f"parameters={self.num_parameters:,} (dense {self.dense_parameters:,})"
        return f"{shapes}, tensor_dropout={self.tensor_dropout}, {size}"

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles go without the cache."""
        return {**self.__dict__, "_cache": None}

    def _mismatch(self, x: Tensor) -> ValueError:
        return ValueError(f"expected samples of shape {tuple(self.input_shape)}, got {tuple(x.shape[1:])}")

    def _factors(self) -> list[Tensor]:
        """All learned factors: Tucker's core first, then one a mode."""
        weight: Any = self._modules["weight"]  # the attributes take ten times as long, as much as one face's product
        return [*weight._parameters.values(), *weight._modules["factors"]._parameters.values()]

    def _folded(self, factors: list[Tensor]) -> Tensor:
        """The transpose of :meth:`fold`, a view, which saves a tenth of the time for one face."""
        try:  # where the values lie, and how often they were written to
            state = [(f.data_ptr(), f._version) for f in factors]
        except RuntimeError:  # made in inference mode, or being traced: nothing to know a change by
            return self._dense(factors).t()
        cache = self._cache
        if cache is None or cache[0] != state:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(factors[0].device.type, enabled=False):
                dense = self._dense(factors).t()
            # holding on to the storages, so that no new factor can come to lie at an old one's address
            self._cache = cache = state, dense, [f.detach() for f in factors]
        return cache[1]

    def _dense(self, factors: list[Tensor]) -> Tensor:
        """The regression tensor as the weight of an ``nn.Linear``, (K, I1 * .. * IN)."""
        left, right = self._halves(factors)
        return self._by_class(left @ right)

    def _by_class(self, matrix: Tensor) -> Tensor:
        """(P, K * rest) -> (K, P * rest)."""
        rest = matrix.shape[1] // self.num_classes
        return matrix.view(-1, self.num_classes, rest).transpose(0, 1).flatten(1)

    def _apply_factors(self, x: Tensor, factors: list[Tensor], drops: bool) -> Tensor:
        left, right = self._halves(self._drop(factors) if drops else factors)
        (modes, rank), batch, k = left.shape, len(x), self.num_classes
        if _folding_pays(modes, rank, k, batch):
            weight = self._by_class(left @ right)  # (K, I1 * .. * IN)
        else:
            weight = self._by_class(right)  # (K, R * rest)
            x = _mode_product(left.t(), x.reshape(batch, modes, right.shape[1] // k))  # (B, L, rest) -> (B, R, rest)
        y = (weight @ x.flatten(1).t()).t()  # (B, K); a third faster than x @ weight.t() with few classes
        return y if self.bias is None else y + self.bias

    def _kept(self, like: Tensor, size: int) -> Tensor:
        """(size,) random factors: 0 with probability p, else 1 / (1 - p)."""
        keep = 1 - self.tensor_dropout
        return like.new_empty(size).bernoulli_(keep).div_(keep)


class CPTRL(TensorRegressionLayer):
    """Tensor regression layer with a CP (CANDECOMP/PARAFAC) weight: a sum of R rank-one tensors.

    ``W[i1, .., iN, k] = sum_r U1[i1, r] * .. * UN[iN, r] * V[k, r]``, hence R * (I1 + .. + IN + K) parameters. Tensor
    dropout drops whole components r.

    Args:
        input_shape: (I1, .., IN).
        num_classes: K.
        rank: R, any number from 1 up.
        tensor_dropout: probability of dropping a component.
        bias: adds a learned bias.
    """

    name = "cp-trl"

    @staticmethod
    def _full_rank(shape: Sequence[int], rank: int | Sequence[int]) -> tuple[int, ...]:  # noqa: ARG004
        (r,) = _as_ranks(rank, 1)
        return (r,)

    @staticmethod
    def _factor_shapes(shape: Sequence[int], rank: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [(size, rank[0]) for size in shape]

    def _factorized(self, factors: list[nn.Parameter]) -> FactorizedTensor:
        return CPTensor(torch.ones(self.rank[0]), factors)  # the components' weights stay 1: the factors do the scaling

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # of tltorch.TRL's parameters, which load too, the component weights are learned: the last factor takes them up
        scale, last = f"{prefix}weight.weights", f"{prefix}weight.factors.factor_{len(self.input_shape)}"
        if scale in state_dict and last in state_dict:
            state_dict[last] = state_dict[last] * state_dict[scale]
            state_dict[scale] = torch.ones_like(state_dict[scale])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _drop(self, factors: list[Tensor]) -> list[Tensor]:
        *inputs, last = factors
        scale = self._kept(last, self.rank[0])
        factors = [*inputs, last * scale]
        if self.rank[0] < 512:
            return factors
        kept = scale.nonzero().squeeze(1)  # leaving out what is dropped saves more than the selection takes
        return [f.index_select(1, kept) for f in factors]

    def component_norms(self) -> Tensor:
        """(R,) norms of the rank-one terms that the regression tensor is the sum of; detached."""
        norms = [factor.detach().norm(dim=0) for factor in self._factors()]
        product: Tensor = reduce(torch.mul, norms)
        return product

    @torch.no_grad()
    def truncated(self, rank: int, x: Tensor | None = None) -> Self:
        """A layer of the most important components, without training.

        Without inputs, those with the largest norms, as they are. With inputs, components are chosen one by one, each
        time the one that, with class factors fitted anew, brings the scores of inputs like ``x`` nearest to those of
        all components, in the sum of squares and up to common shifts of all classes, which change no probability
        (orthogonal least squares; Chen, Billings and Luo 1989). Class factors and bias of the result are the fitted
        ones.

        Args:
            rank: how many components to keep, at most R.
            x: (B, I1, .., IN), inputs as they come in use, a few thousand.

        Raises:
            ValueError: the rank is out of range.
        """
        (full,) = self.rank
        if not 1 <= rank <= full:
            raise ValueError(f"rank must be in 1..{full}, not {rank}")
        *inputs, last = (factor.detach() for factor in self._factors())
        bias = None if self.bias is None else self.bias.detach()
        if x is None:
            kept = self.component_norms().topk(rank).indices.sort().values
            last = last[:, kept]
        else:
            activations = (x.flatten(1) @ _khatri_rao(inputs)).double()  # (B, R)
            mean = activations.mean(0) if bias is not None else torch.zeros_like(activations[0])
            kept, fitted = _select(activations - mean, last.double(), rank)
            if bias is not None:
                bias = bias + last @ mean.to(last) - fitted.to(last) @ mean[kept].to(last)
            last = fitted.to(last)
        layer = type(self)(
            self.input_shape, self.num_classes, rank, tensor_dropout=self.tensor_dropout, bias=bias is not None
        ).to(last)
        for factor, values in zip(layer._factors(), (*(f[:, kept] for f in inputs), last), strict=True):
            factor.copy_(values)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
        return layer.train(self.training)

    @staticmethod
    def _fit(weight: Tensor, rank: tuple[int, ...]) -> Sequence[Tensor]:
        longest = max(range(weight.ndim), key=lambda mode: weight.shape[mode])
        fibres = weight.movedim(longest, 0).flatten(1)  # (I, rest)
        others = [size for mode, size in enumerate(weight.shape) if mode != longest]
        if rank[0] >= fibres.shape[1]:  # a term for each fibre: itself, at its place in the other modes
            place = torch.unravel_index(torch.arange(fibres.shape[1], device=weight.device), others)
            factors = [nn.functional.one_hot(i, size).t().to(weight) for i, size in zip(place, others, strict=True)]
            factors.insert(longest, fibres)
            spare = rank[0] - fibres.shape[1]  # terms of zero, that can learn
            factors = [
                torch.cat([f, f.new_zeros(len(f), spare) if mode == longest else torch.randn(len(f), spare).to(f)], 1)
                for mode, f in enumerate(factors)
            ]
            return _balanced(factors)
        # What the longest mode does lies in the span of the fibres: the rest of the work is on a small tensor.
        basis, singular, right = torch.linalg.svd(fibres, full_matrices=False)
        core = (singular.unsqueeze(1) * right).view(-1, *others).movedim(0, longest)
        starts = [_alternate(core, rank[0], *start) for start in (("svd", 0), ("random", 0), ("random", 1))]
        factors = min(starts, key=lambda factors: float((tensorly.cp_to_tensor((None, factors)) - core).norm()))
        factors[longest] = basis @ factors[longest]
        return _balanced(factors)

    def _halves(self, factors: list[Tensor]) -> tuple[Tensor, Tensor]:
        *inputs, last = factors
        return _khatri_rao(inputs[: self._cut]), _khatri_rao([last, *inputs[self._cut :]]).t()

    @cached_property
    def _cut(self) -> int:
        """Number of modes in the left half such that the two Khatri-Rao products are smallest together."""
        shape, k = self.input_shape, self.num_classes
        return min(range(1, len(shape) + 1), key=lambda i: math.prod(shape[:i]) + k * math.prod(shape[i:]))


class TuckerTRL(TensorRegressionLayer):
    """Tensor regression layer with a Tucker weight: a core and one matrix a mode.

    ``W = G x1 U1 .. xN UN x(N+1) V``: the core G holds how the modes' components act together. Tensor dropout drops
    components of every mode independently (Kolbeinsson et al. 2021), hence a share p of each mode's.

    Args:
        input_shape: (I1, .., IN).
        num_classes: K.
        rank: one rank for all modes, cut to each mode's size, or N + 1 ranks.
        tensor_dropout: probability of dropping a component of a mode.
        bias: adds a learned bias.
    """

    name = "tucker-trl"

    @staticmethod
    def _full_rank(shape: Sequence[int], rank: int | Sequence[int]) -> tuple[int, ...]:
        return tuple(min(r, size) for r, size in zip(_as_ranks(rank, len(shape)), shape, strict=True))

    @staticmethod
    def _factor_shapes(shape: Sequence[int], rank: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [rank, *zip(shape, rank, strict=True)]

    def _factorized(self, factors: list[nn.Parameter]) -> FactorizedTensor:
        return TuckerTensor(factors[0], factors[1:])

    def _drop(self, factors: list[Tensor]) -> list[Tensor]:
        core, *matrices = factors
        return [core, *(m * self._kept(m, r) for m, r in zip(matrices, self.rank, strict=True))]

    @staticmethod
    def _fit(weight: Tensor, rank: tuple[int, ...]) -> Sequence[Tensor]:
        core, factors = tucker(weight, rank)
        return [core, *factors]

    def _halves(self, factors: list[Tensor]) -> tuple[Tensor, Tensor]:
        core, first, *middle, last = factors
        right = core.movedim((-1, 0), (0, -1)).reshape(1, -1)  # (R1, .., RN, RK) -> (RK, R2, .., RN, R1)
        for matrix in (last, *middle):  # -> (K, R2, .., RN, R1) -> .. -> (K, I2, .., IN, R1)
            right = _mode_product(matrix, right.view(len(right), matrix.shape[1], -1)).flatten(0, 1)
        return first, right.t()


class TTTRL(TensorRegressionLayer):
    """Tensor regression layer with a tensor-train weight: a chain of cores, one a mode.

    ``W[i1, .., iN, k] = G1[:, i1, :] @ .. @ GN[:, iN, :] @ G(N+1)[:, k, :]``. Tensor dropout drops components of every
    bond between two cores independently.

    Args:
        input_shape: (I1, .., IN).
        num_classes: K.
        rank: one rank for all bonds, cut to what each bond can use, or N ranks.
        tensor_dropout: probability of dropping a component of a bond.
        bias: adds a learned bias.
    """

    name = "tt-trl"

    @staticmethod
    def _full_rank(shape: Sequence[int], rank: int | Sequence[int]) -> tuple[int, ...]:
        ranks = list(_as_ranks(rank, len(shape) - 1))
        for i, size in enumerate(shape[:-1]):  # a core cannot have more rows, or columns, than it can use
            ranks[i] = min(ranks[i], size * (ranks[i - 1] if i else 1))
        for i in range(len(ranks) - 1, -1, -1):
            ranks[i] = min(ranks[i], shape[i + 1] * (ranks[i + 1] if i + 1 < len(ranks) else 1))
        return tuple(ranks)

    @staticmethod
    def _factor_shapes(shape: Sequence[int], rank: tuple[int, ...]) -> list[tuple[int, ...]]:
        bonds = (1, *rank, 1)
        return [(bonds[i], size, bonds[i + 1]) for i, size in enumerate(shape)]

    def _factorized(self, factors: list[nn.Parameter]) -> FactorizedTensor:
        return TTTensor(factors)

    def _drop(self, factors: list[Tensor]) -> list[Tensor]:
        *cores, last = factors
        return [*(core * self._kept(core, r) for core, r in zip(cores, self.rank, strict=True)), last]

    @staticmethod
    def _fit(weight: Tensor, rank: tuple[int, ...]) -> Sequence[Tensor]:
        cores: Sequence[Tensor] = tensor_train(weight, (1, *rank, 1)).factors
        return cores

    def _halves(self, factors: list[Tensor]) -> tuple[Tensor, Tensor]:
        first, *others = factors
        right = reduce(lambda chain, core: torch.tensordot(core, chain, 1), reversed(others))  # (R1, I2, .., IN, K, 1)
        return first[0], right.squeeze(-1).movedim(-1, 1).flatten(1)


def _as_ranks(rank: int | Sequence[int], count: int) -> tuple[int, ...]:
    ranks = (rank,) * count if isinstance(rank, int) else tuple(rank)
    if len(ranks) != count or min(ranks) < 1:
        raise ValueError(f"rank must be a positive number or {count} of them, not {rank}")
    return ranks


def _folding_pays(modes: int, rank: int, classes: int, batch: int) -> bool:
    """Whether to join the halves (L, R) and (R, K * rest) before the input (B, L, rest) is multiplied with them.

    Counts both orders' multiplications, over the size of the rest. Those with the left half first, many small products,
    run at half the speed.
    """
    return modes * classes * (rank + batch) <= 2 * batch * rank * (modes + classes)


def _khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Column-wise Kronecker product: (I1, R), .., (IN, R) -> (I1 * .. * IN, R)."""
    return reduce(lambda a, b: (a.unsqueeze(1) * b).flatten(0, 1), factors)


def _mode_product(matrix: Tensor, x: Tensor) -> Tensor:
    """(J, I) with (B, I, S) -> (B, J, S); ``matmul`` would copy x."""
    return torch.bmm(matrix.expand(len(x), -1, -1), x)


def _channel_root(x: Tensor) -> Tensor:
    """The Cholesky factor, (I1, I1) float64, of the covariance of the channels of inputs, (B, I1, .., IN)."""
    channels = (x - x.mean(0)).movedim(1, -1).flatten(0, -2).double()
    covariance = channels.t() @ channels / len(channels)
    covariance.diagonal().add_(1e-3 * float(covariance.diagonal().mean()) or 1.0)
    root: Tensor = torch.linalg.cholesky(covariance)
    return root


def _alternate(tensor: Tensor, rank: int, start: str, seed: int) -> list[Tensor]:
    """CP factors by alternating least squares; the ridge, far below the fit's error, keeps parallel terms solvable."""
    ridge = 1e-9 * float(tensor.norm()) ** (2 - 2 / tensor.ndim) or 1e-9
    found = parafac(tensor, rank, n_iter_max=300, init=start, tol=1e-7, l2_reg=ridge, random_state=seed)
    return list(found.factors)


def _balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """CP factors of the same terms, with the norm of each term shared evenly, as gradients and weight decay like it."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors])  # (N + 1, R)
    norms = torch.where(norms.prod(0) > 0, norms, 1)  # a term of zero stays as it is
    each = norms.log().mean(0).exp()
    return [factor * (each / norm) for factor, norm in zip(factors, norms, strict=True)]


def _select(activations: Tensor, last: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Which components to keep, (rank,), the most important first, and their class factors fitted anew, (K, rank).

    Args:
        activations: (B, R) of the components, without their mean.
        last: (K, R) class factors.
        rank: how many to keep.
    """
    gram = activations.t() @ activations / len(activations)
    gram.diagonal().add_(1e-6 * float(gram.diagonal().mean()) or 1.0)
    left, wanted = gram.clone(), gram @ (last - last.mean(0)).t()  # (R, R), (R, K): what the chosen do not explain yet
    chosen = torch.zeros(len(gram), dtype=torch.bool, device=gram.device)
    order = []
    for _ in range(rank):
        gain = wanted.square().sum(1) / left.diagonal().clamp_min(1e-300)
        best = int(gain.masked_fill(chosen, -1).argmax())
        share = left[:, best] / left[best, best]
        wanted = wanted - torch.outer(share, wanted[best])
        left = left - torch.outer(share, left[best])
        chosen[best] = True
        order.append(best)
    kept = torch.tensor(order, device=gram.device)
    return kept, torch.linalg.solve(gram[kept][:, kept], gram[kept] @ last.t()).t()
