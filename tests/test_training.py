import csv
import dataclasses
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from faces_csv import write_csv
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer.augmentation import Views, seed_of
from fer.checkpoint import load_checkpoint, save_checkpoint
from fer.classifier import predict_probabilities
from fer.config import RECIPES, Config, Preprocessing, command_line
from fer.dataset import load
from fer.errors import ConfigError, DatasetError
from fer.evaluation import evaluate
from fer.inference import predict_logits
from fer.models import create_model
from fer.training import Run, fit

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parent.parent

#: Faces that are hardly moved, so that little training shows.
STILL = {"shift": 0.05, "scale": 0.05, "rotation": 5.0, "brightness": 0.1, "erase": 0.0}


@pytest.fixture(scope="module")
def data(synthetic, tmp_path_factory) -> Path:
    """Synthetic faces as a fer2013.csv: 280 to train on and 10 of them again, 70 to validate on, 7 of them leaked."""
    train, val = synthetic.split("train"), synthetic.split("val")
    images = [*train.images[:280], *train.images[:10], *train.images[20:27], *val.images[7:70]]
    labels = [*train.labels[:280], *train.labels[:10], *train.labels[20:27], *val.labels[7:70]]
    usages = ["Training"] * 290 + ["PublicTest"] * 70
    return write_csv(tmp_path_factory.mktemp("data"), zip(images, labels, usages, strict=True))


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps device and precision for the whole process; a test may want others than the one before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def settings(name: str, data: Path | str, output: Path, size: int | None = None, **changes: Any) -> Config:
    """A recipe made small; changes go to model and training by name."""
    base = RECIPES[name]
    small = {"data": str(data), "output": str(output), "device": "cpu", "threads": 1, "workers": 0, "epochs": 2}
    changes = small | {"batch_size": 28, "tta": "none", "rank": 8} | changes
    fields = {f.name for f in dataclasses.fields(base.model)}
    preprocessing = base.model.preprocessing if size is None else Preprocessing(size=size)
    model = {k: v for k, v in changes.items() if k in fields} | {"preprocessing": preprocessing}
    training = {k: v for k, v in changes.items() if k not in fields}
    return Config(name, dataclasses.replace(base.model, **model), dataclasses.replace(base.training, **training))


def run_of(config: Config) -> Run:
    torch.set_num_threads(1)
    return Run(config, Accelerator(cpu=True))


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# -- what a run does and leaves ---------------------------------------------------------------------------------------


