"""Kill, freeze, cut off and damage a running study, then check what must hold. `python -m benchmarks.chaos`."""
