"""What needs no language model: class frequencies, and a linear model of word counts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from trial_worker.baselines.job import Job, NotApplicable, Run, class_scores

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # inverse regularisation, chosen on inner folds of the training part
INNER = 3


def majority(job: Job) -> Run:
    """Class shares of the training part, with one row added to each class (Laplace)."""
    counts = np.bincount(job.truth(job.unit.train), minlength=job.classes) + 1.0
    likely = np.log(counts / counts.sum())
    yield
    return class_scores(np.tile(likely, (len(job.unit.validation), 1)), job.truth(job.unit.validation))


def tfidf(job: Job) -> Run:
    """Logistic regression on TF-IDF of words and pairs of words; the vocabulary is the training part's."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        seen = words.fit_transform(job.texts(job.unit.train))
    except ValueError as error:  # texts of other scripts, or of single letters
        raise NotApplicable(f"the training texts have no words ({error})") from error
    yield
    return (yield from linear(job, seen, words.transform(job.texts(job.unit.validation))))


def linear(job: Job, seen: Any, unseen: Any) -> Run:
    """Multinomial logistic regression of the classes on features, its strength chosen by inner cross-validation.

    seen, unseen: (rows, features) of the training and the validation part.
    """
    # here: importing scikit-learn takes seconds, and most units need none of it
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    truth = job.truth(job.unit.train)
    present, counts = np.unique(truth, return_counts=True)
    if len(present) < 2:
        raise NotApplicable("the training part has rows of one class only")
    model: Any = LogisticRegression(C=STRENGTHS[len(STRENGTHS) // 2], max_iter=1000)
    if counts.min() >= INNER:
        inner = StratifiedKFold(INNER, shuffle=True, random_state=job.unit.seed % 2**32)
        model = GridSearchCV(LogisticRegression(max_iter=1000), {"C": STRENGTHS}, scoring="neg_log_loss", cv=inner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(seen, truth)
    yield
    shares = np.zeros((len(job.unit.validation), job.classes))
    shares[:, present] = model.predict_proba(unseen)
    rest = 1 / (len(truth) + 1)  # a class that the training part lacks has a finite loss
    return class_scores(np.log((1 - rest) * shares + rest / job.classes), job.truth(job.unit.validation))