def test_two_epochs_beat_chance_and_leave_all_that_was_promised(tmp_path):
    """Else training would not learn, or would not say what it did."""
    config = settings(
        "guide-cnn", "synthetic", tmp_path, rank=100, batch_size=32, lr=4e-3, warmup=0.2, ema=0.98, workers=1, **STILL
    )
    folder = fit(config)
    assert folder == tmp_path / "checkpoint"

    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["val_accuracy"] > 0.4  # chance is 0.143
    assert rows[1]["train_loss"] < rows[0]["train_loss"] < math.log(7) + 0.1
    assert rows[1]["learning_rate"] == pytest.approx(0, abs=1e-6)
    assert all(row["images_per_second"] > 0 and row["seconds"] > 0 for row in rows)

    (events,) = (tmp_path / "tensorboard").iterdir()
    board = EventAccumulator(str(events)).Reload()
    for name in ("train_loss", "val_accuracy", "leak_free_accuracy", "learning_rate"):
        assert [event.step for event in board.Scalars(name)] == [1, 2]
    assert board.Scalars("val_accuracy")[1].value == pytest.approx(rows[1]["val_accuracy"])

    with Image.open(folder / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width > 600
    best = max(row["leak_free_accuracy"] for row in rows)
    report = evaluate(load_checkpoint(folder), load("synthetic"), split="val", tta="none")
    assert report["leak_free_accuracy"] == pytest.approx(best, abs=0.01)  # float16 may turn an image or two
    assert not list(tmp_path.rglob("*.part"))


def test_a_student_is_told_the_mean_of_what_its_teachers_see(data, tmp_path):
    """Else distillation would teach the answer to another picture, or a resumed run other answers."""
    teachers = []
    for seed in (1, 2):
        folder = tmp_path / f"teacher {seed}"
        torch.manual_seed(seed)
        config = settings("guide-cnn", data, tmp_path, half=False)
        save_checkpoint(folder, create_model(config.model), config, temperature=0.05)
        teachers.append(folder)
    config = settings(
        "guide-cnn", data, tmp_path / "student", ferplus=0.0, distill=1.0, distill_views=2, epochs=3,
        teachers=", ".join(map(str, teachers)),
    )  # fmt: skip
    run = run_of(config)
    faces, draw = load(data).split("train").images, Views(config.training)
    images, targets = run.loader.dataset.__getitems__([(0, i) for i in range(20)])
    for i, target in enumerate(targets):
        seen = [draw(faces[i], seed_of(config.training.seed, view, i)) for view in range(2)]
        answers = [predict_probabilities(load_checkpoint(folder), seen) for folder in teachers]
        assert np.allclose(target, np.concatenate(answers).mean(0), atol=1e-5)
    assert targets.std() > 0.1  # the two do not agree on everything being alike
    other_images, same_targets = run.loader.dataset.__getitems__([(2, i) for i in range(20)])
    assert torch.equal(same_targets, targets)
    assert not torch.equal(other_images, images)

    run.train_epoch()
    for folder in teachers:
        shutil.rmtree(folder)
    resumed = dataclasses.replace(config, training=dataclasses.replace(config.training, resume=True))
    again = run_of(resumed)
    again.resume()
    again.batches.epoch = run.batches.epoch = 1
    assert torch.equal(next(iter(again.loader))[1], next(iter(run.loader))[1])


def test_a_teachers_answers_are_kept_for_the_next_student(data, tmp_path, own_cache):
    """Else each try at distilling would first cost half an hour again, and an interrupted one all of it."""
    teacher = tmp_path / "teacher"
    config = settings("guide-cnn", data, tmp_path, half=False)
    save_checkpoint(teacher, create_model(config.model), config, temperature=0.05)

    def student(name: str, **changes: Any) -> np.ndarray:
        more = {"teachers": str(teacher), "distill": 1.0, "distill_views": 1} | changes
        run_of(settings("guide-cnn", data, tmp_path / name, ferplus=0.0, **more))
        return np.load(tmp_path / name / "teachers.npy")

    def answered() -> int:
        return len(list((own_cache / "teachers").glob("*.npy")))

    first, files = student("first"), answered()
    assert np.array_equal(student("second", lr=0.1), first)
    assert answered() == files
    assert not np.array_equal(student("turned further", rotation=90.0), first)
    save_checkpoint(teacher, create_model(config.model), config, temperature=0.05)
    assert not np.array_equal(student("another teacher"), first)
    assert answered() == files + 2


def test_training_can_go_on_from_a_checkpoint(data, tmp_path):
    """Else nobody could fine-tune what is shipped, on faces of their own."""
    before = settings("guide-cnn", data, tmp_path / "before", half=False)
    torch.manual_seed(3)
    start = create_model(before.model)
    save_checkpoint(tmp_path / "start", start, before)
    changes = {"weights": str(tmp_path / "start")}
    assert same(
        run_of(settings("guide-cnn", data, tmp_path / "same", **changes)).model.state_dict(), start.state_dict()
    )

    other = run_of(settings("guide-cnn", data, tmp_path / "other", rank=4, **changes)).model
    assert same(other.trunk.state_dict(), start.trunk.state_dict())
    assert other.head.rank == (4,)

    larger = settings("guide-cnn", data, tmp_path / "larger", **changes)
    preprocessing = dataclasses.replace(larger.model.preprocessing, size=40)
    larger = dataclasses.replace(larger, model=dataclasses.replace(larger.model, preprocessing=preprocessing))
    assert same(run_of(larger).model.trunk.state_dict(), start.trunk.state_dict())

    for wrong, message in (("cnn-cp-trl", "was trained on Preprocessing"), ("cnn at 32", "trunks are guide-cnn")):
        config = settings("cnn-cp-trl", data, tmp_path / wrong, **changes)
        if wrong == "cnn at 32":
            config = dataclasses.replace(
                config, model=dataclasses.replace(config.model, preprocessing=before.model.preprocessing)
            )
        with pytest.raises(ConfigError, match=message):
            run_of(config)


def test_a_trunk_with_another_number_of_poolings_takes_the_weights(data, tmp_path):
    """Else a network could not be given finer maps late in its training, when an epoch at their cost pays."""
    before = settings("vgg16-cp-trl", data, tmp_path / "before", weights="none", half=False)
    start = create_model(before.model)
    save_checkpoint(tmp_path / "start", start, before)
    finer = settings("vgg16-cp-trl", data, tmp_path / "finer", weights=str(tmp_path / "start"), poolings=3)
    trunk = run_of(finer).model.trunk
    for ours, theirs in zip(trunk.parameters(), start.trunk.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_from_before_a_setting_existed_can_be_resumed(data, tmp_path):
    """Else an upgrade would cost the hours that a run has trained."""
    config = settings("guide-cnn", data, tmp_path)
    run_of(config).train_epoch()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["config"]["training"]["teachers"]
    torch.save(state, tmp_path / "state.pt")
    run = run_of(dataclasses.replace(config, training=dataclasses.replace(config.training, resume=True)))
    run.resume()
    assert run.epoch == 1


def test_copies_are_left_out_and_leaks_do_not_choose(data, tmp_path):
    """Else an image would count twice, and the best epoch be the one that learned val by heart."""
    for drop, batches in ((True, 28), (False, 29)):
        config = settings("guide-cnn", data, tmp_path / str(drop), batch_size=10, drop_copies=drop)
        assert len(run_of(config).loader) == batches
    assert len(run_of(settings("guide-cnn", data, tmp_path, batch_size=10, limit=100)).loader) == 10

    run = run_of(settings("guide-cnn", data, tmp_path / "run"))
    run.train_epoch()
    val = load(data).split("val")
    assert val.leaked.sum() == 7
    model = run.average.module.eval()
    right = predict_logits(model, val.images, RECIPES["guide-cnn"].model.preprocessing).argmax(1) == val.labels
    assert run.log[0]["val_accuracy"] == pytest.approx(right.mean())
    assert run.log[0]["leak_free_accuracy"] == pytest.approx(right[~val.leaked].mean())
    assert len(run.log) == 1
    run.close()


def test_the_learning_rate_rises_and_falls_as_said(data, tmp_path):
    """Else a run would spend its time at another rate than asked for."""
    config = settings(
        "guide-cnn", data, tmp_path, epochs=4, lr=0.01, trunk_lr=0.002, warmup=0.25, head_epochs=1.0
    )  # 10 steps an epoch
    run = run_of(config)
    rates = []
    for _ in range(40):
        rates.append([group["lr"] for group in run.optimizer.param_groups])
        run.optimizer.step()
        run.schedule.step()
    trunk, _, head, head_biases = np.array(rates).T
    assert np.array_equal(head, head_biases)
    assert head[:10] == pytest.approx(0.01 * np.arange(1, 11) / 10)
    assert head[10:] == pytest.approx(0.005 * (1 + np.cos(np.pi * np.arange(30) / 30)))
    assert (trunk[:10] == 0).all()
    assert trunk[10:18] == pytest.approx(0.002 * np.arange(1, 9) / 8)
    assert trunk[18:] == pytest.approx(0.001 * (1 + np.cos(np.pi * np.arange(22) / 22)))
    decays = [group["weight_decay"] for group in run.optimizer.param_groups]
    assert decays == [0.01, 0, 0.01, 0]
    assert all(p.ndim < 2 for group in run.optimizer.param_groups[1::2] for p in group["params"])


def test_the_trunk_rests_while_the_head_warms_up(data, tmp_path):
    """Else a random head's first gradients would spoil the pretrained trunk, or its BatchNorm drift."""
    run = run_of(settings("cnn-cp-trl", data, tmp_path, size=16, head_epochs=1.0, lr=1e-2))
    trunk, head = copy_of(run.model.trunk), copy_of(run.model.head)
    run.train_epoch()
    assert same(trunk, copy_of(run.model.trunk))
    assert same(trunk, copy_of(run.average.module.trunk))
    assert not same(head, copy_of(run.model.head))
    run.train_epoch()
    after = copy_of(run.model.trunk)
    changed = {name for name in trunk if not torch.equal(trunk[name], after[name])}
    assert changed == trunk.keys()  # weights, and BatchNorm's statistics too
    run.close()


def test_the_first_blocks_stay_as_they_are(data, tmp_path):
    """Else the costliest maps would be differentiated for nothing, or their BatchNorm drift."""
    run = run_of(settings("vgg16-cp-trl", data, tmp_path, size=16, weights="none", freeze_blocks=2, limit=28))
    start = copy_of(run.model.trunk)
    run.train_epoch()
    first = copy_of(run.model.trunk)
    run.train_epoch()
    then = copy_of(run.model.trunk)
    floats = {name for name, tensor in start.items() if tensor.is_floating_point()}
    assert all(not torch.equal(start[name], first[name]) for name in floats)
    kept = {name for name in first if torch.equal(first[name], then[name])}
    assert kept == {name for name in first if int(name.split(".")[0]) < 14}  # 4 x 3 layers and 2 poolings
    run.close()


def test_a_frozen_trunk_is_run_once_and_the_checkpoint_is_whole(data, tmp_path):
    """Else `fer train guide-vgg16` would take days, or leave half a network."""
    config = settings("guide-cnn", data, tmp_path / "run", freeze_trunk=True, rank=20, lr=5e-3, half=False, epochs=3)
    cache = Path(os.environ["FER_CACHE"]) / "features"
    before = set(cache.glob("*")) if cache.is_dir() else set()
    folder = fit(config)
    files = set(cache.iterdir()) - before
    assert len(files) == 2  # of train and of val
    assert sorted(np.load(file).shape for file in files) == [(70, 64, 13, 13), (290, 64, 13, 13)]

    torch.manual_seed(config.training.seed)
    start = create_model(config.model)
    checkpoint = load_checkpoint(folder)
    assert same(checkpoint.model.trunk.state_dict(), start.trunk.state_dict())
    assert not same(checkpoint.model.head.state_dict(), start.head.state_dict())
    rows = rows_of(tmp_path / "run")
    report = evaluate(checkpoint, load(data), split="val", tta="none")
    assert report["leak_free_accuracy"] == pytest.approx(max(r["leak_free_accuracy"] for r in rows), abs=0.03)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]

    written = {file: file.stat().st_mtime_ns for file in files}
    fit(settings("guide-cnn", data, tmp_path / "again", freeze_trunk=True, rank=10, epochs=1))
    assert {file: file.stat().st_mtime_ns for file in files} == written
    assert set(cache.iterdir()) - before == files


def test_the_averaged_weights_are_those_of_the_formula(data, tmp_path):
    """Else what is evaluated and kept would be some other average than `--ema` says."""
    run = run_of(settings("guide-cnn", data, tmp_path, ema=0.7, limit=28 * 5))
    average, seen = copy_of(run.model), []
    run.optimizer.optimizer.register_step_post_hook(lambda *_: seen.append(copy_of(run.model)))
    run.train_epoch()
    for i, weights in enumerate(seen, 1):
        decay = min(0.7, i / (i + 9))
        average = weights if i == 1 else {k: decay * average[k] + (1 - decay) * weights[k] for k in average}
    for name, tensor in run.average.module.state_dict().items():
        assert tensor.numpy() == pytest.approx(average[name].numpy(), abs=1e-6), name
    run.close()


def test_bf16_trains(data, tmp_path):
    """Else --precision would fail, or the trunk's thaw in the midst of it."""
    config = settings("guide-cnn", data, tmp_path, precision="bf16", head_epochs=0.5, tensor_dropout=0.1, limit=56)
    folder = fit(config)
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "model.safetensors").values())
    assert rows_of(tmp_path)[-1]["train_loss"] < 2.2


