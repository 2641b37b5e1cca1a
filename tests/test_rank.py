import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from faces_csv import write_faces
from PIL import Image

from fer import dataset
from fer.checkpoint import load_checkpoint, save_checkpoint
from fer.cli import main
from fer.config import Config, ModelConfig, Preprocessing, RankConfig, TrainConfig, command_line
from fer.curve import RankCurve, RankPoint
from fer.errors import CheckpointError
from fer.heads import HeadData, head_data, head_logits, shares_right, train_head
from fer.models import create_model
from fer.rank import rank_curve

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parent.parent
BUDGET = RankConfig(ranks=(1, 3), views=1, epochs=2, batch_size=32, lr=3e-3, tta="none")
OPTIONS = ["--views", "1", "--batch-size", "32", "--tta", "none", "--threads", "1"]


@pytest.fixture(scope="module")
def data(synthetic, tmp_path_factory) -> Path:
    """A fer2013.csv with some synthetic faces."""
    return write_faces(tmp_path_factory.mktemp("data"), synthetic, train=210, val=70)


def make(folder: Path, data: Path, head: str) -> Path:
    """A checkpoint with a random trunk and a head trained on it."""
    torch.manual_seed(0)
    model = ModelConfig(trunk="guide-cnn", head=head, rank=12, preprocessing=Preprocessing(size=16))
    config = Config(f"tiny-{head}", model, TrainConfig(data=str(data), tta="none", half=False))
    network = create_model(model).eval()
    epochs, lr = (1, 1e-3) if head == "fc" else (40, 1e-2)
    budget = RankConfig(views=1, epochs=epochs, batch_size=32, lr=lr)
    train_head(network.head, head_data(network, dataset.load(data), budget, config.training, "none"), budget, seed=0)
    save_checkpoint(folder / config.name, network, config)
    return folder / config.name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data) -> Path:
    return make(tmp_path_factory.mktemp("checkpoints"), data, "cp-trl")


@pytest.fixture(scope="module")
def features(checkpoint, data) -> HeadData:
    model = load_checkpoint(checkpoint).model
    return head_data(model, dataset.load(data), BUDGET, TrainConfig(), "none")


def curve(*points: tuple[int, float | None, float | None]) -> RankCurve:
    ranks = tuple(RankPoint(rank, 10 * rank, a, a, b, b) for rank, a, b in points)
    return RankCurve("tiny", 1000, 32, 0.7, 0.68, ranks)


def test_the_proposed_rank_keeps_within_the_loss():
    """That is what was asked for; a rank above the checkpoint's own would be no saving."""
    points = curve((1, 0.4, 0.3), (2, 0.678, 0.5), (4, 0.679, 0.6781), (8, None, 0.68), (64, 0.7, None))
    assert points.smallest(0.2).rank == 2  # exactly 0.2 points below 68.0 %
    assert points.smallest(0.15).rank == 4
    assert points.smallest(0).rank == 8
    assert points.smallest(50).rank == 1
    assert curve((1, 0.4, 0.3), (32, 0.68, None), (64, 0.9, None)).smallest(0.2) is None
    assert curve((4, None, None)).smallest(0.2) is None


def test_the_file_is_what_the_page_reads_and_comes_back(tmp_path):
    """The web page and whoever plots it themselves rely on these names."""
    points = curve((1, 0.4, None), (2, None, 0.5))
    points.write(tmp_path / "new")
    record = json.loads((tmp_path / "new" / "ranks.json").read_text())
    assert record == {
        "checkpoint": "tiny",
        "n": 1000,
        "data": "FER2013",
        "split": "val",
        "full": {"rank": 32, "accuracy": 0.7, "leak_free_accuracy": 0.68},
        "ranks": [
            {
                "rank": rank,
                "parameters": 10 * rank,
                "retrained_accuracy": retrained,
                "retrained_leak_free": retrained,
                "truncated_accuracy": truncated,
                "truncated_leak_free": truncated,
            }
            for rank, retrained, truncated in ((1, 0.4, None), (2, None, 0.5))
        ],
    }
    assert RankCurve.read(tmp_path / "new") == points
    with pytest.raises(CheckpointError, match="write it again with fer rank"):
        RankCurve.read(tmp_path)
    (tmp_path / "ranks.json").write_text('{"checkpoint": "tiny"}')
    with pytest.raises(CheckpointError, match=r"ranks\.json"):
        RankCurve.read(tmp_path)


