"""Check that a wheel holds our four packages, all of each and nothing else. Run in the root: `check_wheel.py WHEEL`."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

PACKAGES = ("adversarial", "certify", "reprogram", "tasks")
ENTRY_POINT = "reprogram = tasks.cli:app"


def expected(root: Path) -> set[str]:
    """Every file of the packages that a user needs: code, type markers, configs and templates."""
    wanted = {f"{package}/py.typed" for package in PACKAGES}
    for package in PACKAGES:
        wanted |= {path.relative_to(root).as_posix() for path in (root / package).rglob("*.py")}
    for pattern in ("configs/*.yaml", "templates/*"):
        wanted |= {path.relative_to(root).as_posix() for path in (root / "tasks").glob(pattern) if path.is_file()}
    return wanted


def problems(wheel: Path, root: Path) -> list[str]:
    """What is wrong with the wheel, one sentence each; empty when nothing is."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
        entry_points = "".join(
            archive.read(name).decode() for name in files if name.endswith(".dist-info/entry_points.txt")
        )
    top = {name.split("/")[0] for name in files}
    info = {name for name in top if name.endswith(".dist-info")}
    found = []
    if top - info != set(PACKAGES) or len(info) != 1:
        found.append(f"expected the top level {', '.join(PACKAGES)} and one dist-info, got {', '.join(sorted(top))}")
    missing, extra = expected(root) - files, {n for n in files - expected(root) if n.split("/")[0] not in info}
    if missing:
        found.append(f"missing: {', '.join(sorted(missing))}; look for a folder without __init__.py")
    if extra:
        found.append(f"not in the packages' sources: {', '.join(sorted(extra))}")
    if not any(name.endswith("/licenses/LICENSE") and name.split("/")[0] in info for name in files):
        found.append("the licence text is not in the dist-info")
    if ENTRY_POINT not in entry_points.splitlines():
        found.append(f"expected the console script {ENTRY_POINT!r}, got {entry_points!r}")
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print(f"check_wheel: expected the path of one wheel, got {arguments}")
        return 2
    found = problems(Path(arguments[0]), Path.cwd())
    for problem in found:
        print(f"check_wheel: {problem}")
    if not found:
        print(f"check_wheel: {Path(arguments[0]).name} holds {', '.join(PACKAGES)} and nothing else")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
