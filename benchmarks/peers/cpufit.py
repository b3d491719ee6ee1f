"""Cpufit through ctypes, from a library that the user has built: its GAUSS_2D is `gaussian`, sampled.

Its stock models hold no other of the four families, so it races on this one alone.
"""

import ctypes
from collections.abc import Mapping

import numpy as np

from peers.common import FAMILIES, LOWEST_SAMPLED_SIGMA, SIZE, bounds, normalised, sampled_basis

_GAUSS_2D, _LEAST_SQUARES = 1, 0
_FREE, _BETWEEN = 0, 3
_STATUS_OK = 0
# Its stop test is absolute for a small sum of squares, so kernels of unit energy would stop early.
_GAIN = 100.0


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


class Cpufit:
    """`cpufit_constrained` on amplitude, x, y, width and offset; the library has one thread."""

    def __init__(self, path: str, tolerance: float, iterations: int) -> None:
        self.library = ctypes.CDLL(path)
        self.library.cpufit_get_last_error.restype = ctypes.c_char_p
        self.tolerance, self.iterations = tolerance, iterations
        self.low, self.high = bounds(FAMILIES[0])
        self.low[2] = np.log(LOWEST_SAMPLED_SIGMA)

    def fit(self, kernels: np.ndarray, starts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `common.Fitter`; weights and offset start at their best values."""
        points = np.clip(starts["gaussian"], self.low, self.high)
        unit = normalised(kernels).reshape(len(kernels), -1)
        images = sampled_basis(points)[..., 0, :]
        means = images.mean(axis=-1, keepdims=True)
        energy = np.maximum(((images - means) ** 2).sum(axis=-1), 1e-30)
        gain = _GAIN * ((images - means) * unit).sum(axis=-1) / energy
        middle = (SIZE - 1) / 2
        x, y, sigma = points[..., 0] + middle, points[..., 1] + middle, np.exp(points[..., 2])
        start = np.stack([gain, x, y, sigma, -gain * means[..., 0]], axis=-1)
        data = np.broadcast_to(_GAIN * unit, (len(points), *unit.shape))
        found = self._call(start.reshape(-1, 5), data.reshape(-1, SIZE * SIZE)).reshape(start.shape)
        found = np.where(np.isfinite(found).all(axis=-1, keepdims=True), found, start)
        centre = found[..., 1:3] - middle
        ends = np.concatenate([centre, np.log(np.maximum(found[..., 3:4], 1e-6))], axis=-1)
        return {"gaussian": np.clip(ends, self.low, self.high)}

    def _call(self, start: np.ndarray, data: np.ndarray) -> np.ndarray:
        """Fitted parameters `[m, 5]`."""
        count = len(start)
        start, data = (np.ascontiguousarray(a, np.float32) for a in (start, data))
        middle = (SIZE - 1) / 2
        limits = np.zeros((5, 2))
        limits[1:3] = np.stack([self.low[:2], self.high[:2]], axis=-1) + middle
        limits[3] = np.exp([self.low[2], self.high[2]])
        constraints = np.tile(limits.ravel().astype(np.float32), (count, 1))
        kinds = np.array([_FREE, _BETWEEN, _BETWEEN, _BETWEEN, _FREE], np.int32)
        fitted = np.ones(5, np.int32)
        found, energies = np.zeros((count, 5), np.float32), np.zeros(count, np.float32)
        states, iterations = np.zeros(count, np.int32), np.zeros(count, np.int32)
        status = self.library.cpufit_constrained(
            ctypes.c_size_t(count),
            ctypes.c_size_t(SIZE * SIZE),
            _pointer(data),
            None,
            ctypes.c_int(_GAUSS_2D),
            _pointer(start),
            _pointer(constraints),
            _pointer(kinds),
            ctypes.c_float(self.tolerance),
            ctypes.c_int(self.iterations),
            _pointer(fitted),
            ctypes.c_int(_LEAST_SQUARES),
            ctypes.c_size_t(0),
            None,
            _pointer(found),
            _pointer(states),
            _pointer(energies),
            _pointer(iterations),
        )
        if status != _STATUS_OK:
            raise RuntimeError(f"cpufit: {self.library.cpufit_get_last_error().decode()}")
        return found.astype(np.float64)
