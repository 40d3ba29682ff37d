"""What this package and some of its extras require, one requirement a line: `python scripts/requirements.py test lint`.

So that it can be installed, or cached, before the package itself is built.
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]


def main() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    print("\n".join(dict.fromkeys([*project["dependencies"], *(r for extra in sys.argv[1:] for r in extras[extra])])))


if __name__ == "__main__":
    main()
