"""Generator of docs/model_zoo.md: published figures of every network beside ours."""
