"""Texts: tweets and product reviews rated by people, and what needs no language model."""

from __future__ import annotations

import html
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks import modalities
from tasks.arrays import from_arrays
from tasks.learners import Problem, by_label
from tasks.splits import random_split
from tasks.task import Task

# In the environment itself, so that the data go when it goes.
FOLDER = Path(sys.prefix) / "share" / "reprogram"
VERSION = "3.3.2"
ARCHIVE = f"vaderSentiment-{VERSION}.tar.gz"  # the texts are in the source archive, not in the wheel
INSIDE = f"vaderSentiment-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
COMMAND = f"pip download --no-deps --no-binary vaderSentiment -d {FOLDER} vaderSentiment=={VERSION}"
NAMES = {"tweets": "tweets", "reviews": "amazonReviewSnippets"}  # the file in the archive
NEUTRAL = 0.5  # ratings go from -4 to 4
FRACTIONS = (0.6, 0.1, 0.3)


def sentiment(
    name: str = "tweets", *, kind: str = "classification", seed: int = 0, folder: str | Path = FOLDER, **options: Any
) -> Task:
    """Texts that at least 20 people rated from −4, extremely negative, to 4, extremely positive.

    "tweets" are 4,200 texts like tweets, "reviews" 3,708 sentences of 309 reviews of products; sentences of one review
    stay in one part. As classes, negative and positive, texts with a mean rating within ±0.5 are left out; with
    kind="regression" the mean rating is the target. Repeated texts are left out. Options are those of `from_arrays`.

    Reference: Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
    ICWSM 2014; the reviews: Hu & Liu, "Mining and Summarizing Customer Reviews", KDD 2004.
    Raises: DataError for another name or kind, and with the command that brings the data where they are absent.
    """
    if name not in NAMES:
        raise DataError(f"expected a text task among {', '.join(NAMES)}, got {name!r}; read other texts by load_task")
    if kind not in ("classification", "regression"):
        raise DataError(f"expected kind classification or regression, got {kind!r}; choose one")
    rows = [row for row in rated(NAMES[name], Path(folder)) if kind == "regression" or abs(row[1]) > NEUTRAL]
    reviews, ratings, texts = zip(*rows, strict=True)
    if kind == "classification":
        y, facts = [int(rating > 0) for rating in ratings], {"classes": ("negative", "positive"), "metric": "roc_auc"}
    else:
        y, facts = list(ratings), {"units": "rating"}
    options = facts | {
        "name": name, "license": "MIT (archive)", "source": "Hutto & Gilbert, VADER, ICWSM 2014",
        "split": whole(reviews, seed, options.get("fractions", FRACTIONS)),
    } | options  # fmt: skip
    return from_arrays(texts, y, modality="texts", kind=kind, seed=seed, **options)


def rated(name: str, folder: Path) -> list[tuple[str, float, str]]:
    """(review, mean rating, text) of a file in the archive, a repeated text once. Raises DataError as `sentiment`."""
    try:
        with tarfile.open(folder / ARCHIVE) as outer, tarfile.open(fileobj=outer.extractfile(INSIDE)) as inner:
            lines = inner.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read().decode().splitlines()
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise DataError(
            f"expected {ARCHIVE} with rated texts in {folder}, got none; run: {COMMAND.replace(str(FOLDER), str(folder))}"
        ) from error
    found: dict[str, tuple[str, float, str]] = {}
    for line in lines:
        number, rating, text = line.split("\t")
        text = modalities.text(html.unescape(text))
        found.setdefault(text, (number.split("_")[0], float(rating), text))
    return list(found.values())


def whole(groups: Sequence[str], seed: int, fractions: Sequence[float]) -> list[str]:
    """The part of each row, drawn by `seed` so that rows of one group stay together."""
    names = list(dict.fromkeys(groups))
    parts = random_split(len(names), seed=seed, fractions=fractions)
    part_of = {names[i]: part for part, chosen in parts.items() for i in chosen}
    return [part_of[group] for group in groups]


def tfidf(problem: Problem) -> np.ndarray:
    """Words and pairs of words, TF-IDF, logistic regression or ridge; its penalty by cross-validation."""
    x, x_test = (np.array(texts, dtype=object) for texts in (problem.inputs, problem.test))
    return by_label(_tfidf, x, problem.y, x_test, problem)


def _tfidf(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, kind: str, seed: int) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    def pipeline(model: Any) -> Any:
        return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), model)

    if kind == "regression":
        return pipeline(RidgeCV(np.logspace(-2, 2, 9))).fit(x, y).predict(x_test)
    rarest = int(np.unique(y, return_counts=True)[1].min())
    if rarest < 2:  # no two folds can hold the class, so nothing can choose the penalty
        return pipeline(LogisticRegression(C=10.0, max_iter=1000)).fit(x, y).predict_proba(x_test)
    search = GridSearchCV(
        pipeline(LogisticRegression(max_iter=1000)), {"logisticregression__C": np.logspace(-1, 3, 5)},
        scoring="neg_log_loss", cv=min(5, rarest),
    )  # fmt: skip
    return search.fit(x, y).predict_proba(x_test)
