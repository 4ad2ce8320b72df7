"""The optional packages of the OpenMMLab stack: which are missing, and how to install them."""

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
    """Return which of these packages ``purpose`` lacks and how to install them; None if none.

    Args:
        purpose: What needs the packages, as the beginning of the message.
        names: Import names of the packages.
    """
    missing = [name for name in names if find_spec(name) is None]
    if not missing:
        return None
    maintained = ' '.join(DISTRIBUTIONS[name][0] for name in missing)
    original = ' '.join(DISTRIBUTIONS[name][1] for name in missing)
    return (
        f'{purpose} needs {" and ".join(missing)}, which cannot be imported. Install: pip install '
        f'{maintained} (or, of the original distribution, pip install {original}).'
    )


def require(purpose: str, *names: str) -> None:
    """Check that packages can be imported.

    Args:
        purpose: What needs the packages, as the beginning of the message.
        names: Import names of the packages.

    Raises:
        ImportError: A package is missing. The message says which and how to install it.
    """
    message = missing_message(purpose, *names)
    if message:
        raise ImportError(message)
