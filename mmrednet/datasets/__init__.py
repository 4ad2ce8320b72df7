"""Data sets and transforms for configs: CamVid, and label images that are checked when loaded."""