# -- going on ---------------------------------------------------------------------------------------------------------

#: What could differ the second time, in one run of 10 steps an epoch. The trunk thaws in the second epoch.
RESTLESS: dict[str, Any] = {
    "size": 24,
    "epochs": 3,
    "tensor_dropout": 0.3,
    "mixup": 0.3,
    "mixup_off": 1,
    "ema": 0.9,
    "head_epochs": 1.5,
    "workers": 1,
    "lr": 4e-3,
    "trunk_lr": 2e-3,
}


def options(config: Config) -> list[str]:
    """The arguments of train.py for a configuration."""
    return shlex.split(command_line(config))[2:]


def again(config: Config, model: dict[str, Any] | None = None, **training: Any) -> Config:
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **(model or {})),
        training=dataclasses.replace(config.training, resume=True, **training),
    )


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """All tensors and numbers in a state, by their place in it."""
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in leaves(child, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, child in enumerate(value) for k, v in leaves(child, f"{name}[{i}]").items()}
    return {name: value}


def test_a_killed_run_goes_on_as_if_nothing_had_happened(data, tmp_path):
    """Else a power cut would cost more than the epoch it came in, or change the result."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    interrupted = settings("cnn-cp-trl", data, killed, **RESTLESS)
    command = [sys.executable, ROOT / "train.py", *options(interrupted)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 300
        while not (killed / "state.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        time.sleep(rows_of(killed)[0]["seconds"] / 2)  # into the next epoch
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = torch.load(killed / "state.pt", weights_only=True)
    assert before["epoch"] < 3

    (killed / "state.part").write_bytes(b"half a state, as a kill while it is written leaves it")
    (killed / "log.csv.part").write_bytes(b"half a log")
    AcceleratorState._reset_state(reset_partial_state=True)
    fit(again(interrupted))
    fit(settings("cnn-cp-trl", data, whole, **RESTLESS))

    one, two = (torch.load(folder / "state.pt", weights_only=True) for folder in (whole, killed))
    assert one["epoch"] == two["epoch"] == 3
    for part in ("model", "average", "optimizer", "schedule", "step"):
        a, b = leaves(one[part]), leaves(two[part])
        assert a.keys() == b.keys()
        for name in a:
            equal = torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
            assert equal, f"{part}{name}"
    for a, b in zip(rows_of(whole), rows_of(killed), strict=True):
        assert {k: v for k, v in a.items() if k not in ("seconds", "images_per_second")} == {
            k: v for k, v in b.items() if k not in ("seconds", "images_per_second")
        }
    kept = [(folder / "checkpoint" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert kept[0] == kept[1]


@pytest.fixture(scope="module")
def ended(data, tmp_path_factory) -> Config:
    """A run of one epoch that has come to its end."""
    config = settings("guide-cnn", data, tmp_path_factory.mktemp("ended"), epochs=1, limit=56)
    fit(config)
    return config


def test_a_run_is_not_overwritten(ended):
    """Else starting the same command twice would destroy hours of work."""
    before = (ended.run_folder / "state.pt").read_bytes()
    with pytest.raises(ConfigError, match="holds a run already: go on with --resume, or choose another --output"):
        fit(ended)
    assert (ended.run_folder / "state.pt").read_bytes() == before


def test_other_settings_are_not_taken_for_the_same_run(ended, tmp_path):
    """Else the second half of a run would be trained otherwise than the record says."""
    with pytest.raises(
        ConfigError, match=r"other settings: (epochs was 1, not 5; lr was 0.001, not 0.5)\. Repeat them"
    ):
        fit(again(ended, epochs=5, lr=0.5))
    for model, message in (
        ({"rank": 9}, "rank was 8, not 9"),
        ({"preprocessing": dataclasses.replace(ended.model.preprocessing, mean=0.1)}, "mean was 0.508, not 0.1"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(again(ended, model))
    with pytest.raises(ConfigError, match="was trained on other data than"):
        fit(again(ended, data="synthetic"))
    with pytest.raises(ConfigError, match=r"nothing to resume: .* does not exist; start without --resume"):
        fit(again(ended, output=str(tmp_path / "nowhere")))


def test_a_resumed_run_keeps_the_trunk_that_it_was_given(data, tmp_path):
    """Else --resume of a run on a frozen trunk would go on with a random one, without a word."""
    start = fit(settings("guide-cnn", data, tmp_path / "start", seed=7, epochs=1, half=False))
    changes = {"weights": str(start), "freeze_trunk": True, "rank": 20, "half": False, "epochs": 3}
    broken = settings("guide-cnn", data, tmp_path / "broken", **changes)
    run = Run.open(broken)
    run.train_epoch()
    run.close()
    AcceleratorState._reset_state(reset_partial_state=True)
    folders = fit(again(broken)), fit(settings("guide-cnn", data, tmp_path / "whole", **changes))
    resumed, whole = (load_checkpoint(folder).model for folder in folders)
    assert same(resumed.trunk.state_dict(), load_checkpoint(start).model.trunk.state_dict())
    assert same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04 half a zip"])
def test_a_damaged_state_is_named(ended, content, tmp_path):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"state\.pt is damaged or no state; start anew"):
        fit(again(ended, output=str(tmp_path)))


def test_a_folder_that_cannot_be_made_is_named_before_the_first_epoch(data, tmp_path):
    """Else an epoch would be trained and lost."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot write to .*file: File exists; choose another --output"):
        Run.open(settings("guide-cnn", data, tmp_path / "file"))


