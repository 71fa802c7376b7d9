"""More training rows than the data has, made inside each training fold.

An augmenter is given a `Fold`, the training rows of one unit and nothing of its validation rows, and makes rows that
name their sources. `made.admitted` is the one door through which they come: there a row that descends from anything
but the fold's training rows ends the unit, and one that says what a validation row says is left out.
"""
