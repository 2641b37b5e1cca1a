"""What training on many processes costs, with VGG's fully connected head and with a tensor regression layer.

    python benchmarks/scaling.py --precision bf16
    python benchmarks/scaling.py --photos 0 --heads fc cp-trl --large 0

Measured: a training step of one process of one thread; an all-reduce between two processes over Gloo, which is what
Accelerate takes on CPUs; the step of `fer train` with two such processes; photographs scored a second by one thread,
and by examples/score_with_ray.py where Ray is installed. Estimated from these: steps on more machines and slower or
faster networks. Figures of one process are of processor time; the others are by the clock and want two idle cores.
docs/scaling.md explains the tables.
"""

import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import skimage.data
import torch
import torch.distributed as dist
import tyro
from accelerate import Accelerator
from accelerate.utils.other import get_free_port
from PIL import Image
from torch import Tensor

from fer.config import RECIPES, Config, Head, recipe
from fer.models import EmotionModel, parameter_count
from fer.recognizer import EmotionRecognizer
from fer.training import Run

RAY_EXAMPLE = Path(__file__).parent.parent / "examples" / "score_with_ray.py"
MB, GIGABIT = 1e6, 1e9 / 8

#: Images of FER2013 that an epoch trains on (without redundant copies) and validates on.
TRAINED, VALIDATED = 27_473, 3_589


@dataclasses.dataclass
class Options:
    heads: tuple[Head, ...] = ("fc", "gap", "cp-trl")
    """heads of vgg16-cp-trl's trunk at 48 pixels; the first and the last also run in two processes"""
    images: int = 64
    """images a step and process at 48 pixels"""
    large: int = 16
    """images a step of the guide's VGG16 at 224 pixels, with the first and the last head; 0 leaves it out"""
    rounds: int = 5
    """turns of each, beside a first one that does not count; half of that at 224 pixels"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the forward and backward pass; gradients stay fp32"""
    processes: tuple[int, ...] = (2, 8, 64)
    """estimated for so many"""
    gigabits: tuple[float, ...] = (1, 10, 100)
    """speeds of the network to estimate for, Gbit/s each way"""
    speeds: tuple[float, ...] = (1, 100)
    """how many times as fast as the core measured here a process computes, to estimate for"""
    photos: int = 60
    """photographs to score; 0 leaves scoring out"""
    checkpoints: tuple[str, ...] = ("vgg16-cp-trl", "cnn-cp-trl")
    """what scores"""
    workers: tuple[int, ...] = (1,)
    """workers of examples/score_with_ray.py, if Ray is installed; its own tasks need a CPU beside them"""


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step of one process, in seconds; bytes held between two steps; seconds to validate an image."""

    name: str
    images: int
    parameters: int
    passes: float
    update: float
    held: dict[str, int]
    validation: float

    @property
    def seconds(self) -> float:
        return self.passes + self.update


class Watched(Accelerator):
    """Notes when each backward pass is done: with several processes, the exchange of gradients is part of it."""

    clock: Callable[[], float] = time.perf_counter
    done = 0.0

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        super().backward(loss, **kwargs)
        self.done = self.clock()


def main(options: Options) -> None:
    torch.set_num_threads(1)
    networks = {f"{head}, 48 px": (config_of("vgg16-cp-trl", head), options.images) for head in options.heads}
    ends = (options.heads[0], options.heads[-1])
    if options.large:
        networks |= {f"{head}, 224 px": (config_of("guide-vgg16", head), options.large) for head in ends}
    steps = [measure_step(name, config, images, options) for name, (config, images) in networks.items()]
    print_steps(steps, options)
    print_memory(steps)
    print_two(in_two_processes(networks, [f"{head}, 48 px" for head in ends], options), steps)
    estimated = [step for step in steps if step.name.startswith(ends)]
    print_estimates(estimated, options)
    print_epochs(estimated, options)
    if options.photos:
        print_scoring(options)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    columns = list(columns)
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


# -- one process ------------------------------------------------------------------------------------------------------


def config_of(name: str, head: Head) -> Config:
    """The recipe's network with another head, trained as vgg16-cp-trl is."""
    model = dataclasses.replace(RECIPES[name].model, head=head, rank=recipe("vgg16-cp-trl").model.rank)
    return Config(f"{name}-{head}", model, recipe("vgg16-cp-trl").training)


