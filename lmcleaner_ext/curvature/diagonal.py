"""A diagonal curvature:  C[t] v = h v,  h given, or as the recorder averaged it (TrainingLogger(diag_hessian=...)).

h[t] the average without its bias, h / (1 - beta^k) after k updates
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from torch import Tensor

from ..errors import ConfigurationError, MissingDataError
from ..log import LogReader
from .base import Curvature, StepView

DIAGONAL, DIAGONAL_UPDATES = "diagonal", "diagonal_updates"
"""What an anchor keeps of the average: h [P], biased, and [1] how many steps it averaged."""


class Diagonal(Curvature):
    name = "diag"
    elementwise = True

    def __init__(self, h: Tensor | LoggedDiagonal):
        self.diagonal = h

    @classmethod
    def of(cls, log: LogReader | None, diagonal: Tensor | None) -> Diagonal:
        """h as given, or as logged; raises ConfigurationError for another shape, MissingDataError where none was logged."""
        if log is None:
            if diagonal is None:
                raise ConfigurationError('mode "diag" needs diagonal=h, a tensor [P]')
            return cls(diagonal)
        if diagonal is None:
            return cls(LoggedDiagonal(log))
        shape = tuple(diagonal.shape) if isinstance(diagonal, Tensor) else type(diagonal).__name__
        if shape != (log.layout.size,):
            raise ConfigurationError(f"diagonal has shape {shape}, expected ({log.layout.size},)")
        return cls(diagonal.cpu())

    def product(self, view: StepView, v: Tensor) -> Tensor:
        """h v, [P]."""
        return self.diagonal_at(view.step) * v

    def diagonal_at(self, step: int) -> Tensor:
        return self.diagonal.at(step) if isinstance(self.diagonal, LoggedDiagonal) else self.diagonal

    def changes(self) -> Sequence[int]:
        return self.diagonal.steps if isinstance(self.diagonal, LoggedDiagonal) else ()


class LoggedDiagonal:
    """h[t] from the anchors of a log. Between two anchors it is that of the later one, which averaged just those steps.

    Raises MissingDataError for a log that has none yet.
    """

    def __init__(self, log: LogReader):
        self._size, self._dtype = log.layout.size, log.layout.dtype
        anchors = [a for a in log.anchors() if DIAGONAL in a.names()]
        self._anchors = [a for a in anchors if int(a.tensor(DIAGONAL_UPDATES)) > 0]
        if not self._anchors:
            raise MissingDataError(
                'hessian_mode="diag" needs h: pass diagonal=, a tensor [P], or record with TrainingLogger(diag_hessian="fisher"); '
                "the first anchor after some steps has it"
            )
        self._beta = float(log.manifest["diag_hessian"]["beta"])
        self._found: tuple[int, Tensor] | None = None

    @property
    def steps(self) -> list[int]:
        """Where h changes."""
        return [a.step for a in self._anchors]

    def at(self, step: int) -> Tensor:
        """h[step], [P], in the precision of the parameters."""
        index = min(bisect_right(self.steps, step), len(self._anchors) - 1)
        if self._found is None or self._found[0] != index:
            anchor = self._anchors[index]
            bias = 1 - self._beta ** int(anchor.tensor(DIAGONAL_UPDATES))
            self._found = index, anchor.tensor(DIAGONAL).to(self._dtype) / bias
        return self._found[1]