def test_the_curve_is_measured_on_the_checkpoints_own_trunk(checkpoint, features):
    """Each figure belongs to the head that is handed out for it."""
    loaded = load_checkpoint(checkpoint)
    found, heads = rank_curve(loaded, features, BUDGET)
    assert (found.checkpoint, found.n, found.full_rank) == ("tiny-cp-trl", 70, 12)
    assert (found.full_accuracy, found.full_leak_free) == shares_right(
        head_logits(loaded.model.head, features.val), features
    )
    assert [point.rank for point in found.ranks] == [1, 3]
    for point in found.ranks:
        head = heads[point.rank]
        assert head.rank == (point.rank,)
        assert point.parameters == sum(p.numel() for p in head.parameters())
        assert shares_right(head_logits(head, features.val), features)[1] == point.best


def test_above_its_own_rank_nothing_is_cut_and_without_training_nothing_is_trained(checkpoint, features):
    """None stands where nothing was measured, and the page leaves a gap there."""
    loaded = load_checkpoint(checkpoint)
    settings = RankConfig(ranks=(2, 40), retrain=False)
    found, heads = rank_curve(loaded, features, settings)
    small, large = found.ranks
    assert small.retrained_accuracy is None
    assert small.truncated_accuracy is not None
    assert (large.retrained_leak_free, large.truncated_leak_free, large.best) == (None, None, 0)
    assert set(heads) == {2}
    _, by_norm = rank_curve(loaded, features, dataclasses.replace(settings, importance="norm"))
    assert torch.equal(by_norm[2].fold(), loaded.model.head.truncated(2).fold())
    assert not torch.equal(by_norm[2].fold(), heads[2].fold())


def test_the_command_writes_curve_plot_and_a_whole_smaller_checkpoint(checkpoint, data, tmp_path, capsys, monkeypatch):
    """From the proposal to a model that `fer predict` takes, in one command."""
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["rank", str(checkpoint), "--data", str(data), "--output", str(tmp_path / "out"), "--loss", "30"]
    arguments += ["--ranks", "2", "6", "--no-retrain", "--write", str(tmp_path / "small"), *OPTIONS]
    monkeypatch.setattr("sys.argv", ["fer", *arguments])
    assert main(arguments) == 0
    told = " ".join(capsys.readouterr().out.split())
    found = RankCurve.read(tmp_path / "out")
    chosen = found.smallest(30)
    assert f"leak-free): {chosen.rank}, cut down" in told
    assert "was chosen on these very images, so that figure is optimistic" in told
    assert not (checkpoint / "ranks.json").exists()
    with Image.open(tmp_path / "out" / "ranks.png") as plot:
        assert plot.format == "PNG"
        assert min(plot.size) > 300
    small = load_checkpoint(tmp_path / "small")
    assert small.config.model.rank == chosen.rank
    assert small.name == f"tiny-cp-trl-rank{chosen.rank}"
    assert small.metrics["accuracy"] == pytest.approx(chosen.truncated_accuracy, abs=0.02)
    before = load_checkpoint(checkpoint).model.trunk.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in small.model.trunk.state_dict().items())
    card = (tmp_path / "small" / "README.md").read_text()
    assert f"fer rank {checkpoint}" in card
    assert command_line(load_checkpoint(checkpoint).config) in card  # and who made what it was cut from


