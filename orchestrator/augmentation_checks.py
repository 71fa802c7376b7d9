"""Keys of a study file that ask for more training rows and lack what these are made with, or the other way round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator import forms, space
from orchestrator.cross_checks import extremes, place, section
from orchestrator.document import Document
from orchestrator.errors import Problem

DISTURBING = ("char_noise", "word_noise", "synonyms")  # what makes a copy differ from its row
MADE_WITH = {  # hyperparameter -> the key of the file that it needs
    "paraphrases": ("augmentation", "paraphraser"),
    "synthetic": ("augmentation", "generator"),
    "pseudo_rounds": ("data", "pool"),
}
OF_CLASSES = ("synthetic", "pseudo_rounds")
OF_PLACES = ("token_classification", "question_answering")  # tasks whose answers are places in the text
PLACEHOLDERS = {"paraphraser": ("$text",), "back_translator": ("$text",), "generator": ("$label", "$examples")}


def check(doc: Document, raw: Mapping[str, Any], entries: space.Space, written: Mapping[str, str]) -> Iterator[Problem]:
    """written: the name that each searched hyperparameter has in the file."""
    yield from _prompts(doc, raw)
    models = section(raw, "augmentation")
    if models.get("back_translator") is not None and models.get("paraphraser") is None:
        message = "'augmentation.back_translator' brings back what a paraphraser wrote, and there is none"
        yield doc.problem(("augmentation", "back_translator"), "no-effect", message, "set augmentation.paraphraser")
    if set(entries) != set(written):  # what is searched cannot be told
        return
    names = (*DISTURBING, *MADE_WITH)
    highest = {name: max(extremes(raw, entries, name)) for name in names}
    for name, key in MADE_WITH.items():
        given = section(raw, key[0]).get(key[1]) is not None
        if highest[name] and not given:
            yield doc.problem(place(doc, name, written), "augmentation", f"'{name}' needs {'.'.join(key)}")
        if given and not highest[name]:
            message = f"'{'.'.join(key)}' has no effect without {name}"
            yield doc.problem(key, "no-effect", message, f"set or search {name}")
    for name in (*DISTURBING, "paraphrases"):
        if highest[name] and raw.get("task") in OF_PLACES:
            message = f"'{name}' moves the words, and the answers of task {raw['task']} are places in the text"
            yield doc.problem(place(doc, name, written), "augmentation", message, "use token_dropout")
    for name in OF_CLASSES:
        if highest[name] and section(raw, "data").get("text_pair") is not None:
            message = f"'{name}' makes rows of one text, and 'data.text_pair' gives each row two"
            yield doc.problem(place(doc, name, written), "augmentation", message, "use paraphrases, or noise")
        if highest[name] and raw.get("task") not in (*forms.ONE_CLASS, None):
            message = f"'{name}' makes rows of classes, and task {raw['task']} has none"
            yield doc.problem(place(doc, name, written), "no-effect", message)
    if highest["pseudo_rounds"] and raw.get("share_epochs") is True:
        message = "with 'share_epochs' fewer epochs would have had other labels for the pool"
        yield doc.problem(place(doc, "pseudo_rounds", written), "share-epochs", message, "leave one of them out")
    where = place(doc, "pseudo_threshold", written)
    if where in doc.places and not highest["pseudo_rounds"]:
        yield doc.problem(where, "no-effect", "'pseudo_threshold' has no effect without pseudo_rounds")
    where = place(doc, "augment_copies", written)
    if where in doc.places and not any(highest[name] for name in DISTURBING):
        message = "'augment_copies' counts disturbed copies, and nothing disturbs any"
        yield doc.problem(where, "no-effect", message, "set or search " + ", ".join(DISTURBING))


def _prompts(doc: Document, raw: Mapping[str, Any]) -> Iterator[Problem]:
    for name, wanted in PLACEHOLDERS.items():
        prompt = section(section(raw, "augmentation"), name).get("prompt")
        if isinstance(prompt, str) and (lacking := [each for each in wanted if each not in prompt]):
            message = f"'augmentation.{name}.prompt' must have {' and '.join(lacking)} in it"
            yield doc.problem(("augmentation", name, "prompt"), "prompt", message)
