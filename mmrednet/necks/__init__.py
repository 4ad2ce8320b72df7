"""Necks: a pyramid of feature maps to another."""

from .fpn import SpatialFPN

__all__ = ['SpatialFPN']
