"""The Model tab: what a checkpoint was measured to do, where its parameters are, and what rank and dropout change."""

import base64
import dataclasses
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fer.config import ModelConfig, from_dict
from fer.curve import RANKS, RankCurve, RankPoint
from fer.emotions import EMOTIONS
from fer.errors import FerError
from fer.shelf import CONFIG, METRICS, available_checkpoints, find_checkpoint, read_json
from fer.web_common import VIEWS, gr, status

if TYPE_CHECKING:
    from fer.trl import TensorRegressionLayer

__all__ = ["CSS", "model_tab"]

#: VGG16's three fully connected layers on 512x7x7, as in the guide, with seven outputs.
GUIDE_FC = (512 * 7 * 7 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 7
#: Tiles that are drawn of a head's terms, and size of a chart: width, height, and the margins of its axes, pixels.
TILES = 256
CHART = (360, 230)
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40
#: Of the rank's slider before a card was read, and for a visitor whose session was lost: no card's own is above it.
MAX_RANK = 1_000_000

#: The model card's pictures and what they show; a checkpoint need not have them.
PICTURES = {
    "confusion.png": "What is taken for what",
    "reliability.png": "How far its probabilities can be believed",
    "curves.png": "Training",
}

CSS = """
.fer-model { color: var(--body-text-color); }
.fer-model h2 { margin: 1.75rem 0 .5rem; font-size: 1.25rem; font-weight: 600; color: inherit; }
.fer-model p { margin: 0 0 .75rem; max-width: 48rem; line-height: 1.5; color: inherit; }
.fer-stats { display: grid; gap: .75rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
.fer-stats > div { padding: .75rem 1rem; border: 1px solid var(--border-color-primary);
  border-radius: var(--block-radius); background: var(--block-background-fill); }
.fer-stats dt { font-size: .85rem; }
.fer-stats dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.fer-model .fer-scroll { margin: 0 0 .75rem; }
.fer-model .fer-scroll th { font-weight: 400; text-align: left; }
.fer-model .fer-scroll tbody th { min-width: 7rem; white-space: normal; }
.fer-model .fer-scroll thead th { font-weight: 600; }
.fer-model .fer-scroll thead th:not([colspan], :first-child, .fer-text) { text-align: right; }
.fer-model .fer-scroll .fer-wide { width: 35%; min-width: 6rem; }
.fer-model .fer-scroll tr.fer-best > * { font-weight: 600; }
.fer-bar > .fer-accent { background: var(--primary-600); }
.fer-plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
.fer-plots figure { margin: 0; padding: 1rem; border: 1px solid var(--border-color-primary);
  border-radius: var(--block-radius); background: var(--block-background-fill); }
.fer-plots figcaption { margin-bottom: .5rem; font-weight: 600; }
.fer-plots figure:only-child { max-width: 36rem; }
.fer-plots .fer-row { grid-column: 1 / -1; }
.fer-plots .fer-row img { max-width: 56rem; }
.fer-plots img { display: block; margin: 0 auto; width: 100%; max-width: 28rem; mix-blend-mode: multiply; }
.dark .fer-plots img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
.fer-plots figure > svg { display: block; margin: 0 auto; width: 100%; max-width: 30rem; overflow: visible; }
.fer-legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; justify-content: center; font-size: .85rem; }
.fer-legend svg { display: inline-block; width: 26px; height: 8px; margin-right: .4rem; vertical-align: middle; }
.fer-plots svg text { font-size: 11px; fill: var(--body-text-color); }
.fer-axis { stroke: var(--body-text-color); stroke-opacity: .35; fill: none; }
.fer-line { stroke: var(--primary-600); stroke-width: 2; fill: none; }
.fer-other { stroke: var(--body-text-color); stroke-width: 1.5; fill: none; }
.fer-dot { fill: var(--primary-600); stroke: var(--block-background-fill); stroke-width: 2; }
.fer-plots + p { margin-top: 1.25rem; }
.fer-tiles { display: flex; flex-wrap: wrap; gap: 3px; margin: -.25rem 0 .75rem; max-width: 48rem; }
.fer-tiles i { width: 16px; height: 16px; border-radius: 3px; border: 1px solid var(--primary-600);
  background: var(--primary-600); }
.fer-tiles i.fer-off { border-color: var(--body-text-color); border-style: dashed; opacity: .8;
  background: repeating-linear-gradient(45deg, transparent 0 3px, var(--body-text-color) 3px 4px); }
.fer-model code { overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .fer-model .fer-scroll table { font-size: .8rem; }
  .fer-model .fer-scroll th, .fer-model .fer-scroll td { padding: .35rem; }
  .fer-model .fer-scroll thead th { white-space: normal; }
  .fer-model .fer-scroll tbody th { min-width: 4.2rem; }
  .fer-model .fer-scroll .fer-wide { width: 15%; min-width: 2.5rem; }
}
"""

_LESSON = """## Rank and dropout
A tensor regression layer keeps the trunk's output as a tensor and maps it to the seven scores with a regression tensor
that is not stored but built from factors. **Rank** says how many terms it is a sum of: few terms are few parameters and
a strong constraint. **Tensor dropout** leaves out terms at random in each step of the training, so that no expression
rests on a single one. Move the sliders.
"""


@dataclass(frozen=True)
class Card:
    """What the tab shows of a checkpoint; made from its small files, the weights are not read.

    Attributes:
        name: of the folder.
        chosen: the shipped name or the folder that was asked for; commands take it.
        folder: where it lies.
        config: the network.
        metrics: contents of metrics.json; empty where it was not evaluated.
        shape: of the trunk's output for one face.
        layers: name, type, output shape and parameters of each layer.
        trunk: parameters of the trunk.
        head: parameters of the head.
        fc: parameters of VGG's three fully connected layers, were they the head.
        curve: accuracy against rank; None where it was not measured.
    """

    name: str
    chosen: str
    folder: Path
    config: ModelConfig
    metrics: dict[str, Any]
    shape: tuple[int, ...]
    layers: list[tuple[str, str, tuple[int, ...], int]]
    trunk: int
    head: int
    fc: int
    curve: RankCurve | None

    @classmethod
    def read(cls, name: str) -> "Card":
        """The card of a shipped checkpoint or a folder; made anew only when its files have changed.

        Raises:
            FerError: there is none, or its files are damaged.
        """
        folder = find_checkpoint(name)
        files = (folder / file for file in (CONFIG, METRICS, RANKS))
        return cls._made(name, folder, tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files))

    @classmethod
    @lru_cache(16)
    def _made(cls, name: str, folder: Path, _changed: tuple[int, ...]) -> "Card":
        import torch

        from fer.models import EmotionModel, create_head, layer_shapes, parameter_count

        config = from_dict(ModelConfig, read_json(folder / CONFIG).get("model", {}))
        metrics = read_json(folder / METRICS) if (folder / METRICS).is_file() else {}
        with torch.device("meta"):
            model = EmotionModel(config)
            shape = model.trunk_shape()
            fc = parameter_count(create_head(dataclasses.replace(config, head="fc"), shape))
        layers = [(layer, kind, tuple(output), size) for layer, kind, output, size in layer_shapes(model)]
        trunk, head = parameter_count(model.trunk), parameter_count(model.head)
        curve = RankCurve.read(folder) if (folder / RANKS).is_file() else None
        return cls(folder.resolve().name, name, folder, config, metrics, tuple(shape), layers, trunk, head, fc, curve)

    @property
    def dense(self) -> int:
        """Parameters of one linear layer on the flattened output, without its bias."""
        return math.prod(self.shape) * len(EMOTIONS)

    @property
    def layer(self) -> "type[TensorRegressionLayer] | None":
        """The kind of tensor regression layer; None for another head."""
        from fer.models import TRL_HEADS

        return TRL_HEADS.get(self.config.head)

    @property
    def most(self) -> int:
        """Of the rank's slider."""
        own, layer = self.config.rank, self.layer
        return 2 * max(layer.break_even_rank(self.shape, len(EMOTIONS)), own) if layer else own + 1


