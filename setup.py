"""Builds the native CPU kernels, if torch and a compiler are there.

Without them the package is installed all the same, and computes in plain torch.
"""

import sys
from pathlib import Path

from setuptools import setup

CSRC = Path('mmrednet/ops/csrc')
SOURCES = sorted(str(path) for path in CSRC.glob('*.cpp'))
HEADERS = sorted(str(path) for path in CSRC.glob('*.h'))


def build_arguments():
    """Return the arguments of ``setup()`` that build the kernels, or none without torch."""
    try:
        from torch.backends import openmp
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        report_missing_kernels(
            f'torch cannot be imported here ({error}); '
            'pip install --no-build-isolation shows it the installed one'
        )
        return {}

    class OptionalBuild(BuildExtension):
        """Installs the package without the kernels if they cannot be compiled."""

        def run(self):
            try:
                super().run()
            except Exception as error:  # noqa: BLE001
                report_missing_kernels(f'{type(error).__name__}: {error}')

    # -Wno-psabi: how vectors are passed to functions differs between instruction sets. Only inlined
    # functions take vectors, so it does not matter.
    # -fno-math-errno: math functions need not set errno, and can be vectorised.
    flags = ['-O3', '-Wall', '-Wno-psabi', '-fno-math-errno']
    if openmp.is_available() and sys.platform == 'linux':
        # at::parallel_for is a template that uses OpenMP. The flag is not passed to the linker,
        # because the library must be the one that torch has loaded.
        flags.append('-fopenmp')
    extension = CppExtension('mmrednet.ops._C', SOURCES, depends=HEADERS, extra_compile_args=flags)
    return dict(ext_modules=[extension], cmdclass=dict(build_ext=OptionalBuild))


def report_missing_kernels(reason):
    """Print that the package is installed without its native kernels."""
    print(f'mmrednet: the native CPU kernels are not built: {reason}')


setup(**build_arguments())