def test_a_run_that_diverges_says_so_and_keeps_what_there_was(data, tmp_path):
    """Else weights that are not numbers would be kept as the best."""
    wild = {"optimizer": "sgd", "lr": 1e30, "clip": 0.0, "ema": 0.0}
    with pytest.raises(ConfigError, match=r"epoch 1: the loss is no longer a finite number; nothing was kept\. Lower"):
        fit(settings("guide-cnn", data, tmp_path / "run", **wild))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_of_another_version_is_named(ended, tmp_path):
    """Else resuming after an upgrade that changed the network would end in a page of tensor names."""
    state = torch.load(ended.run_folder / "state.pt", weights_only=True)
    state["model"]["trunk.0.weight"] = torch.zeros(7, 1, 3, 3)
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ConfigError, match=r"state\.pt is of another architecture than guide-cnn is in this version"):
        fit(again(ended, output=str(tmp_path)))


def test_an_ended_run_resumes_to_its_end(ended):
    """Else finishing a run that was killed in its last evaluation would train further, or fail."""
    before = (ended.run_folder / "log.csv").read_bytes()
    folder = fit(again(ended, workers=1))  # workers and threads may change
    assert folder == ended.run_folder / "checkpoint"
    assert (ended.run_folder / "log.csv").read_bytes() == before


