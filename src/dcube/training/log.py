"""The local log is the truth: one JSON object per line; TensorBoard is fed from it where installed."""

import json
import os
from pathlib import Path
from typing import Any

from dcube.files import write_text


class Log:
    """JSON lines at `path`. Opening it for a resume at `step` drops what came after that step.

    `seconds`: training time up to there, over all sittings.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_log(path) if row["step"] <= step] if step else []
        self.seconds: float = max((row.get("seconds", 0.0) for row in kept), default=0.0)
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the training
        self._board = _tensorboard(path.parent / "tensorboard", step)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; `row["step"]` is required."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, float):
                    self._board.add_scalar(f"{row.get('event', 'train')}/{name}", value, row["step"])

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self._file.fileno())
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; a last line that a power cut left half-written is skipped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _tensorboard(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra `tracking` is not installed
        return None
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)
