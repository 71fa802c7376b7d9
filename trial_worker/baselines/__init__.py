"""What fine-tunes are measured against, on the same folds: what little or no training reaches.

`orchestrator.baselines` names them. Each is a generator that pauses every second or so, so that units beside it go on,
and returns its scores of the validation rows. Nothing of these is ever seen before they are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trial_worker.baselines import counting, features, language, prompting
from trial_worker.baselines.job import Job, NotApplicable, Run

__all__ = ["Job", "NotApplicable", "Run", "run"]

_CLASSES: Mapping[str, Callable[[Job], Run]] = {
    "majority": counting.majority,
    "tfidf": counting.tfidf,
    "features": features.regression,
    "zero-shot": prompting.zero_shot,
    "few-shot": prompting.few_shot,
}
_TOKENS: Mapping[str, Callable[[Job], Run]] = {
    "unigram": language.unigram,
    "zero-shot": language.zero_shot,
    "few-shot": language.few_shot,
}


def run(job: Job) -> Run:
    """The baseline that the unit's `method` names.

    Raises:
        NotApplicable: while it runs, where this model or these rows allow no such baseline.
    """
    known = _CLASSES if job.rows.task.labels else _TOKENS
    method = job.unit.settings.method
    if method not in known:
        raise ValueError(f"baseline must be one of {', '.join(known)}, got {method!r}")
    return known[method](job)
