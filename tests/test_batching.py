"""Kernels cut into pieces for the compiled program, with all that belongs to them."""

import numpy as np

from dogfit.fitting.batching import Piece, Task, cut_pieces
from dogfit.fitting.config import FitConfig
from dogfit.kernels.types import Box


def test_cut_pieces_rows_together():
    """Weights and bounds of a kernel stay with it; what all share is given to every piece."""
    task = Task(families=(), unidentifiable=(), config=FitConfig(), shape=(3, 3))
    n = 2 * task.rows + 3
    numbers = np.arange(n, dtype=np.float32)
    kernels = np.broadcast_to(numbers[:, None, None], (n, 3, 3))
    own = Box(numbers[None], numbers[None] + 0.5)
    shared = Box(np.zeros((1, 1)), np.ones((1, 1)))
    pieces = cut_pieces(Piece(kernels, kernels + 0.25, {"own": own, "shared": shared}, task))
    assert [len(piece.kernels) for piece in pieces] == [task.rows, task.rows, 3]
    np.testing.assert_array_equal(np.concatenate([piece.kernels[:, 0, 0] for piece in pieces]), numbers)
    for piece in pieces:
        rows = piece.kernels[:, 0, 0]
        np.testing.assert_array_equal(piece.weights[:, 1, 1], rows + 0.25)
        np.testing.assert_array_equal(piece.boxes["own"].lower[0], rows)
        np.testing.assert_array_equal(piece.boxes["own"].upper[0], rows + 0.5)
        assert piece.boxes["shared"] is shared
    shared_weights = np.ones((3, 3))
    assert cut_pieces(Piece(kernels, shared_weights, {}, task))[1].weights is shared_weights
