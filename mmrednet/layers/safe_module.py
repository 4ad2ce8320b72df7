"""The base class of our modules: their checkpoints execute nothing, and their errors name the
argument that a user may have meant.
"""

from __future__ import annotations

import inspect
import re
from abc import ABCMeta
from collections.abc import Mapping
from typing import Any, ClassVar

from mmengine.model import BaseModule

from ..checkpoints.safe_loading import safe_loading
from ..spelling import unknown_argument

# Python's error, which names the class of the hierarchy that has no such argument
UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


class NamingMeta(ABCMeta):
    """The type of classes whose error for an unknown argument names the nearest one."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Construct an instance.

        Raises:
            TypeError: There is no such argument.
        """
        try:
            return super().__call__(*args, **kwargs)
        except TypeError as error:
            match = UNEXPECTED.search(str(error))
            classes = [base.__name__ for base in cls.__mro__]
            # a part of the module may have failed for an argument of its own
            if match is None or match[1] not in classes or match[2] not in kwargs:
                raise
            foreign = getattr(cls, 'foreign_arguments', {})
            raise unknown_argument(cls, match[2], foreign) from None

    @property
    def __signature__(cls) -> inspect.Signature:
        """The arguments of the constructor, which Python would take from ``__call__``."""
        construct: Any = getattr(cls, '__init__')  # noqa: B009
        parameters = list(inspect.signature(construct).parameters.values())
        # without self
        return inspect.Signature(parameters[1:])


class SafeModule(BaseModule, metaclass=NamingMeta):
    """A module whose ``Pretrained`` checkpoints execute nothing, its own and those of its parts.

    Raises:
        TypeError: There is no such argument.
    """

    # arguments that configs give to stock modules, and why they have no meaning here
    foreign_arguments: ClassVar[Mapping[str, str]] = {}

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, see mmengine's BaseModule.

        Raises:
            CheckpointError: A checkpoint holds more than training checkpoints do, or is broken.
        """
        with safe_loading():
            super().init_weights()
