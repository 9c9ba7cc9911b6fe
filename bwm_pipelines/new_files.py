"""Results that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def new_files(output: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move into the folder `output` at the end, replacing those of their names.

    If the body raises, or is interrupted, nothing is left behind: neither files nor folders that were not there before.

    Raises:
        ValueError: `output` cannot be written to. This is found out first, before the body runs.
    """
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        with _temporary_folder(output) as folder:
            yield Path(folder)
            for file in sorted(Path(folder).iterdir()):
                os.replace(file, output / file.name)
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _temporary_folder(output: Path) -> TemporaryDirectory[str]:
    try:
        output.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=".bwm-", dir=output)
    except OSError as error:
        raise ValueError(
            f"`output` {str(output)!r} cannot be written to ({error.strerror}); name another folder."
        ) from None
