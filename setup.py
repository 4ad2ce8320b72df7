"""Builds the CPU kernels, if torch and a compiler are there, and copies configs and tools into the
package.

Without kernels the package is installed all the same: it compiles them when they are first used.
"""

import importlib.util
import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / 'mmrednet'


def load(path):
    """Return a module of the package, by its path: without importing the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithConfigs(build_py):
    """Copies configs, tools and the model index to where mim and mmengine look for them."""

    def run(self):
        super().run()
        target = PACKAGE if self.editable_mode else Path(self.build_lib, 'mmrednet')
        load(PACKAGE / 'shipped.py').copy_shipped(ROOT, target / '.mim')


COMMANDS = dict(build_py=BuildWithConfigs)


def build_arguments():
    """Return the arguments of ``setup()`` that build the kernels, or none without torch."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        report_missing_kernels(f'torch cannot be imported here ({error})')
        return dict(cmdclass=COMMANDS)
    build = load(PACKAGE / 'ops' / '_build.py')

    class OptionalBuild(BuildExtension):
        """Installs the package without the kernels if they cannot be compiled."""

        def run(self):
            try:
                super().run()
            except Exception as error:  # noqa: BLE001
                report_missing_kernels(f'{type(error).__name__}: {error}')

        def build_extension(self, ext):
            library = Path(self.get_ext_fullpath(ext.name))
            built = PACKAGE / 'ops' / library.name
            if built != library.resolve() and built.is_file() and build.misfit(built) is None:
                # compiled in place from these sources: a wheel need not compile again
                library.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(built, library)
            else:
                super().build_extension(ext)
            build.write_stamp(library)

        def copy_extensions_to_source(self):
            # builds in place and editable installations copy the library alone
            super().copy_extensions_to_source()
            for ext in self.extensions:
                build.write_stamp(Path(self.get_ext_fullpath(ext.name)))

    extension = CppExtension(
        'mmrednet.ops._C',
        [str(path.relative_to(ROOT)) for path in build.sources()],
        depends=[str(path) for path in build.CSRC.glob('*.h')],
        extra_compile_args=[*build.compile_flags(), *symbol_flags()],
    )
    return dict(ext_modules=[extension], cmdclass=dict(COMMANDS, build_ext=OptionalBuild))


def symbol_flags():
    """Return the flag that leaves debugging symbols out, unless CFLAGS asks for them.

    Python's own flags ask for them. They are three quarters of the library.
    """
    return [] if '-g' in os.environ.get('CFLAGS', '').split() else ['-g0']


def report_missing_kernels(reason):
    """Print that the package is installed without its native kernels."""
    print(
        f'mmrednet: the CPU kernels are not built: {reason}; they are compiled when they are first '
        'used'
    )


setup(**build_arguments())
