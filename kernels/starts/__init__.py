"""Nodes where a search may start."""
