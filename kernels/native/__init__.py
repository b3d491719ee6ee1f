"""Search in C++, for CPUs."""
