"""Attention-like operators for detectors and segmenters of the OpenMMLab stack."""

__version__ = '0.1.0'
