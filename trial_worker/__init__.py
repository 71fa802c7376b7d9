"""Pulls units of work from a study and trains them."""
