"""The same search by foldtune and by a plain script: same configurations, folds, steps; what does each cost?

`python -m benchmarks.search_speed`; `benchmarks/README.md` says what is compared and what the figures mean.
"""
