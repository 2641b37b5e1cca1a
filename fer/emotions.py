"""The seven facial expressions of FER2013, their order, colours and names in other datasets."""

from enum import IntEnum

__all__ = ["EMOTIONS", "Emotion"]


class Emotion(IntEnum):
    """A facial expression; its value is the class index of FER2013 and of every model here."""

    ANGRY = 0
    DISGUST = 1
    FEAR = 2
    HAPPY = 3
    SAD = 4
    SURPRISE = 5
    NEUTRAL = 6

    @property
    def label(self) -> str:
        """Lower-case name, as in file names, tables and JSON: ``"angry"``."""
        return self.name.lower()

    @property
    def color(self) -> tuple[int, int, int]:
        """SRGB colour, 0..255, from a palette that the colour-blind can tell apart (Okabe and Ito, 2008)."""
        return _COLORS[self]

    @classmethod
    def parse(cls, name: str) -> "Emotion":
        """The emotion of that name, in FER2013's or another dataset's spelling, in any case.

        Raises:
            ValueError: the name is unknown; the message lists those that are known.
        """
        key = name.strip().lower()
        try:
            return _NAMES[key]
        except KeyError:
            raise ValueError(f"unknown emotion {name!r}; known are {', '.join(sorted(_NAMES))}") from None


EMOTIONS: tuple[Emotion, ...] = tuple(Emotion)

_COLORS: dict[Emotion, tuple[int, int, int]] = {
    Emotion.ANGRY: (213, 94, 0),  # vermilion
    Emotion.DISGUST: (0, 158, 115),  # bluish green
    Emotion.FEAR: (204, 121, 167),  # reddish purple
    Emotion.HAPPY: (240, 228, 66),  # yellow
    Emotion.SAD: (0, 114, 178),  # blue
    Emotion.SURPRISE: (230, 159, 0),  # orange
    Emotion.NEUTRAL: (86, 180, 233),  # sky blue
}

_NAMES: dict[str, Emotion] = {emotion.label: emotion for emotion in Emotion} | {
    "anger": Emotion.ANGRY,
    "disgusted": Emotion.DISGUST,
    "afraid": Emotion.FEAR,
    "fearful": Emotion.FEAR,
    "happiness": Emotion.HAPPY,
    "joy": Emotion.HAPPY,
    "sadness": Emotion.SAD,
    "surprised": Emotion.SURPRISE,
}
