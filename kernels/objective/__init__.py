"""Explained energy of a model and its exact derivatives."""