def test_impossible_runs_are_refused(data, tmp_path):
    """Else they would fail later, or train on nothing."""
    with pytest.raises(ConfigError, match="batch size 281 is larger than the 280 training images: lower it"):
        fit(settings("guide-cnn", data, tmp_path, batch_size=281))
    with pytest.raises(DatasetError, match="no FER\\+ votes"):
        fit(settings("guide-cnn", data, tmp_path, ferplus=0.5))
    faces = load(data).split("train")
    rows = [
        (image, label, usage)
        for image, label in zip(faces.images[:40], faces.labels[:40], strict=True)
        for usage in ("Training", "PublicTest")
    ]
    (tmp_path / "twice").mkdir()
    with pytest.raises(DatasetError, match=r"every image of val has a copy in train.* give val images of its own"):
        fit(settings("guide-cnn", write_csv(tmp_path / "twice", rows), tmp_path / "run"))
    shutil.rmtree(tmp_path / "twice")
    AcceleratorState._reset_state(reset_partial_state=True)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device cuda is not to be had here"):
            fit(settings("guide-cnn", data, tmp_path, device="cuda"))
    assert list(tmp_path.iterdir()) == []


# -- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_reach_what_one_reaches(data, tmp_path):
    """Else a run on two GPUs would be another run than the one that was tried on one."""
    changes: dict[str, Any] = {"head_epochs": 0.5, "ema": 0.9, "lr": 4e-3}
    alone, pair = (settings("guide-cnn", data, tmp_path / name, **changes) for name in ("alone", "pair"))
    # With --cpu Accelerate would start one process, whatever --num_processes says.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    process = subprocess.Popen(
        [sys.executable, *launch, ROOT / "train.py", *options(pair)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        fit(alone)  # meanwhile
        out, err = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert out.count("epoch   2") == 1  # one process speaks for both
    assert "guide-cnn on fer2013.csv val" in out

    one, two = (torch.load(config.run_folder / "state.pt", weights_only=True) for config in (alone, pair))
    assert (one["processes"], two["processes"]) == (1, 2)
    for part in ("model", "average"):
        for name, tensor in one[part].items():
            assert two[part][name].numpy() == pytest.approx(tensor.numpy(), abs=1e-4), f"{part} {name}"
    for a, b in zip(rows_of(alone.run_folder), rows_of(pair.run_folder), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], abs=1e-4)
        assert b["train_accuracy"] == pytest.approx(a["train_accuracy"], abs=0.01)
    assert load_checkpoint(pair.run_folder / "checkpoint").metrics["n"] == 70

    with pytest.raises(ConfigError, match="processes was 2, not 1"):
        fit(again(pair))
