"""FER2013 in every form people have it, FER+ votes, and marks of the copies among its images.

data = load("data")              # fer2013.csv, icml_face_data.csv, a .zip or .tar.gz of one, or image folders
train, val = data.split("train"), data.split("val")
"""

import contextlib
import csv
import gzip
import hashlib
import io
import logging
import os
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fer.emotions import EMOTIONS, Emotion
from fer.errors import DatasetError
from fer.synthetic import draw_faces

__all__ = [
    "Dataset",
    "Split",
    "SplitName",
    "cache_folder",
    "download",
    "load",
    "written_whole",
]

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

SIDE = 48
USAGES: dict[str, SplitName] = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
FACES_FILES = ("fer2013.csv", "icml_face_data.csv")
VOTES_FILE = "fer2013new.csv"
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
#: The columns of VOTES that are emotions, in the order of ours; contempt, unknown and NF (no face) are left out.
SEVEN = [VOTES.index(name) for name in sorted(VOTES[:7], key=Emotion.parse)]

COMPETITION_FILE = "icml_face_data.csv"
COMPETITION = "challenges-in-representation-learning-facial-expression-recognition-challenge"
IMAGE_DATASET = "msambare/fer2013"
HOW_TO_GET = (
    f"To get FER2013, run `fer data download`, or fetch {COMPETITION_FILE} from kaggle.com/c/{COMPETITION}/data into "
    "the folder data (data/README.md says more); to go on without it, use `--data synthetic`"
)

DAMAGED = "Get the data again, or correct this by hand"
DESKTOP_FILES = ("Thumbs.db", "desktop.ini", "__MACOSX")
CACHE_FORMAT = b"1"  # another one when what is in the cache, or how it is computed, changes

