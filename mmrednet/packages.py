"""The optional packages of the OpenMMLab stack: which are missing, and how to get them."""

from __future__ import annotations

from importlib.util import find_spec

# import name -> the two distributions that provide it, the maintained one first
DISTRIBUTIONS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}


def missing_message(purpose: str, *names: str) -> str | None:
    """Say which of these packages ``purpose`` lacks and how to install them; None if all are
    there."""
    missing = [name for name in names if find_spec(name) is None]
    if not missing:
        return None
    maintained, original = (
        ' '.join(DISTRIBUTIONS[name][index] for name in missing) for index in (0, 1)
    )
    return (
        f'{purpose} needs {" and ".join(missing)}, which cannot be imported. Install: pip install '
        f'{maintained} '
        f'(or, of the original distribution, pip install {original}).'
    )


def require(purpose: str, *names: str) -> None:
    """Check that ``purpose`` has the packages of these import names.

    Raises:
        ImportError: one is missing; the message says which and how to install it.
    """
    message = missing_message(purpose, *names)
    if message:
        raise ImportError(message)
