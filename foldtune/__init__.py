"""foldtune: hyperparameter search for fine-tuning language models on small data."""

__version__ = "0.1.0"
