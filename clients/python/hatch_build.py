"""Build hook: puts the generated contracts into the wheel and the sdist; it must not change anything on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ContractsBuildHook(BuildHookInterface[Any]):
    """Adds the package `execution`: from the clone's gen/python, or from beside pyproject.toml in an unpacked sdist."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raises FileNotFoundError when neither place holds the contracts."""
        if version == "editable":
            return
        root = Path(self.root)
        places = (root / "execution", root.parent.parent / "gen" / "python" / "execution")
        source = next((place for place in places if place.is_dir()), None)
        if source is None:
            raise FileNotFoundError(f"no generated contracts in {' or '.join(map(str, places))}")
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.suffix in {".py", ".pyi", ".typed"}:
                build_data["force_include"][str(path)] = f"execution/{path.relative_to(source).as_posix()}"