def make_run(config: Config, images: int, accelerator: Accelerator, precision: Literal["fp32", "bf16"]) -> Run:
    """A run of `fer train`, about to take its first step on that many images."""
    training = dataclasses.replace(
        config.training,
        data="synthetic",
        output=os.devnull,  # nothing is written
        batch_size=images,
        limit=images,
        precision=precision,
        device="cpu",
        weights="none",
        head_epochs=0.0,
        workers=0,
    )
    run = Run(dataclasses.replace(config, training=training), accelerator)
    run._set_mode()
    return run


def batch_of(config: Config, images: int) -> tuple[Tensor, Tensor]:
    p = config.model.preprocessing
    faces = torch.randn(images, p.channels, p.size, p.size).to(memory_format=torch.channels_last)
    return faces, torch.eye(7)[torch.arange(images) % 7]


def watch(precision: str, clock: Callable[[], float]) -> Watched:
    accelerator = Watched(mixed_precision="no" if precision == "fp32" else precision, cpu=True)
    accelerator.clock = clock
    return accelerator


def measure_step(name: str, config: Config, images: int, options: Options) -> Step:
    accelerator = watch(options.precision, time.process_time)
    run, batch = make_run(config, images, accelerator, options.precision), batch_of(config, images)
    times = []
    large = config.model.preprocessing.size > 48
    for _ in range(max(1, options.rounds // (1 + large)) + 1):
        start = time.process_time()
        run._train_step(*batch, mixup=0.0)
        end = time.process_time()
        times.append((accelerator.done - start, end - accelerator.done))
    passes, update = map(median, zip(*times[1:], strict=True))
    held = {
        "weights": size_of(run.model.parameters()),
        "gradients": size_of(p.grad for p in run.model.parameters() if p.grad is not None),
        "AdamW": size_of(v for state in run.optimizer.state.values() for v in state.values()),
        "EMA": size_of(run.average.parameters()) if run.average else 0,
    }
    run.val_inputs, run.val_labels, run.val_leaked = (
        v[:images] for v in (run.val_inputs, run.val_labels, run.val_leaked)
    )
    start = time.process_time()
    run._validate()
    validation = (time.process_time() - start) / images
    return Step(name, images, parameter_count(run.model), passes, update, held, validation)


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def print_steps(steps: list[Step], options: Options) -> None:
    columns = (
        "head",
        "parameters",
        "images",
        "forward and backward, s",
        "an image, ms",
        "clip, AdamW, EMA, s",
        "share",
    )
    rows = (
        (
            s.name,
            f"{s.parameters:,}",
            s.images,
            f"{s.passes:.3f}",
            f"{1e3 * s.passes / s.images:.1f}",
            f"{s.update:.3f}",
            f"{s.update / s.seconds:.0%}",
        )
        for s in steps
    )
    table(f"A step of one process of one thread, {options.precision}", columns, rows)


def print_memory(steps: list[Step]) -> None:
    """From the tensors themselves."""
    columns = ("head", "weights, MB", "gradients", "AdamW's moments", "EMA", "together, MB")
    sizes = ((s.name, [*s.held.values(), sum(s.held.values())]) for s in steps)
    table("Memory of one process", columns, ((name, *(f"{size / MB:.0f}" for size in row)) for name, row in sizes))


# -- two processes ----------------------------------------------------------------------------------------------------


def in_two_processes(networks: dict[str, tuple[Config, int]], chosen: list[str], options: Options) -> dict[str, Any]:
    """What :func:`in_process` finds."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        torch.multiprocessing.spawn(in_process, (networks, chosen, options, get_free_port(), found), nprocs=2)
        return dict(json.loads(found.read_text()))


def in_process(
    rank: int, networks: dict[str, tuple[Config, int]], chosen: list[str], options: Options, port: int, found: Path
) -> None:
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in launched.items()}  # as a launcher would have it
    torch.set_num_threads(1)
    accelerator = watch(options.precision, time.perf_counter)
    trained = {}
    for name in chosen:
        config, images = networks[name]
        trained[name] = train_together(config, images, accelerator, options)
    reduced = {}
    for name, (config, _) in networks.items():
        with torch.device("meta"):
            count = parameter_count(EmotionModel(config.model))
        for kind in (torch.float32, torch.bfloat16):
            gradient = torch.ones(count, dtype=kind)
            seconds = [timed(partial(dist.all_reduce, gradient)) for _ in range(options.rounds + 1)]
            reduced[f"{name} {kind}"] = median(seconds[1:])
    if rank == 0:
        found.write_text(json.dumps({"trained": trained, "reduced": reduced}))
    accelerator.end_training()


def train_together(config: Config, images: int, accelerator: Watched, options: Options) -> dict[str, float]:
    """Seconds a step of one process alone, of two that do not know of each other, and of two that train together."""
    run = make_run(config, 2 * images, accelerator, options.precision)
    batch = batch_of(config, images)
    together, taken = run.wrapped, []

    def step(module: torch.nn.Module) -> None:
        run.wrapped = module
        run._train_step(*batch, mixup=0.0)

    for _ in range(options.rounds + 1):
        alone = timed(partial(step, run.model) if accelerator.is_main_process else None)
        taken.append((alone, timed(partial(step, run.model)), timed(partial(step, together))))
    return dict(zip(("alone", "apart", "together"), map(median, zip(*taken[1:], strict=True)), strict=True))


def timed(call: Callable[[], object] | None) -> float:
    """Seconds until all processes are done with it."""
    dist.barrier()
    start = time.perf_counter()
    if call is not None:
        call()
    dist.barrier()
    return time.perf_counter() - start


def print_two(found: dict[str, Any], steps: list[Step]) -> None:
    rows = []
    for step in steps:
        size = 4 * step.parameters
        seconds, half = (found["reduced"][f"{step.name} {kind}"] for kind in (torch.float32, torch.bfloat16))
        cells = (f"{size / MB:.0f}", f"{seconds:.3f}", f"{half:.3f}")
        rows.append((step.name, *cells, f"{exchanged(size, 2) / seconds / GIGABIT:.1f}"))
    columns = ("head", "gradient in fp32, MB", "fp32, s", "bf16, s", "fp32, Gbit/s each way")
    table("One all-reduce between two processes of this machine, Gloo", columns, rows)

    rows = []
    for name, times in found["trained"].items():
        (step,) = (s for s in steps if s.name == name)
        alone, apart, together = (times[key] for key in ("alone", "apart", "together"))
        reduced = found["reduced"][f"{name} {torch.float32}"]
        slower = apart / step.seconds  # than by processor time and without another process beside it
        estimates = [apart / seconds for seconds in bounds(slower * step.passes, slower * step.update, reduced)]
        cells = [f"{n * step.images / seconds:.1f}" for n, seconds in ((1, alone), (2, apart), (2, together))]
        shares = (alone / together, apart / together, *estimates)
        rows.append((name, *cells, *(f"{share:.0%}" for share in shares)))
    columns = ("head", "one process, images/s", "two apart", "two together", "efficiency", "of two apart")
    columns += ("estimated: no overlap", "full overlap")
    table("Training with two processes of one thread, each with its own images", columns, rows)


# -- estimates --------------------------------------------------------------------------------------------------------


def exchanged(size: float, processes: int) -> float:
    """Bytes that each process sends, and as many that it receives, in a ring all-reduce (Patarasuk and Yuan 2009)."""
    return 2 * (processes - 1) / processes * size


def bounds(passes: float, update: float, communication: float) -> tuple[float, float]:
    """Seconds a step where nothing is exchanged during the passes, and where all that fits into them is."""
    return passes + communication + update, max(passes, communication) + update


def print_estimates(steps: list[Step], options: Options) -> None:
    places = [(processes, network) for processes in options.processes for network in options.gigabits]

    def sent(step: Step, processes: int, network: float) -> str:
        size = exchanged(4 * step.parameters, processes)
        return f"{size / MB:.0f} MB, {size / network / GIGABIT:.3f} s"

    def growing(step: Step, processes: int, network: float, speed: float) -> str:
        seconds = exchanged(4 * step.parameters, processes) / network / GIGABIT
        slow, fast = bounds(step.passes / speed, step.update / speed, seconds)
        low, high = (step.seconds / speed / seconds for seconds in (slow, fast))
        return f"{slow:.3f} to {fast:.3f} s, {low:.0%} to {high:.0%}"

    def fixed(step: Step, processes: int, network: float) -> str:
        if processes > step.images:
            return "-"
        seconds = exchanged(4 * step.parameters, processes) / network / GIGABIT
        slow, fast = bounds(step.passes / processes, step.update, seconds)
        return f"{step.seconds / slow:.1f} to {step.seconds / fast:.1f} x"

    def estimates(title: str, cell: Callable[[Step, int, float], str], speed: float = 1) -> None:
        alone = (1, "", *(f"{step.images} images, {step.seconds / speed:.3f} s" for step in steps))
        rows = ((p, f"{n:g} Gbit/s", *(cell(step, p, n) for step in steps)) for p, n in places)
        table(f"Estimate: {title}", ("processes", "network", *(step.name for step in steps)), (alone, *rows))

    estimates("what each process sends in a step, and how long that takes", sent)
    for speed in options.speeds:
        title = f"seconds a step and efficiency, each process with all images of a step and {speed:g} x as fast as here"
        estimates(title, partial(growing, speed=speed), speed)
    estimates("how many times as fast as one, processes as fast as here that share the images of a step", fixed)


def print_epochs(steps: list[Step], options: Options) -> None:
    """Even if communication cost nothing: what one process does alone is not shared out."""

    def cell(step: Step, processes: int) -> str:
        training = TRAINED / step.images * step.seconds
        validation = VALIDATED * step.validation
        faster = (training + validation) / (training / processes + validation)
        return f"{training / processes / 60:.1f} + {validation / 60:.1f} min, {faster:.1f} x"

    rows = ((p, *(cell(step, p) for step in steps)) for p in (1, *options.processes))
    title = "Estimate: an epoch of FER2013 with free communication, training + validation by the first process"
    table(title, ("processes", *(step.name for step in steps)), rows)


# -- scoring ----------------------------------------------------------------------------------------------------------


def print_scoring(options: Options) -> None:
    rows = []
    for side in (512, 1280):
        photo = jpeg(side)
        for name in options.checkpoints:
            recognizer = EmotionRecognizer.load(name, device="cpu", threads=1)
            list(recognizer.analyze_many([photo] * 4))
            start = time.process_time()
            list(recognizer.analyze_many([photo] * options.photos))
            rate = options.photos / (time.process_time() - start)
            rows.append((name, f"{side}x{side}", f"{rate:.1f}", *hours(rate)))
    columns = ("checkpoint", "photograph", "images/s", "a million, core-hours", "a billion, core-hours")
    table("Scoring photographs with one face: one thread, from the bytes of a JPEG to the expression", columns, rows)
    if options.workers and importlib.util.find_spec("ray"):
        columns = ("workers", "images/s", "start and end, s")
        rows = [(workers, *with_ray(options, workers)) for workers in options.workers]
        table(f"examples/score_with_ray.py, {options.checkpoints[0]}, 512x512, this machine", columns, rows)


def jpeg(side: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).resize((side, side)).save(file, "jpeg", quality=90)
    return file.getvalue()


def hours(rate: float) -> Iterator[str]:
    yield from (f"{images / rate / 3600:,.1f}" for images in (1e6, 1e9))


def with_ray(options: Options, workers: int) -> tuple[str, str]:
    """Images a second, from the difference between many and few, and the time that passes whatever their number."""
    few, many = options.photos * workers, 5 * options.photos * workers
    photo, seconds = jpeg(512), {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (few, many):
            photos = Path(folder) / f"photos{count}"
            photos.mkdir()
            for number in range(count):
                (photos / f"{number:05}.jpg").write_bytes(photo)
            command = [sys.executable, RAY_EXAMPLE, photos, Path(folder) / f"scores{count}", "--workers", str(workers)]
            command += ["--checkpoint", options.checkpoints[0]]
            start = time.perf_counter()
            environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
            subprocess.run(command, check=True, capture_output=True, env=environment)
            seconds[count] = time.perf_counter() - start
    rate = (many - few) / (seconds[many] - seconds[few])
    return f"{rate:.1f}", f"{seconds[few] - few / rate:.1f}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