#: Images as released.
OFFICIAL_SIZES: dict[SplitName, int] = {"train": 28_709, "val": 3_589, "test": 3_589}

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split.

    Attributes:
        images: (N, 48, 48) uint8, grey.
        labels: (N,) int64, 0..6 in the order of :class:`fer.emotions.Emotion`.
        votes: (N, 10) uint8 FER+ votes, columns as in ``VOTES``, or None where there is no fer2013new.csv.
        leaked: (N,) bool, the image has a pixel-identical copy in Training (False throughout for train itself, and
            where the data has no Training to compare with).
        copies: (N,) bool, the image repeats an earlier one of this split to the pixel.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    votes: NDArray[np.uint8] | None
    leaked: NDArray[np.bool_]
    copies: NDArray[np.bool_]

    def __post_init__(self) -> None:
        n = len(self.labels)
        shapes = [self.images.shape == (n, SIDE, SIDE), self.leaked.shape == self.copies.shape == (n,)]
        if not all(shapes) or (self.votes is not None and self.votes.shape != (n, len(VOTES))):
            raise ValueError("images, labels, votes and marks of a split differ in length or shape")

    def __len__(self) -> int:
        return len(self.labels)

    def soft_targets(self, share: float) -> NDArray[np.float32]:
        """The labels as distributions, mixed with what the FER+ annotators saw.

        Args:
            share: weight of the FER+ votes, 0..1, after :func:`fer.ferplus.expected_labels` made labels of them.

        Returns:
            (N, 7) float32, each row sums to 1: ``(1 - share) * onehot + share * expected``.

        Raises:
            DatasetError: share is not 0 and the data has no votes.
        """
        onehot = np.eye(len(EMOTIONS), dtype=np.float32)[self.labels]
        if share == 0:
            return onehot
        from fer.ferplus import expected_labels

        expected = expected_labels(self._votes(), self.labels, len(EMOTIONS))
        return np.asarray((1 - share) * onehot + share * expected, np.float32)

    def ferplus_labels(self) -> NDArray[np.int64]:
        """The emotion with most FER+ votes, of the seven; FER2013's own label decides ties it is part of.

        Returns:
            (N,) int64, 0..6; FER2013's label where none of the seven has a vote.

        Raises:
            DatasetError: the data has no votes.
        """
        onehot = np.eye(len(EMOTIONS), dtype=np.int64)[self.labels]
        return np.asarray((2 * self._votes()[:, SEVEN].astype(np.int64) + onehot).argmax(axis=1), np.int64)

    def _votes(self) -> NDArray[np.uint8]:
        if self.votes is None:
            raise DatasetError(
                f"the data has no FER+ votes: put {VOTES_FILE} (github.com/microsoft/FERPlus) beside fer2013.csv. "
                "Votes belong to rows of that file, so image folders cannot have them"
            )
        return self.votes


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of faces.

    Attributes:
        name: ``FER2013`` where each split has as many images as released, ``synthetic``, or the file's or folder's.
        digest: SHA-256, hex, of all images and labels, the same however they were packed.
        splits: those that are there, in the order train, val, test.
    """

    name: str
    digest: str
    splits: Mapping[SplitName, Split]

    def split(self, name: SplitName) -> Split:
        """The split of that name.

        Raises:
            DatasetError: it is not in the data.
        """
        if name not in self.splits:
            usage = {split: usage for usage, split in USAGES.items()}.get(name, "?")
            raise DatasetError(
                f"the data has no split {name!r} (Usage {usage}), only "
                f"{', '.join(f'{there} ({len(split):,} images)' for there, split in self.splits.items())}. "
                f"Choose one of these or get all of FER2013. {HOW_TO_GET}"
            )
        return self.splits[name]


def cache_folder() -> Path:
    """The folder for what can be computed again: ``$FER_CACHE``, else ``fer-trl`` in the platform's cache folder."""
    if chosen := os.environ.get("FER_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fer-trl"


@contextlib.contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Where to write a file of the cache: it gets its name when it is whole, and is deleted if it never is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def load(path: str | Path, *, cache: Path | None = None) -> Dataset:
    """FER2013 from a file or folder, or schematic faces for ``"synthetic"``.

    Args:
        path: ``"synthetic"`` (2,100 + 350 + 350 faces of :mod:`fer.synthetic`); a CSV; a .zip or .tar.gz with
            fer2013.csv or icml_face_data.csv anywhere inside; a folder with ``train/<emotion>/*.jpg`` and
            ``test/<emotion>/{PublicTest,PrivateTest}_*.jpg``; or a folder that holds one of these, itself or in a
            folder within. Of several, the first kind of: fer2013.csv, icml_face_data.csv, .zip, .tar.gz, image
            folders; of one kind the outermost, then the first by name. FER+ votes come from fer2013new.csv in the
            archive or beside the file.
        cache: folder for the images as arrays, keyed by the content of the source; :func:`cache_folder` by default.

    Raises:
        DatasetError: there is no data, or not all of it is as it should be; the message names file and row.
    """
    if path == "synthetic":
        return _synthetic()
    source = Path(path)
    try:
        source = _find(source)
        file = (cache or cache_folder()) / f"fer2013-{_key(source)}.npz"
        if (dataset := _read_cache(file)) is None:
            log.info("reading %s; the next start takes its images from %s", source, file)
            dataset = _read_folders(source) if source.is_dir() else _read_file(source)
            _write_cache(file, dataset)
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error}. Check its permissions and the disk") from error
    others = {name: len(split) for name, split in dataset.splits.items() if len(split) != OFFICIAL_SIZES[name]}
    for name, images in others.items():  # a file cut off between two rows looks like a whole one
        log.warning("%s: %s has %d images; FER2013 as released has %d", source, name, images, OFFICIAL_SIZES[name])
    return replace(dataset, name=source.resolve().name) if others else dataset


