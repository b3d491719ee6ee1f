"""Functions that are fitted, and how they become taps."""
