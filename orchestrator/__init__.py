"""Knows studies: what to try, what was tried, what came out. Never imports torch or trial_worker."""