def test_the_curve_goes_to_the_checkpoint_when_asked(data, tmp_path):
    """There the web page finds it."""
    folder = make(tmp_path, data, "tt-trl")
    arguments = ["rank", str(folder), "--data", str(data), "--output", str(tmp_path / "out"), "--publish"]
    assert main([*arguments, "--ranks", "2", "--no-retrain", *OPTIONS]) == 0
    assert RankCurve.read(folder) == RankCurve.read(tmp_path / "out")
    assert (folder / "ranks.png").is_file()


def test_where_no_rank_will_do_it_says_so_and_writes_no_checkpoint(checkpoint, data, tmp_path, capsys):
    """A model worse than was asked for must not lie there as if it were the answer."""
    arguments = ["rank", str(checkpoint), "--data", str(data), "--output", str(tmp_path), "--ranks", "12", "--epochs=1"]
    assert main([*arguments, "--write", str(tmp_path / "small"), *OPTIONS]) == 0
    assert "No rank below 12 that was tried stays within 0.2 points" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("head", ["gap", "dense", "fc"])
def test_a_classifier_is_converted_and_every_step_is_shown(head, data, tmp_path, capsys, monkeypatch):
    """Who has a trained classifier sees what the tensor regression layer costs before and after fine-tuning."""
    monkeypatch.setenv("COLUMNS", "120")
    folder = make(tmp_path, data, head)
    capsys.readouterr()
    assert main(["rank", str(folder), "--data", str(data), *OPTIONS]) == 2
    told = capsys.readouterr().err.replace("\n", "")
    assert f"has the head {head}, which has no rank" in told
    assert f"fer convert {folder} --write FOLDER" in told
    arguments = ["convert", str(folder), "--data", str(data), "--head", "cp-trl", "--rank", "175"]
    assert main([*arguments, "--epochs", "1", "--write", str(tmp_path / "trl"), *OPTIONS]) == 0
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if "%" in line]
    shares = [[float(word.rstrip("%")) for word in line.split() if word.endswith("%")] for line in steps]
    assert len(shares) == 4
    own, mapped, factorised, _ = shares
    assert mapped == factorised  # rank 175 = 5 * 5 * 7 is exact
    if head != "fc":
        assert own == mapped
    converted = load_checkpoint(tmp_path / "trl")
    assert (converted.config.model.head, converted.config.model.rank) == ("cp-trl", 175)
    better = max(shares[2:], key=lambda pair: pair[1])  # fine-tuning of an exact conversion may only spoil it
    assert 100 * converted.metrics["accuracy"] == pytest.approx(better[0], abs=1.5)
    arguments = ["rank", str(tmp_path / "trl"), "--data", str(data), "--ranks", "174", "--no-retrain", "--loss", "100"]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--write", str(tmp_path / "less"), *OPTIONS]) == 0
    first, second, _ = load_checkpoint(tmp_path / "less").metrics["made"]  # all that led to it, in order
    assert first == command_line(load_checkpoint(folder).config)
    assert second == converted.metrics["made"][1]


def test_nothing_is_written_over(checkpoint, data, tmp_path, capsys):
    """Else a good checkpoint, the source itself even, would be replaced by one that was made from it."""
    before = (checkpoint / "model.safetensors").read_bytes()
    for command in (["convert", "--epochs", "0"], ["rank", "--no-retrain", "--loss", "100"]):
        arguments = [command[0], str(checkpoint), *command[1:], "--data", str(data), "--write", str(checkpoint)]
        assert main([*arguments, *OPTIONS]) == 2
        assert "holds a checkpoint already" in capsys.readouterr().err.replace("\n", " ")
    assert (checkpoint / "model.safetensors").read_bytes() == before
    (tmp_path / "file").write_text("in the way")
    assert main(["rank", str(checkpoint), "--data", str(data), "--output", str(tmp_path / "file"), *OPTIONS]) == 2
    assert "choose another --output" in capsys.readouterr().err.replace("\n", " ")


