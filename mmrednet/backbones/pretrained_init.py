"""``init_cfg`` of type Pretrained, read by this package instead of mmengine."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModule, PretrainedInit
from mmengine.model.weight_init import update_init_info

from ..checkpoints.pretrained import load_pretrained


def is_pretrained(cfg: dict) -> bool:
    """Return whether an ``init_cfg`` loads a checkpoint, in whichever scope or module its type is
    named.
    """
    kind = cfg.get('type')
    if isinstance(kind, type):
        return issubclass(kind, PretrainedInit)
    return str(kind).rpartition('.')[2] in ('Pretrained', 'PretrainedInit')


class SafelyPretrained(BaseModule):
    """A module whose ``Pretrained`` checkpoints may be published files, and are read as tensors
    alone.
    """

    init_cfg: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pretrained: list[dict] = []

    def init_weights(self) -> None:
        """Draw the weights as ``init_cfg`` says, then load what is pretrained."""
        configured = self.init_cfg
        cfgs = configured if isinstance(configured, list) else [configured] if configured else []
        pretrained = [cfg for cfg in cfgs if is_pretrained(cfg)]
        if self.is_init or not pretrained:
            super().init_weights()
            return
        self.init_cfg, self._pretrained = [cfg for cfg in cfgs if cfg not in pretrained], pretrained
        try:
            super().init_weights()
        finally:
            self.init_cfg = configured
        self._load_pretrained()

    def _load_pretrained(self) -> None:
        while self._pretrained:
            cfg = self._pretrained.pop(0)
            load_pretrained(self, **{name: value for name, value in cfg.items() if name != 'type'})
            if hasattr(self, '_params_init_info'):
                update_init_info(self, f'Pretrained: load from {cfg["checkpoint"]}')

    def _dump_init_info(self) -> None:
        # mmengine lists here where every parameter comes from, when a module stands alone
        self._load_pretrained()
        super()._dump_init_info()
