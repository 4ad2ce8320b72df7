"""The operators that the package registers, in the small configurations that they state."""

from mmrednet.layers import OPERATORS

# operators of 16 channels, as a config names them; tests may register others for themselves
EXAMPLES = {
    name: dict(type=name, **layer.example)
    for name, layer in OPERATORS.items()
    if layer.__module__.startswith('mmrednet.')
}
