"""Search in plain XLA: seeds, then Newton ascents in lanes."""
