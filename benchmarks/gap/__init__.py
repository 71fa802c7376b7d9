"""How long a slot stands still between two units: from the last work on one to the first step of the next.

`python -m benchmarks.gap studies/glosses.yaml`; `benchmarks/README.md` says what the figures mean.
"""
