"""The demonstration: a small language model learns about authors, forgets one, and is compared with one that never met her."""

from .result import DemoResult
from .run import run_demo
from .settings import DemoSettings

__all__ = ["DemoResult", "DemoSettings", "run_demo"]
