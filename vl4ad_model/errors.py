"""Errors that a user can cause: each says in one line what was wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Vl4adError(Exception):
    """Base of every error a user can cause. The command line prints its text and exits with status 2."""


class VocabularyError(Vl4adError):
    """A vocabulary, class or hazard prompt is not usable; the message names the entry and the reason."""


class ImageError(Vl4adError):
    """An image cannot be read or has an unusable size, type or encoding."""


class CheckpointError(Vl4adError):
    """Model weights are missing, damaged, or do not fit the network; the message lists the keys."""


class ModelNotFoundError(Vl4adError):
    """A model name is unknown, or its files are not here and cannot be fetched."""


class EngineError(Vl4adError):
    """An inference engine is missing, or cannot build or run the network."""


class EvaluationError(Vl4adError):
    """Scores, labels, images or bags cannot be evaluated; the message names the frame or file."""


class TrainingError(Vl4adError):
    """A training configuration, data set or checkpoint is not usable."""


class SceneError(Vl4adError):
    """A rendered scene cannot be made, or its output cannot be written."""


class MissingDependencyError(Vl4adError):
    """An optional package is not installed; the message names the pip extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'vl4ad_ros[{extra}]'")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a complaint about a name that is not known: the nearest known one, else all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"


def one_line(error: BaseException) -> str:
    """The first line of an exception's text that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
