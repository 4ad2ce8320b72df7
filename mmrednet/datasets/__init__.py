"""Data sets and transforms that configs name: CamVid, and label images that are checked."""
