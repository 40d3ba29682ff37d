"""Curvature modes: what the gradient does when the parameters deviate. One file per mode, one interface."""

from __future__ import annotations

from ..errors import ConfigurationError
from .base import Curvature, StepView
from .diagonal import Diagonal
from .exact import ExactHessian
from .fisher import Fisher
from .ggn import GaussNewton
from .none import NoCurvature
from .replay import TrueGradient

REGISTRY: dict[str, type[Curvature]] = {
    mode.name: mode for mode in (NoCurvature, Diagonal, Fisher, GaussNewton, ExactHessian, TrueGradient)
}
MODES = tuple(REGISTRY)


def curvature_mode(name: str) -> type[Curvature]:
    """The mode called `name`; raises ConfigurationError for an unknown one."""
    if name not in REGISTRY:
        raise ConfigurationError(f"hessian_mode is one of {MODES} or 'auto', found {name!r}")
    return REGISTRY[name]


__all__ = ["MODES", "REGISTRY", "Curvature", "Diagonal", "NoCurvature", "StepView", "TrueGradient", "curvature_mode"]