def _synthetic() -> Dataset:
    sizes: dict[SplitName, int] = {"train": 2100, "val": 350, "test": 350}
    usages = np.repeat(SPLITS, list(sizes.values()))
    labels = np.arange(len(usages)) % len(EMOTIONS)
    return _assemble("synthetic", draw_faces(labels, seed=2013), labels, usages)


# --- where it is


def _find(path: Path) -> Path:
    """The file or image folder that ``path`` is or holds."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DatasetError(f"no data at {path}: there is no such file or folder. {HOW_TO_GET}")
    folders = [path, *(p for p in _entries(path) if p.is_dir())]
    for pattern in (*FACES_FILES, "*.zip", "*.tar.gz", "*.tgz"):
        for folder in folders:
            for file in sorted(folder.glob(pattern)):
                if pattern != "*.zip" or _has_faces(file):
                    return file
    for folder in folders:
        if (folder / "train").is_dir() or (folder / "test").is_dir():
            return folder
    raise DatasetError(
        f"no data in {path}: expected {' or '.join(FACES_FILES)}, a .zip or .tar.gz of it, or folders train/ and test/ "
        f"with images (unpack them if they are in an archive). {HOW_TO_GET}"
    )


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, without the files that desktops leave in it."""
    names = sorted(path.name for path in folder.iterdir())
    return [folder / name for name in names if not name.startswith(".") and name not in DESKTOP_FILES]


