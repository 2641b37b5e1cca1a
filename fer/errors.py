"""Every error that the package raises on purpose.

A message says what was expected, what came instead, and what to do about it.

    FerError
    |-- DatasetError      a dataset that is missing, malformed or incomplete
    |-- CheckpointError   a checkpoint that is missing, damaged or does not fit its configuration
    |-- ConfigError       settings that contradict each other
    |-- DetectorError     a face detector whose model file is missing or is not what it should be
    |-- ExportError       a network that cannot be exported, or would not answer as its checkpoint does
    |-- ImageError        an image file that cannot be read
    `-- CameraError       a camera, stream or video that cannot be opened or has stopped
"""

__all__ = [
    "CameraError",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DetectorError",
    "ExportError",
    "FerError",
    "ImageError",
]


class FerError(Exception):
    """Base class of all errors of this package."""


class DatasetError(FerError):
    """A dataset is missing, malformed or incomplete."""


class CheckpointError(FerError):
    """A checkpoint is missing, damaged or does not fit its configuration."""


class ConfigError(FerError):
    """Settings contradict each other or are out of range."""


class DetectorError(FerError):
    """A face detector's model file is missing or is not the expected one."""


class ExportError(FerError):
    """A network cannot be exported, or the file would not answer as its checkpoint does."""


class ImageError(FerError):
    """An image file cannot be read."""


class CameraError(FerError):
    """A camera, stream or video cannot be opened or has stopped."""
