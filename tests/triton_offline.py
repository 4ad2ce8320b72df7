"""Compile what would be launched for a GPU that is not there; by itself it prints what each kernel needs."""

import re
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class NoDevice:
    """What Triton asks a driver before it compiles."""

    def __init__(self, capability):
        self.target = GPUTarget('cuda', capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, _):
        return 0


def resources(binary):
    """Return what the assembler says of a compiled kernel."""
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / 'kernel.cubin'
        cubin.write_bytes(binary.asm['cubin'])
        text = subprocess.run([tool, '--dump-resource-usage', cubin], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r'(REG|STACK|LOCAL):(\d+)', text))
    products = re.findall(r'\b(?:mma|wgmma\.mma_async)\.sync', binary.asm['ptx'])
    return dict(registers=int(found['REG']), stack=int(found['STACK']) + int(found['LOCAL']),
                shared=binary.metadata.shared, matrix_instructions=len(products))


@contextmanager
def offline(capability=90):
    """Compile launches instead of running them; yields the dictionary of compiled kernels by name that it fills."""
    found, run = {}, JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **constants):
        kernel = run(self, *arguments, grid=grid, warmup=True, **constants)
        found.setdefault(self.__name__, set()).add(kernel)
    JITFunction.run = compile_only
    driver.set_active(NoDevice(capability))
    try:
        yield found
    finally:
        JITFunction.run = run
        driver.set_active(None)
