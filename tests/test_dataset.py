import gzip
import logging
import shutil
import sys
import tarfile
import time
import types
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import rich
from PIL import Image

from fer import dataset as datasets
from fer.dataset import Dataset, Split, download, load
from fer.dataset_check import check, render
from fer.emotions import EMOTIONS, Emotion
from fer.errors import DatasetError
from fer.ferplus import expected_labels

USAGES = ["Training"] * 4 + ["PublicTest"] * 2 + ["PrivateTest"] * 2
LABELS = [0, 3, 3, 6, 1, 2, 4, 5]
FACES = np.random.default_rng(0).integers(0, 256, (8, 48, 48)).astype(np.uint8)
FACES[2] = FACES[1]  # a copy within Training
FACES[5] = FACES[0]  # a leak into PublicTest
FACES[7] = 77  # one flat grey
VOTES_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def rows(faces=FACES, labels=LABELS, usages=USAGES) -> list[str]:
    return [
        f"{label},{' '.join(map(str, face.ravel()))},{usage}"
        for face, label, usage in zip(faces, labels, usages, strict=True)
    ]


def write(path: Path, lines: list[str], header: str = "emotion,pixels,Usage") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def write_votes(path: Path, votes, usages=USAGES) -> Path:
    lines = [
        f"{usage},fer{i}.png,{','.join(map(str, v))}" for i, (usage, v) in enumerate(zip(usages, votes, strict=True))
    ]
    return write(path, lines, VOTES_HEADER)


def write_images(folder: Path, suffix: str = "png") -> Path:
    for part in ("train", "test"):
        for emotion in EMOTIONS:
            (folder / part / emotion.label).mkdir(parents=True)
    for i, (face, label, usage) in enumerate(zip(FACES, LABELS, USAGES, strict=True)):
        part = "train" if usage == "Training" else "test"
        Image.fromarray(face).save(folder / part / Emotion(label).label / f"{usage}_{i}.{suffix}")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def csv_file(tmp_path):
    return write(tmp_path / "data" / "fer2013.csv", rows())


# --- reading


def test_a_csv_comes_back_pixel_by_pixel_in_its_splits(csv_file, cache):
    """Else training would see other faces, labels or splits than FER2013's."""
    data = load(csv_file, cache=cache)
    assert data.name == "fer2013.csv"  # FER2013 itself has more images: a card must not say it was that
    assert list(data.splits) == ["train", "val", "test"]
    for name, part in (("train", slice(0, 4)), ("val", slice(4, 6)), ("test", slice(6, 8))):
        split = data.split(name)
        assert np.array_equal(split.images, FACES[part])
        assert split.labels.tolist() == LABELS[part]
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert split.votes is None
        assert len(split) == len(LABELS[part])


def test_copies_and_leaks_are_marked(csv_file, cache):
    """Else accuracy would be reported on images that were trained on, and copies would be trained on twice."""
    data = load(csv_file, cache=cache)
    assert data.split("train").copies.tolist() == [False, False, True, False]
    assert data.split("val").leaked.tolist() == [False, True]
    assert not any(data.split(name).leaked.any() for name in ("train", "test"))
    assert not any(data.split(name).copies.any() for name in ("val", "test"))


