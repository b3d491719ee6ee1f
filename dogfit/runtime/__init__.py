"""Foundations of a job: its folder, its progress, its processes."""
