"""Side-by-side programs and measurements. Not part of the installed package."""
