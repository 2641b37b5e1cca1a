"""A face as a row of a table: the columns that every CSV file and JSON line of this package has in common."""

from typing import TYPE_CHECKING

from fer.emotions import EMOTIONS

if TYPE_CHECKING:
    from fer.recognizer import FacePrediction

__all__ = ["FACE_COLUMNS", "Record", "face_record"]

#: What is told of a face; what comes before says which image, frame or person it belongs to.
FACE_COLUMNS = (
    *("x", "y", "width", "height", "detection", "emotion", "confidence"),
    *(emotion.label for emotion in EMOTIONS),
)

Record = dict[str, str | int | float | None]


def face_record(prediction: "FacePrediction") -> Record:
    """A face under the names of ``FACE_COLUMNS``.

    ``x``, ``y``, ``width`` and ``height`` are in whole pixels of the image as it is seen, and may reach beyond its
    borders. ``detection`` is the detector's score, 0..1, and None (an empty cell, null) where the image was taken
    whole. ``confidence`` and the seven probabilities are in 0..1.
    """
    face = prediction.face
    values = (
        *(*prediction.box, None if face.whole_image else round(face.score, 4)),
        *(prediction.emotion.label, round(prediction.confidence, 6)),
        *(round(probability, 6) for probability in prediction.probabilities.values()),
    )
    return dict(zip(FACE_COLUMNS, values, strict=True))