def _key(source: Path) -> str:
    """A digest of the source's content (of an image folder: names, sizes and times) and of the votes beside it."""
    digest = hashlib.sha256(CACHE_FORMAT)
    if source.is_dir():
        for file, _, _ in _images(source):
            stat = file.stat()
            digest.update(f"{file.relative_to(source).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    else:
        for file in (source, source.with_name(VOTES_FILE)):
            if file.is_file():
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


# --- CSV, and archives of it

Members = Mapping[str, Callable[[], IO[bytes]]]


@contextlib.contextmanager
def _open_members(path: Path) -> Iterator[Members]:
    """The files in an archive by name, each with what opens it, without unpacking; a plain file is its own member.

    Content decides, not the suffix: browsers and Kaggle's API save zips under the name of the CSV in them.
    """
    with path.open("rb") as file:
        magic = file.read(2)
    try:
        if magic == b"PK":
            with zipfile.ZipFile(path) as archive:
                yield {name: partial(archive.open, name) for name in archive.namelist()}
        elif magic == b"\x1f\x8b":
            with tarfile.open(path) as tar:
                yield {info.name: partial(_open_in_tar, tar, info) for info in tar if info.isfile()}
        else:
            yield {path.name: lambda: path.open("rb")}
    except (EOFError, RuntimeError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, tarfile.TarError) as error:
        raise DatasetError(f"{path}: the archive is damaged or not a .zip or .tar.gz ({error}). {DAMAGED}") from error


def _open_in_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    assert stream is not None  # noqa: S101  # it is a regular file
    return stream


def _pick(members: Members, *basenames: str) -> str | None:
    """The member with the first of these basenames that is there; of several the outermost."""
    for basename in basenames:
        found = [name for name in members if PurePosixPath(name).name == basename and "__MACOSX" not in name]
        if found:
            return min(found, key=lambda name: (name.count("/"), name))
    return None


def _has_faces(archive: Path) -> bool:
    with _open_members(archive) as members:
        return _pick(members, *FACES_FILES) is not None


def _read_file(path: Path) -> Dataset:
    with _open_members(path) as members:
        packed = list(members) != [path.name]
        faces = _pick(members, *FACES_FILES) if packed else path.name
        if faces is None:
            raise DatasetError(
                f"{path}: there is no {' or '.join(FACES_FILES)} inside. If it has folders of images, unpack it and "
                f"give the folder that holds train/ and test/. {HOW_TO_GET}"
            )
        with members[faces]() as stream:
            images, labels, usages = _parse_faces(stream, f"{path}: {faces}" if packed else str(path))
        votes = None
        if packed and (name := _pick(members, VOTES_FILE)):
            with members[name]() as stream:
                votes = _parse_votes(stream, f"{path}: {name}", labels, usages)
        elif (beside := path.with_name(VOTES_FILE)).is_file():
            with beside.open("rb") as stream:
                votes = _parse_votes(stream, str(beside), labels, usages)
    return _assemble("FER2013", images, labels, usages, votes)


def _rows(stream: IO[bytes], columns: Sequence[str], where: str) -> Iterator[tuple[str, list[str]]]:
    """Each row of a CSV as its place (file and line) and its fields in the named columns."""
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        try:
            header = [name.strip() for name in next(reader, [])]
            if missing := [name for name in columns if name not in header]:
                raise DatasetError(
                    f"{where}, line 1: expected the columns {', '.join(columns)}; there is no {', '.join(missing)} in "
                    f"{', '.join(header)[:200]!r}. Use the file as released: {' or '.join(FACES_FILES)} (the "
                    f"competition's train.csv does not say which split a row is of), {VOTES_FILE} for votes"
                )
            indices = [header.index(name) for name in columns]
            for row in filter(None, reader):
                place = f"{where}, line {reader.line_num}"
                if len(row) != len(header):
                    raise DatasetError(f"{place}: {len(row)} fields instead of {len(header)}. {DAMAGED}")
                yield place, [row[i].strip() for i in indices]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DatasetError(f"{where}, line {reader.line_num + 1}: this is not CSV ({error}). {DAMAGED}") from error


def _parse_usage(usage: str, place: str) -> SplitName:
    if usage not in USAGES:
        raise DatasetError(f"{place}: unknown Usage {usage[:40]!r}; expected {', '.join(USAGES)}. {DAMAGED}")
    return USAGES[usage]


def _parse_numbers(fields: Sequence[str], count: int, what: str, place: str) -> bytes:
    try:
        numbers = bytes(map(int, fields))  # of all ways the one that refuses what is not 0 to 255, at 0.2 ms an image
    except ValueError:
        raise DatasetError(f"{place}: {what} must be whole numbers from 0 to 255. {DAMAGED}") from None
    if len(numbers) != count:
        raise DatasetError(f"{place}: {len(numbers):,} {what} instead of {count:,}. {DAMAGED}")
    return numbers


def _parse_faces(stream: IO[bytes], where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.str_]]:
    """Images (N, 48, 48), labels (N,) and splits (N,), in the order of the rows."""
    known = {str(int(emotion)): int(emotion) for emotion in EMOTIONS}
    images, labels, usages = bytearray(), [], []
    for place, (label, pixels, usage) in _rows(stream, ("emotion", "pixels", "Usage"), where):
        if label not in known:
            raise DatasetError(f"{place}: unknown label {label[:40]!r}; expected 0 to {len(EMOTIONS) - 1}. {DAMAGED}")
        labels.append(known[label])
        usages.append(_parse_usage(usage, place))
        images += _parse_numbers(pixels.split(), SIDE * SIDE, "pixels", place)
    if not labels:
        raise DatasetError(f"{where} has no rows. {DAMAGED}")
    return np.frombuffer(images, np.uint8).reshape(-1, SIDE, SIDE), np.array(labels), np.array(usages)


