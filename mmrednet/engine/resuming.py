"""Which checkpoint an interrupted run continues from."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoints import CheckpointError
from ..checkpoints.safe_loading import load_file

# what a run is continued from, beside the weights
RESUME_KEYS = ('meta', 'message_hub', 'optimizer')


def find_checkpoint(work_dir: str | Path) -> str | None:
    """Return the newest checkpoint of a work directory that loads, and log which are skipped.

    The number in a file's name tells which is newer. The file that ``last_checkpoint`` names is
    looked for in the work directory if it is not where it was written.

    Args:
        work_dir: Work directory of the run.

    Returns:
        Path of the file, None if there are no checkpoints.

    Raises:
        CheckpointError: There are checkpoints, but none loads.
    """
    reasons = {}
    for path in _candidates(Path(work_dir)):
        try:
            _check_resumable(path)
        except (OSError, CheckpointError) as error:
            reasons[str(path)] = str(error)
            continue
        for skipped, reason in reasons.items():
            print_log(f'Skip {skipped}: {reason}', logger='current', level=logging.WARNING)
        return str(path)
    if reasons:
        raise CheckpointError(
            f'{work_dir} must have a checkpoint to continue from, got {len(reasons)} that do not '
            'load:\n' + '\n'.join(reasons.values())
        )
    print_log(
        f'{work_dir} has no checkpoint: the run starts anew.',
        logger='current',
        level=logging.WARNING,
    )
    return None


def _candidates(work_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first."""
    files = [*work_dir.glob('epoch_*.pth'), *work_dir.glob('iter_*.pth')]
    last = work_dir / 'last_checkpoint'
    # the name is empty after a power failure
    named = Path(last.read_text().strip()) if last.is_file() and last.read_text().strip() else None
    if named is not None:
        # a work directory that was moved has the file beside `last_checkpoint`
        moved = work_dir / named.name
        named = moved if moved.is_file() or not named.is_file() else named
        # the folder of checkpoints may be another one
        files += [path for path in named.parent.glob(f'{_stem(named)}*.pth') if path not in files]
        files += [named] if named not in files else []
    # files that are named as the last one, then others, each by descending number
    return sorted(
        files,
        key=lambda path: (named is not None and _stem(path) == _stem(named), _number(path)),
        reverse=True,
    )


def _stem(path: Path) -> str:
    """Return a checkpoint's name up to its number."""
    return re.sub(r'\d*$', '', path.stem)


def _number(path: Path) -> int:
    digits = re.search(r'(\d{1,18})$', path.stem)
    return int(digits[1]) if digits else -1


def _check_resumable(path: Path) -> None:
    content = load_file(path, 'cpu')
    missing = [key for key in RESUME_KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise CheckpointError(f'{path} must be a checkpoint of a training run, {missing} missing.')


def drop_pretrained(cfg: Any) -> None:
    """Remove the ``Pretrained`` checkpoints from a config, which a resumed run does not need.

    Args:
        cfg: Config of a model to change in place.
    """
    if isinstance(cfg, (list, tuple)):
        for value in cfg:
            drop_pretrained(value)
    if not isinstance(cfg, dict):
        return
    for name, value in cfg.items():
        if name == 'init_cfg':
            cfg[name] = _without_pretrained(value)
        elif name == 'pretrained' and isinstance(value, str):
            cfg[name] = None
        else:
            drop_pretrained(value)


def _without_pretrained(init_cfg: Any) -> Any:
    if isinstance(init_cfg, (list, tuple)):
        return [cfg for cfg in init_cfg if _without_pretrained(cfg) is not None]
    type_name = init_cfg.get('type') if isinstance(init_cfg, dict) else None
    name = type_name.__name__ if isinstance(type_name, type) else str(type_name).rpartition('.')[2]
    return None if name in ('Pretrained', 'PretrainedInit') else init_cfg


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Let a config continue a run.

    Args:
        cfg: Config to change in place.
        checkpoint: Path of a checkpoint, or 'auto' for the newest one in the work directory that
            loads. Without checkpoints there, the run starts anew.

    Raises:
        CheckpointError: There are checkpoints, but none loads.
    """
    path = find_checkpoint(cfg.work_dir) if checkpoint == 'auto' else checkpoint
    cfg.resume = path is not None
    cfg.load_from = path
    if path is not None:
        drop_pretrained(cfg.get('model'))
