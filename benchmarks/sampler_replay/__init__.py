"""Which sampler, which racing rule, how many trials at once: replayed on recorded runs of a whole grid.

`python -m benchmarks.sampler_replay.record` trains and records, `python -m benchmarks.sampler_replay` replays;
`benchmarks/README.md` says how and what the figures mean.
"""