def model_tab(checkpoint: str) -> None:
    """Build the tab inside the open ``gr.Blocks``. Nothing is loaded before it is opened.

    Args:
        checkpoint: the one that answers, a shipped name, a folder or a .onnx file: the first to be shown.
    """
    names = available_checkpoints()
    served = str(Path(checkpoint).parent) if checkpoint.endswith(".onnx") else checkpoint
    choices = [*names, *([] if served in names else [served])]

    def choose(name: str, step: int) -> tuple[Any, ...]:
        try:
            card = Card.read(name)
        except FerError as error:
            return status(str(error), failed=True), gr.update(visible=False), gr.update(), gr.update(), "", ""
        own = card.config
        return (
            _measured(card) + _replaced(card),
            gr.update(visible=card.layer is not None),
            gr.update(value=own.rank, maximum=card.most),
            gr.update(value=own.tensor_dropout),
            _figure(card, own.rank, own.tensor_dropout, step),
            _layers(card),
        )

    def draw(name: str, rank: float, dropout: float, step: int) -> str:
        try:
            card = Card.read(name)
        except FerError as error:
            return status(str(error), failed=True)
        return _figure(card, min(int(rank), card.most), dropout, step)

    def draw_again(name: str, rank: float, dropout: float, step: int) -> tuple[int, str]:
        return step + 1, draw(name, rank, dropout, step + 1)

    with gr.Tab("Model") as tab:
        choice = gr.Dropdown(choices, value=served, label="Checkpoint", filterable=False)
        summary = gr.HTML(status("Reading the model card."), apply_default_css=False, elem_classes="fer-result")
        with gr.Column() as lesson:
            gr.Markdown(_LESSON)
            with gr.Row(equal_height=True):
                rank = gr.Slider(1, MAX_RANK, value=1, step=1, label="Rank", min_width=240)
                dropout = gr.Slider(0, 0.9, value=0, step=0.05, label="Tensor dropout", min_width=240)
                again = gr.Button("Next step", scale=0, min_width=150)
        figure = gr.HTML(apply_default_css=False, elem_classes="fer-result")
        layers = gr.HTML(apply_default_css=False, elem_classes="fer-result")
        step = gr.State(0)
        gr.on(
            [tab.select, choice.change],
            choose,
            [choice, step],
            [summary, lesson, rank, dropout, figure, layers],
            api_visibility="private",
        )
        settings = [choice, rank, dropout, step]  # no card: a session may be lost while its page stays open
        for slider in (rank, dropout):
            slider.input(
                draw, settings, figure, show_progress="hidden", trigger_mode="always_last", api_visibility="private"
            )
        again.click(draw_again, settings, [step, figure], show_progress="hidden", api_visibility="private")


