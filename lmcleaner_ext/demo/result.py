"""What the demonstration has found: what its table, picture and page show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .methods import Measured
from .settings import DemoSettings


@dataclass(frozen=True)
class Answers:
    """One question about the forgotten author, the true answer, and what three models say (greedy decoding)."""

    question: str
    truth: str
    trained: str
    forgotten: str
    retrained: str


@dataclass(frozen=True)
class DemoResult:
    """Everything the table, the picture and the page show; times in seconds, sizes in bytes."""

    author: str
    settings: DemoSettings
    rows: tuple[Measured, ...]
    answers: tuple[Answers, ...]
    audit: dict[str, Any]
    parameters: int
    forgotten_samples: int
    training_samples: int
    uses: int
    steps: int
    training_seconds: float
    total_seconds: float
    environment: dict[str, Any]
    picture: Path
    page: Path
    log: Path | None

    def __getitem__(self, key: str) -> Measured:
        return next(row for row in self.rows if row.key == key)

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        table = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return table | {
            "settings": asdict(self.settings),
            "rows": [row.as_dict() for row in self.rows],
            "answers": [asdict(answers) for answers in self.answers],
            "picture": str(self.picture),
            "page": str(self.page),
            "log": None if self.log is None else str(self.log),
        }
