"""Reading a training log: `StepLog`, its `StepRecord`s, its vectors, and the anchors beside them."""

from .record import StepRecord
from .steplog import StepLog
from .tracked import FactoredVector, FactoredWindow
from .vectors import EncodedVector, VectorWindow

__all__ = ["EncodedVector", "FactoredVector", "FactoredWindow", "StepLog", "StepRecord", "VectorWindow"]