def _parse_votes(
    stream: IO[bytes], where: str, labels: NDArray[np.int64], usages: NDArray[np.str_]
) -> NDArray[np.uint8]:
    """FER+ votes (N, 10) of the rows with these labels and splits.

    Nothing but their order ties votes to faces. Rows of a split that the data lacks are passed over.
    """
    rows, theirs = bytearray(), []
    for place, (usage, *fields) in _rows(stream, ("Usage", *VOTES), where):
        theirs.append(_parse_usage(usage, place))
        rows += _parse_numbers(fields, len(VOTES), "votes", place)
    present = np.isin(theirs, usages)
    if not np.array_equal(np.array(theirs)[present], usages):
        counts = (f"{name} {theirs.count(name):,} votes, {np.count_nonzero(usages == name):,} faces" for name in SPLITS)
        raise DatasetError(
            f"{where} is not for these faces, row by row ({'; '.join(counts)}). Use the {VOTES_FILE} and the face data "
            "as released, or take the votes away"
        )
    votes = np.frombuffer(rows, np.uint8).reshape(-1, len(VOTES))[present]
    seven = votes[:, SEVEN]
    agreement = (seven.argmax(axis=1) == labels)[seven.any(axis=1)].mean() if seven.any() else 1.0
    if len(labels) >= 500 and agreement < 0.4:  # as released 0.65, with rows shuffled 0.2
        raise DatasetError(
            f"{where} agrees with only {agreement:.0%} of the labels: its rows, or those of the faces, are not in the "
            "order as released. Use both files as released, or take the votes away"
        )
    return votes


# --- image folders


def _images(folder: Path) -> Iterator[tuple[Path, SplitName, Emotion]]:
    """Each image file with its split and emotion, sorted by path."""
    for split_folder in (path for path in _entries(folder) if path.is_dir()):
        if split_folder.name not in SPLITS:
            if (split_folder / "happy").is_dir():
                raise DatasetError(f"{split_folder}: expected {', '.join(SPLITS)}. Rename the folder or take it away")
            continue
        for emotion_folder in _entries(split_folder):
            try:
                emotion = Emotion.parse(emotion_folder.name)
            except ValueError as error:
                raise DatasetError(f"{emotion_folder}: {error}. Rename the folder or take it away") from None
            for file in _entries(emotion_folder):
                yield file, _split_of(file, folder), emotion


def _split_of(file: Path, folder: Path) -> SplitName:
    name = file.relative_to(folder).parts[0]
    if name != "test":
        return "train" if name == "train" else "val"
    if file.name.startswith("PublicTest_"):
        return "val"
    if file.name.startswith("PrivateTest_") or (folder / "val").is_dir():
        return "test"
    raise DatasetError(
        f"{file}: val (PublicTest) and test (PrivateTest) cannot be told apart, because this name does not begin with "
        "PublicTest_ or PrivateTest_. Which is it? Move the images of val to a folder val/ beside train/ and test/, or "
        f"use the official CSV. {HOW_TO_GET}"
    )