def test_the_same_content_has_the_same_digest_however_it_is_packed(csv_file, cache, tmp_path):
    """Else features computed for the CSV would be computed again for the zip, and records would not match."""
    expected = load(csv_file, cache=cache).digest
    icml = [f"{label},{usage},{pixels}" for label, pixels, usage in (row.split(",") for row in rows())]
    sources = [write(tmp_path / "icml" / "icml_face_data.csv", icml, "emotion, Usage, pixels")]
    for name in ("fer.zip", "fer2013.csv"):  # Kaggle's API saves a zip under the name of the CSV in it
        sources.append(tmp_path / "zipped" / name)
        sources[-1].parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(sources[-1], "w") as archive:
            archive.writestr("__MACOSX/._fer2013.csv", "no CSV")
            archive.writestr("__MACOSX/fer2013.csv", "no CSV")
            archive.write(csv_file, "deep/inside/fer2013.csv")
    sources.append(tmp_path / "fer2013.tar.gz")
    with tarfile.open(sources[-1], "w:gz") as archive:
        archive.add(csv_file, "fer2013/fer2013.csv")
    windows = tmp_path / "other name.csv"
    windows.write_bytes(b"\xef\xbb\xbf" + csv_file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    for source in (*sources, windows):
        data = load(source, cache=cache)
        assert data.digest == expected, source
        assert np.array_equal(data.split("test").images, FACES[6:])
    other = rows(labels=[1, *LABELS[1:]])
    assert load(write(tmp_path / "other.csv", other), cache=cache).digest != expected


def test_an_archive_is_read_where_it_is(csv_file, cache, tmp_path):
    """Else a member named ../../x could be written over a user's files."""
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(csv_file, "../../outside/fer2013.csv")
    before = sorted(tmp_path.rglob("*"))
    assert len(load(archive, cache=cache).splits) == 3
    new = set(tmp_path.rglob("*")) - set(before)
    assert {path.parent for path in new} <= {tmp_path, cache}


def test_a_folder_is_searched_in_the_documented_order(cache, tmp_path):
    """Else which data a run used would depend on the file system."""
    folder = tmp_path / "data"
    write_images(folder / "images")
    assert load(folder, cache=cache).digest == load(folder / "images", cache=cache).digest
    for name, label in (("a.tar.gz", 1), ("z.zip", 2), ("sub/icml_face_data.csv", 4), ("sub/fer2013.csv", 5)):
        file = write(folder / name, rows(FACES[:1], [label], ["Training"]))
        if name.endswith("zip"):
            csv = file.rename(tmp_path / "fer2013.csv")
            with zipfile.ZipFile(file, "w") as archive:
                archive.write(csv, "fer2013.csv")
            with zipfile.ZipFile(folder / "another.zip", "w") as archive:
                archive.writestr("readme.txt", "no faces here")
        assert load(folder, cache=cache).split("train").labels.tolist() == [label]


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_without_data_the_error_says_how_to_get_it_and_how_to_go_on_without(cache, tmp_path, place):
    """Else a newcomer's first command would end in a riddle."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=rf"no data (at|in) .*{place}") as error:
        load(tmp_path / place, cache=cache)
    assert "fer data download" in str(error.value)
    assert "data/README.md" in str(error.value)
    assert "--data synthetic" in str(error.value)


def test_data_without_a_split_serves_until_that_split_is_asked_for(cache, tmp_path):
    """Else whoever lacks PrivateTest could not train, or would evaluate on something else unawares."""
    data = load(write(tmp_path / "fer2013.csv", rows()[:6]), cache=cache)
    assert len(data.split("val")) == 2
    with pytest.raises(
        DatasetError, match=r"no split 'test' \(Usage PrivateTest\), only train \(4 images\), val \(2 im"
    ):
        data.split("test")


def test_a_shorter_file_than_the_released_one_is_not_taken_in_silence(csv_file, cache, caplog):
    """Else a download that stopped between two rows would pass for the whole dataset."""
    load(csv_file, cache=cache)
    assert "train has 4 images; FER2013 as released has 28709" in caplog.text


# --- what is wrong with a CSV

GOOD = rows()[0]
PIXELS = GOOD.split(",")[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD.replace("0,", "7,", 1), "unknown label '7'; expected 0 to 6"),
        (GOOD.replace("0,", "happy,", 1), "unknown label 'happy'"),
        (GOOD.replace("Training", "Test"), "unknown Usage 'Test'; expected Training, PublicTest, PrivateTest"),
        (f"0,{PIXELS} 5,Training", "2,305 pixels instead of 2,304"),
        (f"0,{PIXELS[:-4].rsplit(' ', 1)[0]},Training", "pixels instead of 2,304"),
        ("0,,Training", "0 pixels instead of 2,304"),
        (f"0,256 {PIXELS.split(' ', 1)[1]},Training", "pixels must be whole numbers from 0 to 255"),
        (f"0,-1 {PIXELS.split(' ', 1)[1]},Training", "pixels must be whole numbers from 0 to 255"),
        (f"0,1.5 {PIXELS.split(' ', 1)[1]},Training", "pixels must be whole numbers from 0 to 255"),
        (f"0,x {PIXELS.split(' ', 1)[1]},Training", "pixels must be whole numbers from 0 to 255"),
        (GOOD[:3000], "2 fields instead of 3"),
        (GOOD + ",more", "4 fields instead of 3"),
    ],
)
def test_a_malformed_row_is_named_with_file_and_line(cache, tmp_path, row, message):
    """Else a damaged file would train on fewer or other faces, or end in a traceback."""
    file = write(tmp_path / "fer2013.csv", [GOOD, "", row, GOOD])
    with pytest.raises(DatasetError) as error:
        load(file, cache=cache)
    assert f"{file}, line 4: " in str(error.value)
    assert message in str(error.value)
    assert "Get the data again" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected the columns emotion, pixels, Usage; there is no emotion, pixels, Usage in ''"),
        (b"emotion,pixels,Usage\n", "has no rows"),
        (f"emotion,pixels\n0,{PIXELS}\n".encode(), "there is no Usage in 'emotion, pixels'"),
        (f"emotion;pixels;Usage\n0;{PIXELS};Training\n".encode(), "there is no emotion, pixels, Usage in"),
        (f"emotion,pixels,Usage\n{GOOD}\n".encode("utf-16"), "line 1: this is not CSV"),
        (f'emotion,pixels,Usage\n"{GOOD}\n{GOOD * 20}'.encode(), "this is not CSV"),
        (b"\x1f\x8b but no gzip", "the archive is damaged or not a .zip or .tar.gz"),
        (gzip.compress(f"emotion,pixels,Usage\n{GOOD}\n".encode()), "the archive is damaged or not a .zip or .tar.gz"),
        (b"PK but no zip", "the archive is damaged or not a .zip or .tar.gz"),
    ],
)
def test_a_file_that_is_no_fer2013_is_refused_by_name(cache, tmp_path, content, message):
    """Else whoever takes the wrong file (train.csv, a web page) would get a traceback."""
    file = tmp_path / "fer2013.csv"
    file.write_bytes(content)
    with pytest.raises(DatasetError) as error:
        load(tmp_path, cache=cache)
    assert str(file) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_is_refused_by_name(csv_file, cache, tmp_path, kind, damage):
    """Else half a download would pass for the dataset or end in a traceback."""
    archive = tmp_path / f"fer2013.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(csv_file, "fer2013.csv")
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(csv_file, "fer2013.csv")
    content = bytearray(archive.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DatasetError) as error:
        load(archive, cache=cache)
    assert str(archive) in str(error.value)
    assert not list(cache.glob("*"))


def test_a_zip_of_images_says_to_unpack_it(cache, tmp_path):
    """Else the download of Kaggle's image folder would look unusable."""
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("train/happy/Training_1.jpg", b"")
    for path in (archive, tmp_path):
        with pytest.raises(DatasetError, match="unpack"):
            load(path, cache=cache)


# --- image folders


def test_image_folders_come_back_in_their_splits(cache, tmp_path):
    """Else the prefixes PublicTest and PrivateTest would be mixed, and val would hold test images."""
    folder = write_images(tmp_path / "images")
    (folder / "train" / ".DS_Store").touch()
    (folder / "train" / "happy" / "Thumbs.db").touch()
    data = load(folder, cache=cache)
    for name, part in (("train", slice(0, 4)), ("val", slice(4, 6)), ("test", slice(6, 8))):
        found = {(image.tobytes(), int(label)) for image, label in zip(*vars_of(data.split(name)), strict=True)}
        assert found == {(face.tobytes(), label) for face, label in zip(FACES[part], LABELS[part], strict=True)}
        assert len(data.split(name)) == len(FACES[part])
    assert data.split("val").leaked.sum() == 1
    assert data.split("train").copies.sum() == 1
    with pytest.raises(DatasetError, match="image folders cannot have them"):
        data.split("train").soft_targets(0.5)


def vars_of(split: Split):
    return split.images, split.labels


def test_val_and_test_that_cannot_be_told_apart_are_asked_for(cache, tmp_path):
    """Else a model would be chosen on the images that it is then tested on."""
    folder = write_images(tmp_path / "images")
    for file in sorted((folder / "test").glob("*/*")):
        file.rename(file.with_name(file.name.split("_")[1]))
    with pytest.raises(DatasetError, match=r"4\.png: val \(PublicTest\) and test \(PrivateTest\) cannot be told apart"):
        load(folder, cache=cache)
    shutil.copytree(folder / "test", folder / "val")
    data = load(folder, cache=cache)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [4, 4, 4]


def damage_size(folder):
    file = folder / "train" / "angry" / "Training_0.png"
    Image.new("L", (96, 64)).save(file)
    return file, "96x64 pixels instead of 48x48"


def damage_cut(folder):
    file = folder / "train" / "angry" / "Training_0.jpg"
    Image.fromarray(FACES[0]).save(file)
    file.write_bytes(file.read_bytes()[:-300])
    return file, "not a readable image"


def damage_empty(folder):
    file = folder / "test" / "fear" / "PublicTest_5.png"
    file.write_bytes(b"")
    return file, "not a readable image"


def damage_other_file(folder):
    file = folder / "train" / "sad" / "notes.txt"
    file.write_text("not an image")
    return file, "not a readable image"


def damage_unknown_emotion(folder):
    file = folder / "train" / "bored"
    file.mkdir()
    return file, "unknown emotion 'bored'; known are"


def damage_missing_emotion(folder):
    (folder / "train" / "surprise").rmdir()
    return folder / "train", "has no folder surprise"


def damage_unknown_split(folder):
    shutil.copytree(folder / "test", folder / "validation")
    return folder / "validation", "expected train, val, test. Rename the folder"


def damage_no_images(folder):
    for file in folder.glob("*/*/*"):
        file.unlink()
    return folder, "has no images"


@pytest.mark.parametrize(
    "damage",
    [
        damage_size,
        damage_cut,
        damage_empty,
        damage_other_file,
        damage_unknown_emotion,
        damage_missing_emotion,
        damage_unknown_split,
        damage_no_images,
    ],
)
def test_image_folders_that_are_not_as_they_should_be_are_refused_by_name(cache, tmp_path, damage):
    """Else training would go on with fewer images, or with grey rectangles for the damaged ones."""
    place, message = damage(write_images(tmp_path / "images"))
    with pytest.raises(DatasetError) as error:
        load(tmp_path, cache=cache)
    assert str(place) in str(error.value)
    assert message in str(error.value)


def test_16_bit_images_are_not_cut_off_at_255(cache, tmp_path):
    """Else nearly all of each would be white."""
    folder = write_images(tmp_path / "images")
    ramp = np.linspace(0, 65_535, 48 * 48, dtype=np.uint16).reshape(48, 48)
    Image.fromarray(ramp).save(next((folder / "train" / "happy").iterdir()).with_name("aaa.png"))
    train = load(folder, cache=cache).split("train")
    assert any(abs(float(image.mean()) - 127.5) < 1 and np.ptp(image) == 255 for image in train.images)


# --- FER+

#              neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, NF
VOTES = np.array(
    [
        [4, 0, 0, 1, 3, 2, 0, 0, 0, 0],
        [0, 10, 0, 0, 0, 0, 0, 0, 0, 0],
        [5, 5, 0, 0, 0, 0, 0, 0, 0, 0],  # a tie, between neutral and the label, happy
        [0, 0, 0, 0, 0, 0, 0, 6, 2, 2],  # none of the seven
        [0, 0, 0, 4, 0, 4, 0, 2, 0, 0],
        [0, 0, 0, 0, 0, 0, 8, 2, 0, 0],
        [0, 0, 0, 9, 0, 0, 1, 0, 0, 0],
        [0, 0, 9, 0, 1, 0, 0, 0, 0, 0],
    ]
)


def test_ferplus_votes_beside_the_data_become_soft_and_hard_targets(csv_file, cache):
    """Else --ferplus would train on votes of other emotions or other faces."""
    assert load(csv_file, cache=cache).split("train").votes is None
    write_votes(csv_file.with_name("fer2013new.csv"), VOTES)
    train = load(csv_file, cache=cache).split("train")  # the cache of the same CSV without votes must not serve
    assert np.array_equal(train.votes, VOTES[:4])
    assert train.ferplus_labels().tolist() == [6, 3, 3, 6]
    assert check(load(csv_file, cache=cache)).splits["train"].agreement == 0.75
    hard, expected = np.eye(7)[LABELS[:4]], expected_labels(VOTES[:4], train.labels, 7)
    for share in (0.0, 0.25, 1.0):
        targets = train.soft_targets(share)
        assert targets.dtype == np.float32
        assert np.allclose(targets, (1 - share) * hard + share * expected, atol=1e-6)


def test_votes_become_what_the_data_itself_calls_such_faces():
    """Else a model would learn the annotators' convention, which calls much neutral that FER2013 calls sad."""
    votes = np.repeat([[10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]], [60, 30, 8, 2], axis=0).astype(
        np.uint8
    )
    labels = np.array([0] * 30 + [1] * 30 + [1] * 30 + [2] * 6 + [0] * 2 + [0, 2])
    expected = expected_labels(votes, labels, 3)
    assert expected.dtype == np.float32
    assert np.allclose(expected[0], [0.5, 0.5, 0], atol=0.01)  # half of what they call so
    assert np.allclose(expected[60], [0, 1, 0], atol=0.01)
    assert np.allclose(expected[90], [0.25, 0, 0.75], atol=0.01)
    assert np.allclose(expected[98], [0.5, 0, 0.5], atol=0.05)  # nobody voted
    assert np.allclose(expected.mean(0), np.bincount(labels) / 100, atol=1e-3)
    mixed = expected_labels(np.array([[5, 5, 0, 0], *votes], np.uint8), np.array([1, *labels]), 3)[0]
    assert 0.5 < mixed[1] < 1  # between those of the two answers


def test_votes_in_the_archive_are_found(csv_file, cache, tmp_path):
    """Else whoever packs both files together would train without votes."""
    votes = write_votes(tmp_path / "fer2013new.csv", VOTES)
    archive = tmp_path / "packed" / "both.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.write(csv_file, "fer2013.csv")
        file.write(votes, "FERPlus/fer2013new.csv")
    assert np.array_equal(load(archive, cache=cache).split("test").votes, VOTES[6:])


def test_asking_for_votes_that_are_not_there_says_where_to_put_them(csv_file, cache):
    """Else --ferplus 0.5 would quietly train on the plain labels."""
    train = load(csv_file, cache=cache).split("train")
    assert np.array_equal(train.soft_targets(0), np.eye(7)[LABELS[:4]])
    for ask in (lambda: train.soft_targets(0.1), train.ferplus_labels):
        with pytest.raises(DatasetError, match=r"put fer2013new\.csv .* beside"):
            ask()


def test_votes_of_splits_that_the_data_lacks_are_passed_over(cache, tmp_path):
    """Else the official 35,887 votes could not be used with data that lacks PrivateTest."""
    csv = write(tmp_path / "fer2013.csv", rows()[4:6])
    write_votes(tmp_path / "fer2013new.csv", VOTES)
    assert np.array_equal(load(csv, cache=cache).split("val").votes, VOTES[4:6])


def misfit_fewer(folder):
    write_votes(folder / "fer2013new.csv", VOTES[1:], USAGES[1:])
    return "is not for these faces, row by row (train 3 votes, 4 faces; val 2 votes, 2 faces; test 2 votes, 2 faces)"


def misfit_missing_split(folder):
    write_votes(folder / "fer2013new.csv", VOTES[:6], USAGES[:6])
    return "test 0 votes, 2 faces"


def misfit_order(folder):
    write_votes(folder / "fer2013new.csv", VOTES, USAGES[::-1])
    return "is not for these faces, row by row"


def misfit_vote(folder):
    file = write_votes(folder / "fer2013new.csv", VOTES)
    file.write_text(file.read_text().replace(",10,", ",ten,"))
    return "line 3: votes must be whole numbers"


def misfit_header(folder):
    write(folder / "fer2013new.csv", [], "Usage,Image name,neutral")
    return "line 1: expected the columns Usage, neutral, happiness"


@pytest.mark.parametrize("misfit", [misfit_fewer, misfit_missing_split, misfit_order, misfit_vote, misfit_header])
def test_votes_that_do_not_fit_the_faces_are_refused(csv_file, cache, misfit):
    """Else each face would get another face's votes."""
    message = misfit(csv_file.parent)
    with pytest.raises(DatasetError) as error:
        load(csv_file, cache=cache)
    assert str(csv_file.with_name("fer2013new.csv")) in str(error.value)
    assert message in str(error.value)


def test_faces_in_another_order_than_their_votes_are_refused(cache, tmp_path):
    """Else a CSV that was shuffled and saved again would get every vote wrong, and nothing would show it."""
    labels = np.random.default_rng(1).integers(0, 7, 500)
    column = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
    votes = np.zeros((500, 10), int)
    votes[range(500), [datasets.VOTES.index(column[label]) for label in labels]] = 10
    faces, usages = np.zeros((500, 48, 48), np.uint8), ["Training"] * 500
    write_votes(tmp_path / "fer2013new.csv", votes, usages)
    in_order = load(write(tmp_path / "fer2013.csv", rows(faces, labels, usages)), cache=cache)
    assert np.array_equal(in_order.split("train").ferplus_labels(), labels)
    with pytest.raises(DatasetError, match=r"agrees with only 1\d% of the labels"):
        load(write(tmp_path / "fer2013.csv", rows(faces, np.roll(labels, 1), usages)), cache=cache)


# --- the cache


@pytest.fixture
def no_reading(monkeypatch):
    def fail(*_):
        raise AssertionError("the data was read, not the cache")

    def forbid():
        monkeypatch.setattr(datasets, "_read_file", fail)
        monkeypatch.setattr(datasets, "_read_folders", fail)

    return forbid


@pytest.mark.parametrize("kind", ["csv", "images"])
def test_the_second_start_reads_the_cache_and_finds_the_same(cache, tmp_path, no_reading, kind):
    """Else every start would wait for the text to be parsed, or would train on something else."""
    folder = tmp_path / "data"
    if kind == "csv":
        write(folder / "fer2013.csv", rows())
        write_votes(folder / "fer2013new.csv", VOTES)
    else:
        write_images(folder)
    first = load(folder, cache=cache)
    no_reading()
    second = load(folder.rename(tmp_path / "moved"), cache=cache)
    assert first.digest == second.digest
    assert list(first.splits) == list(second.splits)
    for name in first.splits:
        for field, array in vars(first.split(name)).items():
            other = vars(second.split(name))[field]
            assert (array is None and other is None) or (np.array_equal(array, other) and array.dtype == other.dtype)


@pytest.mark.parametrize("kind", ["csv", "images"])
def test_changed_data_is_read_anew(cache, tmp_path, kind):
    """Else whoever corrects the data would go on training on the old one."""
    if kind == "csv":
        write(tmp_path / "data" / "fer2013.csv", rows())
    else:
        write_images(tmp_path / "data")
    before = load(tmp_path / "data", cache=cache)
    if kind == "csv":
        write(tmp_path / "data" / "fer2013.csv", rows(labels=[1, *LABELS[1:]]))
    else:
        Image.new("L", (48, 48)).save(tmp_path / "data" / "train" / "angry" / "Training_0.png")
    assert load(tmp_path / "data", cache=cache).digest != before.digest


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "replaced", "foreign"])
def test_a_damaged_cache_is_built_anew(csv_file, cache, caplog, damage):
    """Else a full disk or a crash would keep the user out until the right file is deleted by hand."""
    first = load(csv_file, cache=cache)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[content.find(FACES[6].tobytes()) + 1000] ^= 1
    if damage == "foreign":
        np.savez(file, digest="x", **{"train.labels": np.zeros(3)})
    else:
        file.write_bytes({"cut": content[:9000], "emptied": b"", "replaced": b"junk"}.get(damage, content))
    assert load(csv_file, cache=cache).digest == first.digest
    assert "is damaged" in caplog.text
    caplog.clear()
    again = load(csv_file, cache=cache)
    assert np.array_equal(again.split("test").images, FACES[6:])
    assert "is damaged" not in caplog.text


