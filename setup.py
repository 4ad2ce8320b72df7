"""Builds the native CPU kernels where torch and a compiler are there; without them the package
works on plain torch.
"""

import sys
from pathlib import Path

from setuptools import setup

SOURCES, HEADERS = (
    sorted(str(path) for path in Path('mmrednet/ops/csrc').glob(name)) for name in ('*.cpp', '*.h')
)


def native_kernels():
    """Return what setup() needs to build the kernels, nothing where torch cannot be imported."""
    try:
        from torch.backends import openmp
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        say_why_not(
            f'torch cannot be imported here ({error}); pip install --no-build-isolation shows it '
            'one'
        )
        return {}

    class OptionalBuild(BuildExtension):
        """Goes on without the kernels where they cannot be compiled."""

        def run(self):
            try:
                super().run()
            except Exception as error:  # noqa: BLE001
                say_why_not(f'{type(error).__name__}: {error}')

    # vectors are passed between inlined functions alone, so their calling convention does not
    # matter
    flags = ['-O3', '-Wall', '-Wno-psabi', '-fno-math-errno']
    if openmp.is_available() and sys.platform == 'linux':
        # only to compile: the threads are those of the library that torch has brought
        flags.append('-fopenmp')
    extension = CppExtension('mmrednet.ops._C', SOURCES, depends=HEADERS, extra_compile_args=flags)
    return dict(ext_modules=[extension], cmdclass=dict(build_ext=OptionalBuild))


def say_why_not(reason):
    """Print once that the package is installed without its native kernels."""
    print(f'mmrednet: the native CPU kernels are not built: {reason}')


setup(**native_kernels())