def _read_folders(folder: Path) -> Dataset:
    for name in (name for name in SPLITS if (folder / name).is_dir()):
        there = {Emotion.parse(p.name) for p in _entries(folder / name)}
        if missing := [emotion.label for emotion in EMOTIONS if emotion not in there]:
            raise DatasetError(f"{folder / name} has no folder {', '.join(missing)}. {DAMAGED}")
    found = list(_images(folder))
    if not found:
        raise DatasetError(f"{folder} has no images. {HOW_TO_GET}")
    from PIL import Image  # the cache folder is wanted where Pillow is not

    from fer.images import read_image

    images = np.empty((len(found), SIDE, SIDE), np.uint8)
    for i, (file, _, _) in enumerate(found):
        try:
            with Image.open(file) as image:  # not OpenCV, which fills up truncated JPEGs without a word
                if image.size != (SIDE, SIDE):
                    width, height = image.size
                    raise DatasetError(f"{file}: {width}x{height} pixels instead of {SIDE}x{SIDE}. {DAMAGED}")
                deep = image.mode.startswith(("I", "F"))  # which Pillow would cut off at 255
                images[i] = read_image(image)[..., 0] if deep else np.asarray(image.convert("L"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises them all
            raise DatasetError(f"{file} is not a readable image ({error}). {DAMAGED}") from error
    return _assemble("FER2013", images, np.array([int(e) for _, _, e in found]), np.array([s for _, s, _ in found]))


# --- from rows to splits, and the cache


def _assemble(
    name: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    usages: NDArray[np.str_],
    votes: NDArray[np.uint8] | None = None,
) -> Dataset:
    digest = hashlib.sha256()
    splits: dict[SplitName, Split] = {}
    training: set[bytes] = set()
    for split in (split for split in SPLITS if split in usages):
        rows = usages == split
        its_images, its_labels = images[rows], labels[rows].astype(np.int64)
        digest.update(split.encode())
        digest.update(its_images)
        digest.update(its_labels.astype(np.uint8))
        seen: set[bytes] = set()
        leaked, copies = np.zeros((2, len(its_labels)), np.bool_)
        for i, pixels in enumerate(image.tobytes() for image in its_images):
            leaked[i], copies[i] = pixels in training, pixels in seen
            seen.add(pixels)
        training = seen if split == "train" else training
        splits[split] = Split(its_images, its_labels, None if votes is None else votes[rows], leaked, copies)
    return Dataset(name, digest.hexdigest(), splits)


def _read_cache(file: Path) -> Dataset | None:
    """What :func:`_write_cache` wrote; None where there is nothing or it is damaged."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            splits = {
                split: Split(*(arrays.get(f"{split}.{field}") for field in Split.__dataclass_fields__))
                for split in SPLITS
                if f"{split}.labels" in arrays
            }
            return Dataset("FER2013", str(arrays["digest"]), splits)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        log.warning("the cache %s is damaged (%s) and is built anew", file, error)
        return None


def _write_cache(file: Path, dataset: Dataset) -> None:
    arrays = {
        f"{name}.{field}": array for name, split in dataset.splits.items() for field, array in vars(split).items()
    }
    try:
        with written_whole(file) as part, part.open("wb") as stream:
            np.savez(stream, digest=dataset.digest, **{key: a for key, a in arrays.items() if a is not None})
    except OSError as error:
        log.warning("the cache %s cannot be written (%s), so the next start reads the data again", file, error)


# --- fer data download


def download(target: Path) -> Path:
    """FER2013 from Kaggle, through kagglehub.

    First the competition's icml_face_data.csv, the official data; it wants a Kaggle token and that its rules are
    accepted. Where that fails the image folder of msambare/fer2013, which is public but has been through JPEG.

    Args:
        target: folder to put it in; made if need be.

    Returns:
        The CSV or image folder, ready for :func:`load`.

    Raises:
        DatasetError: kagglehub is not installed, or Kaggle gave neither.
    """
    try:
        import kagglehub
    except ImportError:
        raise DatasetError(f'downloading needs kagglehub: pip install "fer-trl[data]". {HOW_TO_GET}') from None
    try:
        return _put(Path(kagglehub.competition_download(COMPETITION, path=COMPETITION_FILE)), target / COMPETITION_FILE)
    except Exception as error:  # kagglehub's own kinds have no common base, and requests' come through too
        reason = " ".join(str(error).split())
        log.warning("Kaggle did not give the competition's CSV (%s); trying the image folder %s", reason, IMAGE_DATASET)
    if (folder := target / "fer2013").is_dir():
        log.warning("%s is there already; take it away to fetch it anew", folder)
        return folder
    try:
        return _put(Path(kagglehub.dataset_download(IMAGE_DATASET)), folder)
    except Exception as error:
        raise DatasetError(
            f"Kaggle gave neither the competition's CSV ({reason}) nor the image folder "
            f"({' '.join(str(error).split())}). Put a Kaggle token where kagglehub finds it, accept the rules at "
            f"kaggle.com/c/{COMPETITION}/rules and try again, or do it by hand. {HOW_TO_GET}"
        ) from error


def _put(source: Path, place: Path) -> Path:
    """Copies out of kagglehub's cache, whole or not at all: first under a name that :func:`load` passes over."""
    part = place.with_name(f".{place.name}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, part, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, part)
    return part.replace(place)