def test_without_a_cache_folder_the_data_is_read_all_the_same(csv_file, tmp_path, caplog):
    """Else a read-only home would make the package useless."""
    (tmp_path / "file").touch()
    data = load(csv_file, cache=tmp_path / "file" / "cache")
    assert len(data.splits) == 3
    assert "cannot be written" in caplog.text


def test_the_cache_is_written_whole_or_not_at_all(csv_file, cache, monkeypatch, caplog):
    """Else a start during another's writing would read half a file, and parts would pile up on a full disk."""

    def full(stream, **_):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    load(csv_file, cache=cache)
    assert list(cache.iterdir()) == []
    assert "No space left" in caplog.text


def test_the_cache_folder_is_the_platforms(monkeypatch, tmp_path):
    """Else the cache would fill a folder that nobody knows of, or ignore what the user chose."""
    monkeypatch.delenv("FER_CACHE", raising=False)
    for platform, expected in (
        ("linux", tmp_path / "xdg" / "fer-trl"),
        ("win32", tmp_path / "local" / "fer-trl"),
        ("darwin", Path.home() / "Library" / "Caches" / "fer-trl"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
        assert datasets.cache_folder() == expected
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert datasets.cache_folder() == Path.home() / ".cache" / "fer-trl"
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "mine"))
    assert datasets.cache_folder() == tmp_path / "mine"


