"""Names of the families built in. Light to import: the command line offers them before the rest is loaded."""

FAMILIES = ("gaussian", "dog", "d1", "d2")
"""Families fitted when none are named."""

ROUND_FAMILIES = (*FAMILIES, "dog_d1", "dog_d2")
"""Families whose Gaussians have one width in all directions."""

ALL_FAMILIES = (*ROUND_FAMILIES, *(f"{name}_elliptic" for name in ROUND_FAMILIES))
"""All families built in."""
