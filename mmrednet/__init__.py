"""Attention-like operators for detectors and segmenters of the OpenMMLab stack."""

from .when_imported import when_imported

__version__ = '0.1.0'


def _count_our_operators() -> None:
    from .flop_handles import register_handles

    register_handles()


# whoever has a network of ours can count it
when_imported('mmengine.analysis', _count_our_operators)
