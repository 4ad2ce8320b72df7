"""Attention-like operators for detectors and segmenters of the OpenMMLab stack."""

from .when_imported import when_imported

__version__ = '0.1.0'


def _count_our_operators() -> None:
    # it registers its handles when it is imported
    from . import flop_handles  # noqa: F401


# whoever has a network of ours can count it
when_imported('mmengine.analysis', _count_our_operators)
