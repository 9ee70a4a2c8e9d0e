"""Vectors of float16 values wherever they lie in memory, and their exact scores."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.index.ranking import Float32, Floats, Int64, exact_scores, widened

# NumPy is slower by less than the time it takes to load the compiled loop.
_PAIRS_BEFORE_COMPILING = 1_000_000


class Codes:
    """Codes of equal size anywhere in memory, by position; safe to read from several threads.

    Parameters
    ----------
    owner
        Owns the memory.
    width
        Bytes of a code.
    first, stop
        The lowest address of a code, and the address behind the last one.
    starts, shifts
        Of codes that lie one after another in several parts: the first position of each part, and
        the bytes from ``first`` to where position 0 would lie if its part began there.
    table
        The bytes from ``first`` to each code (n,), in place of the parts.
    """

    def __init__(
        self,
        owner: object,
        width: int,
        first: int,
        stop: int,
        *,
        starts: npt.ArrayLike = (0,),
        shifts: npt.ArrayLike = (0,),
        table: npt.ArrayLike = (),
    ) -> None:
        self._owner, self.width = owner, width
        self.memory = np.empty(0, np.uint8)
        if stop > first:
            content: Any = (ctypes.c_char * (stop - first)).from_address(first)
            self.memory = np.frombuffer(content, np.uint8)
        self.starts, self.shifts = np.array(starts, np.int64), np.array(shifts, np.int64)
        self.table = np.asarray(table, np.int64)

    def __getitem__(self, positions: Int64) -> npt.NDArray[np.uint8]:
        """Return codes (m, width)."""
        if len(self.table):
            offsets = self.table[positions]
        else:
            part = np.searchsorted(self.starts, positions, side="right") - 1
            offsets = self.shifts[part] + positions * self.width
        # An overlapping element for each byte: one index operation gathers from all over.
        shape = (max(len(self.memory) - self.width + 1, 0),)
        everywhere = np.ndarray(shape, f"V{self.width}", self.memory, strides=(1,))
        return everywhere[offsets].view(np.uint8).reshape(len(positions), self.width)


class HalfVectors:
    """Vectors of float16 values by position; safe to read from several threads.

    Parameters
    ----------
    codes
        The values, 2 D bytes a vector.
    """

    def __init__(self, codes: Codes) -> None:
        self._codes = codes
        self._compile_after = _PAIRS_BEFORE_COMPILING

    @classmethod
    def stored(cls, parts: Sequence[npt.NDArray[np.float16]]) -> "HalfVectors":
        """Return the vectors of C-contiguous arrays (n, D), usually memory maps.

        Positions count through the arrays.
        """
        addresses = np.array([part.ctypes.data for part in parts])
        stop = max(address + part.nbytes for address, part in zip(addresses, parts, strict=True))
        first, width = int(addresses.min()), 2 * parts[0].shape[1]
        starts = np.cumsum([0, *map(len, parts)])[:-1]
        shifts = addresses - first - starts * width
        return cls(Codes(parts, width, first, int(stop), starts=starts, shifts=shifts))

    def __getitem__(self, positions: Int64) -> Float32:
        """Return the vectors (m, D)."""
        return widened(self._codes[positions].view(np.float16))

    def scores(self, queries: Floats, positions: Int64) -> Float32:
        """Return the exact scores (Q, C) of canonical queries (Q, D) and positions (Q, C).

        -inf where a position is -1. After a million scores, or :meth:`compile`, a compiled loop
        computes them, bit for bit the same.
        """
        self._compile_after -= positions.size
        if self._compile_after > 0:
            return exact_scores(queries, positions, self.__getitem__)
        from storage.index.kernels import half_scores

        codes = self._codes
        scores: Float32 = half_scores(
            queries.astype(np.float64), positions, codes.memory, codes.table, codes.starts,
            codes.shifts,
        )  # fmt: skip
        return scores

    def compile(self) -> None:
        """Load the compiled loop now, which takes half a second."""
        import storage.index.kernels  # noqa: F401

        self._compile_after = 0
