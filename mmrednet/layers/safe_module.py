"""The base class of our modules: their checkpoints execute nothing."""

from __future__ import annotations

from mmengine.model import BaseModule

from ..checkpoints.safe_loading import safe_loading


class SafeModule(BaseModule):
    """A module whose ``Pretrained`` checkpoints execute nothing, its own and those of its parts."""

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, see mmengine's BaseModule.

        Raises:
            CheckpointError: A checkpoint holds more than training checkpoints do, or is broken.
        """
        with safe_loading():
            super().init_weights()
