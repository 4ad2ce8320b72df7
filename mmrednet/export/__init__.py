"""Networks for runtimes without Python: torch.export, ONNX, AOTInductor and OpenVINO."""

from .programs import blocking, capture, largest_error, operators, portable

__all__ = ['blocking', 'capture', 'largest_error', 'operators', 'portable']