# -- benchmarks/heads.py ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("benchmark_heads", ROOT / "benchmarks" / "heads.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_the_benchmark_goes_on_where_it_was_killed(bench, checkpoint, data, tmp_path, capsys):
    """It takes hours: what is finished must not be computed again, and half a row must not spoil the rest."""
    few = {"heads": ("cp-trl", "gap"), "ranks": (2,), "dropouts": (0.1,), "lrs": (1e-3, 3e-3), "grids": (3,)}
    training = {"data": str(data), "views": 1, "epochs": 1, "batch_size": 32, "attack_images": 6, "threads": 1}
    options = bench.Options(
        trunk=str(checkpoint),
        output=tmp_path,
        seeds=(0, 1),
        attacks=True,
        export=tmp_path / "exported",
        **few,
        **training,
    )
    bench.main(options)
    files = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    assert load_checkpoint(tmp_path / "exported" / "gap").config.model.head == "gap"
    table = capsys.readouterr().out
    results = {n: bench.Results(tmp_path / f"{n}.csv").rows for n in ("search", "heads", "corruptions", "attacks-6")}
    assert [len(rows) for rows in results.values()] == [4, 4, 4, 4]
    for row in results["attacks-6"]:
        stands = {name: float(row[name]) for name in ("clean", *bench.ATTACKS)}
        for name, (_, _, weaker) in bench.ATTACKS.items():
            assert all(stands[name] <= stands[other] for other in weaker)
    bench.main(options)
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == files
    assert capsys.readouterr().out in table  # without the lines of heads as they were trained

    cells = (tmp_path / "heads.csv").read_text().splitlines(keepends=True)
    (tmp_path / "heads.csv").write_text("".join(cells[:-1]) + cells[-1][:30])
    bench.main(options)
    again = (tmp_path / "heads.csv").read_text().splitlines(keepends=True)
    assert again[:-1] == cells[:-1]
    same = [name not in ("head_us", "train_seconds") for name in cells[0].strip().split(",")]
    old, new = (np.array(rows[-1].strip().split(","))[same].tolist() for rows in (cells, again))
    assert old == new


def test_the_wider_grid_holds_the_narrow_one(bench):
    """That is what makes the heads on 512x6x6 comparable: every second position is the trained trunk's own."""
    torch.manual_seed(0)
    model = create_model(ModelConfig(head="gap", preprocessing=Preprocessing(size=32))).eval()
    wide = bench.without_last_stride(model)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        narrow, broad = model.trunk(x), wide.trunk(x)
    assert wide.trunk_shape() == broad.shape[1:] == (512, 4, 4)
    torch.testing.assert_close(broad[..., ::2, ::2], narrow)
    assert model.trunk_shape() == (512, 2, 2)


def test_both_grids_are_measured_from_one_pass_of_the_trunk(bench, data, tmp_path):
    """The small grid is cut out of the large; a head on it has to see what the trained trunk gives."""
    torch.manual_seed(0)
    config = Config("tiny-vgg16", ModelConfig(head="gap", preprocessing=Preprocessing(size=32)), TrainConfig())
    save_checkpoint(tmp_path / "tiny-vgg16", create_model(config.model).eval(), config)
    checkpoint, faces = load_checkpoint(tmp_path / "tiny-vgg16"), dataset.load(data)
    options = bench.Options(data=str(data), views=1, batch_size=32, limit=32)
    alone, cut, wide = (
        bench.Bench(dataclasses.replace(options, grids=grids), checkpoint, faces, grid)
        for grids, grid in (((3,), 3), ((3, 6), 3), ((3, 6), 6))
    )
    assert (cut.shape, wide.shape) == ((512, 2, 2), (512, 4, 4))
    for kind in ("views", "val"):
        (expected,), (found,), (whole,) = (getattr(one.features, kind) for one in (alone, cut, wide))
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)
        assert whole.shape == (len(found), *wide.shape)
    assert (alone.digest, alone.budget) == (cut.digest, cut.budget)  # rows of either belong into one table