# --- fer data check


def with_split(name: str, split: Split, images) -> Dataset:
    return Dataset("FER2013", "0" * 64, {name: Split(images, split.labels, None, split.leaked, split.copies)})


def test_check_counts_what_is_in_each_split(csv_file, cache):
    """Else the table would not show what the data is."""
    report = check(load(csv_file, cache=cache))
    train, test = report.splits["train"], report.splits["test"]
    assert train.images == 4
    assert train.classes == (1, 0, 0, 2, 0, 0, 1)
    assert train.mean == pytest.approx(FACES[:4].mean())
    assert train.std == pytest.approx(FACES[:4].std())
    assert train.sharpness == pytest.approx(np.mean([cv2.Laplacian(f, cv2.CV_64F).var() for f in FACES[:4]]), rel=1e-5)
    assert (train.copies, train.conflicts, train.leaked, train.flat) == (1, 0, 0, 0)
    assert report.splits["val"].leaked == 1
    assert test.flat == 1
    assert not report.votes
    assert "train has 4 images; as released it has 28,709" in report.warnings
    assert "test has no image of happy" in report.warnings


def test_copies_with_differing_labels_are_counted_as_groups(cache, tmp_path):
    """Else the noise of the labels would be under- or overstated."""
    faces = FACES[[0, 0, 0, 1, 1, 3]]
    csv = write(tmp_path / "fer2013.csv", rows(faces, [0, 0, 4, 5, 5, 5], ["Training"] * 6))
    train = check(load(csv, cache=cache)).splits["train"]
    assert (train.copies, train.conflicts) == (3, 1)


