"""What each choice of a study changes, one at a time, paired over the validation rows; the engine alone, no database.

`python -m benchmarks.effects studies/regularisation.yaml`; `benchmarks/README.md` says what the figures mean.
"""
