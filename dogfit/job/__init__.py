"""The job of the command."""