# -- the card ---------------------------------------------------------------------------------------------------------


def _measured(card: Card) -> str:
    config, metrics = card.config, card.metrics
    about = (
        f"<p>Trunk <code>{config.trunk}</code>, head <code>{config.head}</code>, on grey faces of "
        f"{config.preprocessing.size} pixels. The trunk's output is {_shape(card.shape)}.</p>"
    )
    size = [("Parameters", _short(card.trunk + card.head)), ("of them in the head", f"{card.head:,}")]
    if not metrics:
        return _section(f"<h2>{escape(card.name)}</h2>{about}{_stats(size)}<p>It was not evaluated yet.</p>")
    figures = [("Accuracy", f"{metrics['accuracy']:.1%}")]
    if "leak_free_accuracy" in metrics:
        figures.append(("without leaked images", f"{metrics['leak_free_accuracy']:.1%}"))
    figures += [("Macro-F1", f"{metrics['macro_f1']:.1%}"), ("Calibration error", f"{metrics['ece']:.3f}"), *size]
    names = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"} if metrics["data"] == "FER2013" else {}
    split = names.get(metrics["split"], metrics["split"])
    return _section(
        f"<h2>{escape(card.name)}</h2>{about}{_stats(figures)}"
        f"<p>On the {metrics['n']:,} images of {escape(metrics['data'])}'s {escape(split)}"
        f"{VIEWS.get(metrics['tta'], '')}. Leaked images have a pixel-identical copy among the training images. "
        "Macro-F1 counts rare expressions as much as frequent ones. The calibration error (ECE) is how far the "
        "probabilities are off, on average.</p>"
        f"<h2>By expression</h2>{_classes(metrics['per_class'])}{_plots(card)}"
    )