def test_a_report_can_be_read(csv_file, cache, capsys):
    """Else `fer data check` would print an object."""
    rich.print(render(check(load(csv_file, cache=cache))))
    printed = capsys.readouterr().out
    for text in ("without FER+ votes", "train", "val", "test", "surprise", "25.0%", "warning: val has 2 images"):
        assert text in printed


def test_synthetic_data_is_not_measured_by_fer2013(synthetic):
    """Else the newcomer's first check would be all warnings."""
    assert check(synthetic).warnings == ()
    train = synthetic.split("train")
    warnings = check(with_split("train", train, train.images)).warnings  # the same faces under FER2013's name
    assert any("filtered copy" in warning for warning in warnings)


# --- fer data download


@pytest.fixture
def kagglehub(monkeypatch):
    """Stands for Kaggle, which tests cannot reach: what it gives is set by each test."""

    def refuse(*_, **__):
        raise RuntimeError("403 Client Error.\n\nYou have not accepted the rules")

    module = types.SimpleNamespace(competition_download=refuse, dataset_download=refuse)
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


def test_download_brings_the_official_csv(kagglehub, csv_file, cache, tmp_path):
    """Else the user would have to search kagglehub's cache for it."""
    asked = []
    kagglehub.competition_download = lambda handle, path: asked.append((handle, path)) or str(csv_file)
    target = tmp_path / "target"
    assert download(target) == target / "icml_face_data.csv"
    assert asked[0][0].startswith("challenges-in-representation-learning")
    assert [path.name for path in target.iterdir()] == ["icml_face_data.csv"]
    assert load(target, cache=cache).digest == load(csv_file, cache=cache).digest


