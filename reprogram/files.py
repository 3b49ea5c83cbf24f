"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reprogram.errors import DataError


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn a refused or failed write into one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"could not write {path} ({error.strerror or error}); choose a writable place with room"
        ) from error


def check_place(folder: Path) -> None:
    """Refuse a place that cannot be written before minutes are spent; leaves nothing there."""
    with writable(folder):
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise DataError(
                f"expected a folder to write to, got {folder}, but {nearest} is a file; choose another name"
            )
        tempfile.TemporaryDirectory(dir=nearest).cleanup()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` only when the block ends well."""
    path = Path(path)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            Path(name).chmod(0o666 & ~umask())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


def umask() -> int:
    """The permissions this process takes away from new files; reading them means setting them."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder; on success its files replace those of `folder` (other files there stay)."""
    folder = Path(folder)
    with writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise DataError(f"expected a folder to write to, got the file {folder}; choose another name")
        # inside the folder where there is one: it may be a disk of its own, in a place that cannot be written
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder if folder.is_dir() else folder.parent))
        try:
            yield work
            folder.mkdir(exist_ok=True)
            for item in sorted(work.iterdir()):
                item.replace(folder / item.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