def _classes(rows: dict[str, dict[str, float]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{_bar(row["recall"])}'
        f"<td>{row['recall']:.1%}</td><td>{row['precision']:.1%}</td><td>{row['f1']:.1%}</td>"
        f"<td>{row['support']:,}</td></tr>"
        for name, row in rows.items()
    )
    head = '<th scope="col">expression</th><th scope="col" colspan="2">recall</th>' + "".join(
        f'<th scope="col">{name}</th>' for name in ("precision", "F1", "images")
    )
    return _table("Figures by expression", head, body)


def _plots(card: Card) -> str:
    told = {
        "confusion.png": _confusion_in_words(np.array(card.metrics["confusion"])),
        "reliability.png": "Reliability diagram: accuracy against confidence, in 15 bins. The expected calibration "
        f"error is {card.metrics['ece']:.3f}; on the diagonal it would be 0.",
        "curves.png": "Loss and accuracy on training and validation images, epoch by epoch.",
    }
    figures = "".join(
        f'<figure class="{"fer-row" if file == "curves.png" else ""}"><figcaption>{caption}</figcaption>'
        f'<img alt="{escape(told[file])}" src="data:image/png;base64,'
        f'{base64.b64encode((card.folder / file).read_bytes()).decode()}"></figure>'
        for file, caption in PICTURES.items()
        if (card.folder / file).is_file()
    )
    return f'<div class="fer-plots">{figures}</div>' if figures else ""


def _confusion_in_words(confusion: NDArray[np.int64]) -> str:
    """What a confusion matrix shows, for who cannot see it."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    right = shares.diagonal()
    wrong = shares - np.diag(right)
    label, taken = np.unravel_index(wrong.argmax(), wrong.shape)
    names = [emotion.label for emotion in EMOTIONS]
    return (
        f"Confusion matrix, labels by predictions. Recognised best: {names[right.argmax()]} ({right.max():.0%}), "
        f"worst: {names[right.argmin()]} ({right.min():.0%}). The most frequent mistake: {names[label]} taken for "
        f"{names[taken]} ({wrong.max():.0%} of its images)."
    )


def _replaced(card: Card) -> str:
    shape = _shape(card.shape)
    rows = [(f"this head, <code>{card.config.head}</code>", card.head)]
    text = ""
    if card.layer is not None:
        rows[0] = (f"{rows[0][0]} of rank {card.config.rank:,}", card.head)
        rows.append((f"the plain linear map it factorises, {shape} to {len(EMOTIONS)}", card.dense + len(EMOTIONS)))
        text = (
            "A TRL makes the head smaller, not the network faster: when the model is used, its factors are folded into "
            "that one linear map."
        )
    if card.config.head != "fc":
        rows.append((f"VGG's three fully connected layers on {shape}", card.fc))
    rows.append(("the same in the guide's VGG16 at 224 pixels, on 512&times;7&times;7", GUIDE_FC))
    most = max(size for _, size in rows)
    body = "".join(
        f'<tr class="{"fer-best" if i == 0 else ""}"><th scope="row">{name}</th>{_bar(size / most)}'
        f"<td>{size:,}</td><td>{size / card.head:,.1f}</td></tr>"
        for i, (name, size) in enumerate(rows)
    )
    head = '<th scope="col">head</th><th scope="col" colspan="2">parameters</th><th scope="col">times this head</th>'
    return _section(f"<h2>What the head replaced</h2>{_table('Heads', head, body)}<p>{text}</p>")


def _layers(card: Card) -> str:
    body = "".join(
        f'<tr><th scope="row">{name}</th><td class="fer-text">{kind}</td>'
        f"<td>{f'{size:,}' if size else ''}</td><td>{_shape(output)}</td></tr>"
        for name, kind, output, size in card.layers
    )
    total = card.trunk + card.head
    body += f'<tr class="fer-best"><th scope="row">total</th><td></td><td>{total:,}</td><td></td></tr>'
    head = '<th scope="col">layer</th><th scope="col" class="fer-text">type</th><th scope="col">parameters</th>'
    head += '<th scope="col">output for one face</th>'
    table = _table("Parameters by layer", head, body)
    return _section(f'<details class="fer-more"><summary>Parameters by layer</summary>{table}</details>')


# -- rank and dropout -------------------------------------------------------------------------------------------------


def _figure(card: Card, rank: int, dropout: float, step: int) -> str:
    """The answer to the sliders: parameters, accuracy, and the terms that one training step uses."""
    layer = card.layer
    if layer is None:
        text = f"The head {card.config.head} is no tensor regression layer, so it has no rank and no tensor dropout."
        return _section(f"<p>{text}</p>")
    charts = _parameter_chart(card, layer, rank) + (_accuracy_chart(card.curve, rank) if card.curve else "")
    return _section(
        f"{_cost(card, layer, rank)}<p>{_accuracy(card, rank)}</p>"
        f'<div class="fer-plots">{charts}</div>{_terms(card, layer, rank, dropout, step)}'
    )


def _cost(card: Card, layer: "type[TensorRegressionLayer]", rank: int) -> str:
    size, dense = layer.parameters_at(card.shape, len(EMOTIONS), rank), card.dense
    modes = (*card.shape, len(EMOTIONS))
    limit = layer.break_even_rank(card.shape, len(EMOTIONS))
    formula = f"{rank:,} &times; ({' + '.join(map(str, modes))}) = " if card.config.head == "cp-trl" else ""
    share = (
        f"{size / dense:.0%} of the plain linear map's {dense:,}"
        if size <= dense
        else f"more than the plain linear map's {dense:,}, {size / dense:.1f} times as many"
    )
    return (
        f"<p><strong>{formula}{size:,} parameters</strong> and a bias, {share}. Up to rank {limit:,} the factors are "
        "the smaller of the two.</p>"
    )


def _accuracy(card: Card, rank: int) -> str:
    """What was measured at a rank, in words."""
    curve = card.curve
    if curve is None:
        own = card.metrics.get("leak_free_accuracy")
        here = f"This checkpoint, of rank {card.config.rank:,}, reaches {own:.1%}. " if own else ""
        command = f"<code>fer rank {escape(shlex.quote(card.chosen))} --publish</code>"
        return f"{here}Its accuracy at other ranks was not measured: {command} does."
    if rank == curve.full_rank:
        return f"This is the checkpoint's own rank: {curve.full_leak_free:.1%} right, without leaked images."
    points = {point.rank: point for point in curve.ranks}
    if rank in points:
        return f"Measured at rank {rank:,}: {_point(points[rank])}, without leaked images."
    near = [max((r for r in points if r < rank), default=None), min((r for r in points if r > rank), default=None)]
    told = "; ".join(f"rank {r:,}: {_point(points[r])}" for r in near if r is not None)
    return f"Not measured at rank {rank:,}. Nearest, without leaked images: {told}."


def _point(point: RankPoint) -> str:
    ways = ((point.retrained_leak_free, "trained anew"), (point.truncated_leak_free, "this checkpoint's head cut down"))
    return ", ".join(f"{value:.1%} {how}" for value, how in ways if value is not None)


def _terms(card: Card, layer: "type[TensorRegressionLayer]", rank: int, dropout: float, step: int) -> str:
    """The head's terms as tiles, those hatched that a training step leaves out."""
    import torch

    with torch.device("meta"):
        ranks = layer(card.shape, len(EMOTIONS), rank).rank
    labels = {
        "cp-trl": ["terms"],
        "tucker-trl": ["components of the channels", "of the rows", "of the columns", "of the classes"],
        "tt-trl": [f"components of bond {i}" for i in range(1, len(ranks) + 1)],
    }[card.config.head]
    groups = ""
    for number, (label, size) in enumerate(zip(labels, ranks, strict=True)):
        # The same draw at every rank and probability: a slider changes what it is about and nothing else.
        kept = np.random.default_rng((step, number)).random(size) >= dropout
        tiles = "".join("<i></i>" if keep else '<i class="fer-off"></i>' for keep in kept[:TILES])
        more = f" The first {TILES} are drawn." if size > TILES else ""
        groups += (
            f"<p>{int(kept.sum()):,} of {size:,} {label} take part in this step; the hatched ones are left out.{more}"
            f'</p><div class="fer-tiles" aria-hidden="true">{tiles}</div>'
        )
    scale = f"What is kept counts {1 / (1 - dropout):.2f} times in training, so that the average stays the same. "
    return f"{groups}<p>{scale if dropout else ''}When the model is used, all take part.</p>"


# -- charts -----------------------------------------------------------------------------------------------------------


def _parameter_chart(card: Card, layer: "type[TensorRegressionLayer]", rank: int) -> str:
    classes, dense = len(EMOTIONS), card.dense
    most = max(2 * layer.break_even_rank(card.shape, classes), 2 * card.config.rank, rank)
    ranks = np.unique(np.geomspace(1, most, 48).round().astype(int)).tolist()
    sizes = [layer.parameters_at(card.shape, classes, r) for r in ranks]
    here = layer.parameters_at(card.shape, classes, rank)
    low, high = 10 ** math.floor(math.log10(sizes[0])), 10 ** math.ceil(math.log10(max(sizes[-1], dense)))
    x = _scale(1, most, LEFT, CHART[0] - RIGHT)
    y = _scale(low, high, CHART[1] - BOTTOM, TOP)
    decades = [10**i for i in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    level = y(dense)
    body = (
        _axes("rank", _ticks(most), x, [(_short(d), y(d)) for d in decades])
        + f'<path class="fer-line" d="{_path([(x(r), y(s)) for r, s in zip(ranks, sizes, strict=True)])}"/>'
        + f'<path class="fer-other" stroke-dasharray="5 4" d="M{LEFT},{level:.1f}H{CHART[0] - RIGHT}"/>'
        + f'<text x="{LEFT + 6}" y="{level - 5:.1f}">plain linear map, {dense:,}</text>'
        + f'<circle class="fer-dot" cx="{x(rank):.1f}" cy="{y(here):.1f}" r="6"/>'
    )
    told = f"Parameters against rank: {here:,} at rank {rank:,}; the plain linear map has {dense:,}."
    return _chart("Parameters of the factors", told, body)


def _accuracy_chart(curve: RankCurve, rank: int) -> str:
    lines = {  # how it is drawn: class and dashes
        "trained anew": ("fer-line", "", {p.rank: p.retrained_leak_free for p in curve.ranks}),
        "this head cut down": ("fer-other", "5 4", {p.rank: p.truncated_leak_free for p in curve.ranks}),
    }
    values = [v for _, _, line in lines.values() for v in line.values() if v is not None] + [curve.full_leak_free]
    step = 0.05 if max(values) - min(values) <= 0.2 else 0.1
    low, high = math.floor(min(values) / step), math.ceil(max(values) / step)
    most = max(curve.full_rank, rank, *(p.rank for p in curve.ranks))
    x = _scale(1, most, LEFT, CHART[0] - RIGHT)

    def y(value: float) -> float:
        return CHART[1] - BOTTOM - (value / step - low) / (high - low) * (CHART[1] - BOTTOM - TOP)

    marks = [(f"{i * step:.0%}", y(i * step)) for i in range(low, high + 1)]
    body = _axes("rank", _ticks(most), x, marks)
    body += f'<path class="fer-axis" d="M{x(rank):.1f},{TOP}V{CHART[1] - BOTTOM}"/>'
    legend = [(f"this checkpoint, rank {curve.full_rank}", "fer-other", "1 3")]
    body += f'<path class="fer-other" stroke-dasharray="1 3" d="M{LEFT},{y(curve.full_leak_free):.1f}H{x(most):.1f}"/>'
    for name, (kind, dashes, line) in lines.items():
        points = {r: (x(r), y(v)) for r, v in line.items() if v is not None}
        if points:
            legend.append((name, kind, dashes))
            body += f'<path class="{kind}" stroke-dasharray="{dashes}" d="{_path([*points.values()])}"/>'
            body += "".join(f'<circle class="{kind}" cx="{u:.1f}" cy="{v:.1f}" r="3"/>' for u, v in points.values())
        if rank in points:
            body += f'<circle class="fer-dot" cx="{points[rank][0]:.1f}" cy="{points[rank][1]:.1f}" r="6"/>'
    told = "; ".join(f"rank {p.rank:,}: {_point(p)}" for p in curve.ranks)
    return _chart("Right without leaked images", f"Accuracy against rank. {told}.", body, legend)


def _chart(caption: str, told: str, body: str, legend: Sequence[tuple[str, str, str]] = ()) -> str:
    keys = "".join(
        f'<span><svg viewBox="0 0 26 8" aria-hidden="true">'
        f'<path class="{kind}" stroke-dasharray="{dashes}" d="M0,4H26"/></svg>{name}</span>'
        for name, kind, dashes in legend
    )
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg viewBox="0 0 {CHART[0]} {CHART[1]}" role="img" aria-label="{escape(told)}">{body}</svg>'
        f'<div class="fer-legend">{keys}</div></figure>'
    )


def _axes(name: str, ranks: Sequence[int], x: Any, heights: Sequence[tuple[str, float]]) -> str:
    bottom, right = CHART[1] - BOTTOM, CHART[0] - RIGHT
    lines = f'<path class="fer-axis" d="M{LEFT},{TOP}V{bottom}H{right}"/>'
    for label, height in heights:
        lines += f'<path class="fer-axis" d="M{LEFT - 4},{height:.1f}h4"/>'
        lines += f'<text x="{LEFT - 7}" y="{height + 4:.1f}" text-anchor="end">{label}</text>'
    for rank in ranks:
        lines += f'<path class="fer-axis" d="M{x(rank):.1f},{bottom}v4"/>'
        lines += f'<text x="{x(rank):.1f}" y="{bottom + 16}" text-anchor="middle">{rank:,}</text>'
    return lines + f'<text x="{(LEFT + right) / 2}" y="{CHART[1] - 6}" text-anchor="middle">{name}</text>'


def _scale(low: float, high: float, start: float, end: float) -> Any:
    """The place of a number on a logarithmic axis."""
    width = math.log(max(high, low * 1.001) / low)
    return lambda value: start + math.log(value / low) / width * (end - start)


def _ticks(most: int) -> list[int]:
    """Powers of two, or of a larger number where those would be too many."""
    base = 2 ** max(1, math.ceil(math.log2(max(most, 2)) / 8))
    return [base**i for i in range(math.floor(math.log(most, base) + 1e-9) + 1)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{u:.1f},{v:.1f}" for u, v in points)


# -- pieces -----------------------------------------------------------------------------------------------------------


def _section(content: str) -> str:
    return f'<div class="fer-model">{content}</div>'


def _stats(figures: Sequence[tuple[str, str]]) -> str:
    return f'<dl class="fer-stats">{"".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in figures)}</dl>'


def _table(name: str, head: str, body: str) -> str:
    return (
        f'<div class="fer-scroll" role="region" aria-label="{name}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _bar(share: float) -> str:
    return (
        '<td class="fer-wide"><div class="fer-bar" aria-hidden="true">'
        f'<div class="fer-accent" style="width: {share:.1%}"></div></div></td>'
    )


def _shape(shape: Sequence[int]) -> str:
    return "&times;".join(map(str, shape))


def _short(number: float) -> str:
    """``14.7 M``, ``16.8 k``, ``64``."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
