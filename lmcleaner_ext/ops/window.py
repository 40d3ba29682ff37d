"""What the ops over a window of the log take: one dataclass whose fields are the op's arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, get_origin, get_type_hints

from torch import Tensor

from ..errors import ConfigurationError
from .encoding import EncodedVector

if TYPE_CHECKING:
    from typing_extensions import Self

_ENCODED = "encoded"
_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Sequence[Tensor]: "Tensor[]",
    Sequence[EncodedVector]: _ENCODED,
    str: "str",
    int: "int",
}


@dataclass(frozen=True)
class Window:
    """Base of such a class. Its tensors are vectors over the parameters or, named in TABLES, small tables on the CPU.

    torch.library knows tensors and lists of tensors only: there a field of encoded vectors is two arguments, the payloads and, under
    the name ``<singular>_scales``, the scales.
    """

    UPDATED: ClassVar[tuple[str, ...]] = ()
    """The fields that the op changes in place."""
    TABLES: ClassVar[tuple[str, ...]] = ()

    _kinds: ClassVar[dict[str, str]]  # of each field, from its annotation

    def __init_subclass__(cls) -> None:
        hints = {name: kind for name, kind in get_type_hints(cls).items() if get_origin(kind) is not ClassVar}
        cls._kinds = {name: _SCHEMA_TYPES[kind] for name, kind in hints.items()}

    @classmethod
    def schema(cls) -> str:
        """The arguments in torch.library's language."""
        arguments, marks = [], iter("abcdefgh")
        for name, kind in cls._kinds.items():
            if kind is _ENCODED:
                arguments += [f"Tensor[] {name}", f"Tensor[] {name.removesuffix('s')}_scales"]
                continue
            mark = f"Tensor({next(marks)}!)" if name in cls.UPDATED else "Tensor"
            arguments.append(f"{kind.replace('Tensor', mark)} {name}")
        return ", ".join(arguments)

    def flat(self) -> tuple[Any, ...]:
        """The arguments of this schema."""
        found: list[Any] = []
        for name, kind in self._kinds.items():
            value = getattr(self, name)
            if kind is _ENCODED:
                found += [[payload for payload, _ in value], [scales for _, scales in value]]
            else:
                found.append(list(value) if kind == "Tensor[]" else value)
        return tuple(found)

    @classmethod
    def of(cls, *flat: Any) -> Self:
        """The inverse of ``flat``. Raises ConfigurationError for payloads and scales of different numbers."""
        values, given = {}, iter(flat)
        for name, kind in cls._kinds.items():
            values[name] = next(given)
            if kind is _ENCODED:
                payloads, scales = values[name], next(given)
                if len(payloads) != len(scales):
                    raise ConfigurationError(
                        f"{name}: found {len(payloads)} payloads and {len(scales)} scales; these must be equal"
                    )
                values[name] = list(map(EncodedVector, payloads, scales))
        return cls(**values)

    def mapped(
        self, vector: Callable[[Tensor], Tensor], encoded: Callable[[EncodedVector], EncodedVector], **changes: Any
    ) -> Self:
        """Every vector replaced by what these make of it, and other fields by ``changes``."""
        for name, kind in self._kinds.items():
            value = getattr(self, name)
            if name in changes or name in self.TABLES or value is None:
                continue
            if kind is _ENCODED:
                changes[name] = [encoded(x) for x in value]
            elif kind == "Tensor[]":
                changes[name] = [vector(x) for x in value]
            elif kind in ("Tensor", "Tensor?"):
                changes[name] = vector(value)
        return replace(self, **changes)

    def updated(self) -> list[Tensor]:
        """The vectors that the op changes, without those that are not there."""
        found: list[Tensor] = []
        for name in self.UPDATED:
            value = getattr(self, name)
            found += [] if value is None else [value] if isinstance(value, Tensor) else value
        return [x for x in found if x.numel()]