def test_download_falls_back_to_the_image_folder_and_says_so(kagglehub, cache, tmp_path, caplog):
    """Else whoever has no Kaggle account would get nothing, or would not know that it is not the official data."""
    images = write_images(tmp_path / "kaggle")
    kagglehub.dataset_download = lambda _: str(images)
    with caplog.at_level(logging.WARNING):
        assert download(tmp_path / "target") == tmp_path / "target" / "fer2013"
    assert "You have not accepted the rules" in caplog.text
    assert load(tmp_path / "target", cache=cache).digest == load(images, cache=cache).digest
    assert download(tmp_path / "target") == tmp_path / "target" / "fer2013"  # a second time, it stays as it is


def test_when_kaggle_gives_nothing_the_error_says_what_to_do(kagglehub, tmp_path):
    """Else a missing token would end in a traceback of kagglehub's."""
    assert kagglehub
    with pytest.raises(DatasetError, match=r"403 Client Error\. You have not .* accept the rules at kaggle\.com/c/"):
        download(tmp_path)


def test_without_kagglehub_the_error_names_the_extra(monkeypatch, tmp_path):
    """Else the command would end in ModuleNotFoundError."""
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(DatasetError, match=r'pip install "fer-trl\[data\]"'):
        download(tmp_path)


# --- FER2013 itself


