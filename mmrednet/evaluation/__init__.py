"""Metrics that configs name: panoptic quality with the figures that papers report beside it."""
