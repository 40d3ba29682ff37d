"""Reading a training log: `LogReader`, its `StepRecord`s, its vectors, and the anchors beside them."""

from .reader import LogReader
from .record import StepRecord
from .tracked import FactoredVector, FactoredWindow
from .vectors import EncodedVector, VectorWindow

__all__ = ["EncodedVector", "FactoredVector", "FactoredWindow", "LogReader", "StepRecord", "VectorWindow"]