def test_fer2013_has_the_known_counts_copies_and_leaks(fer2013):
    """Else figures on this copy could not be compared with anyone's."""
    report = check(fer2013)
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, train.copies, train.conflicts) == (28_709, 1_236, 39)
    assert train.classes == (3995, 436, 4097, 7215, 4830, 3171, 4965)
    assert (val.images, val.leaked) == (3_589, 280)
    assert fer2013.split("train").images[0, 0, :5].tolist() == [70, 80, 82, 72, 58]
    if test := report.splits.get("test"):
        assert (test.images, test.leaked) == (3_589, 288)
    assert set(report.warnings) <= {"there is no split test"}


def test_votes_of_fer2013_agree_with_its_labels(fer2013):
    """Else the votes would be those of other faces."""
    val = fer2013.split("val")
    if val.votes is None:
        pytest.skip("no fer2013new.csv beside FER2013")
    assert check(fer2013).splits["val"].agreement == pytest.approx(0.648, abs=0.001)
    assert np.allclose(val.soft_targets(0.5).sum(axis=1), 1)


def jpeg(image):
    return cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda image: image, None),
        (jpeg, None),
        (lambda image: cv2.GaussianBlur(image, (3, 3), 0), "blurred copy"),
        (lambda image: cv2.GaussianBlur(image, (3, 3), 0.5), "blurred copy"),
        (lambda image: cv2.medianBlur(image, 3), "blurred copy"),
        (lambda image: cv2.bilateralFilter(image, 5, 50, 50), "blurred copy"),
        (cv2.equalizeHist, "sharpened or equalised copy"),
        (cv2.createCLAHE(2, (8, 8)).apply, "sharpened or equalised copy"),
        (lambda image: image // 2 + 60, "filtered copy"),
    ],
    ids=["as released", "jpeg", "gaussian", "weak gaussian", "median", "bilateral", "equalised", "clahe", "contrast"],
)
def test_blurred_and_filtered_copies_are_told_from_the_real_one(fer2013, change, warning):
    """Else a model would be trained on one of the filtered copies that circulate, and fail on real faces."""
    for start in (0, 1000, 2000):
        val = fer2013.split("val")
        rows = slice(start, start + 1000)
        part = Split(val.images[rows], val.labels[rows], None, val.leaked[rows], val.copies[rows])
        copy = with_split("val", part, np.stack([change(image) for image in part.images]))
        found = [w for w in check(copy).warnings if "copy" in w]
        assert (not found) if warning is None else any(warning in w for w in found)


def test_the_second_start_with_fer2013_takes_under_a_second(fer2013, tmp_path, cache):
    """Else each command would begin with a wait."""
    # The same amount of data, written as its cache: parsing 32,298 rows first would be this test's own wait.
    source = tmp_path / "fer2013.csv"
    source.write_bytes(fer2013.split("train").images.tobytes())
    datasets._write_cache(cache / f"fer2013-{datasets._key(source)}.npz", fer2013)
    start = time.process_time()  # not the clock's: others may keep the machine busy
    assert load(source, cache=cache).digest == fer2013.digest
    assert time.process_time() - start < 2
