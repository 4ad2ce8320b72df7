"""Builds the CPU kernels, if torch and a compiler are there, and copies configs and tools into the
package.

Without kernels the package is installed all the same: it compiles them when they are first used.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
PACKAGE = ROOT / 'mmrednet'
# where mim and mmengine look for the files of a package
MIM = PACKAGE / '.mim'
MIM_FILES = ('configs', 'tools', 'model-index.yml')
# commands that put files into a distribution or an installation
BUILDING = {
    'bdist_wheel',
    'build',
    'build_py',
    'develop',
    'dist_info',
    'editable_wheel',
    'egg_info',
    'install',
    'sdist',
}


def copy_mim_files():
    """Copy configs, tools and the model index to where mim and mmengine look for them."""
    shutil.rmtree(MIM, ignore_errors=True)
    MIM.mkdir()
    for name in MIM_FILES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns('__pycache__', '*.pyc')
            shutil.copytree(source, MIM / name, ignore=ignored)
        else:
            shutil.copy(source, MIM / name)


def load_build():
    """Return ``mmrednet/ops/_build.py`` without importing the package."""
    spec = importlib.util.spec_from_file_location('_build', PACKAGE / 'ops' / '_build.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_arguments():
    """Return the arguments of ``setup()`` that build the kernels, or none without torch."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        report_missing_kernels(f'torch cannot be imported here ({error})')
        return {}
    build = load_build()

    class OptionalBuild(BuildExtension):
        """Installs the package without the kernels if they cannot be compiled."""

        def run(self):
            try:
                super().run()
            except Exception as error:  # noqa: BLE001
                report_missing_kernels(f'{type(error).__name__}: {error}')

        def build_extension(self, ext):
            super().build_extension(ext)
            build.write_stamp(Path(self.get_ext_fullpath(ext.name)))

        def copy_extensions_to_source(self):
            # builds in place and editable installations copy the library alone
            super().copy_extensions_to_source()
            for ext in self.extensions:
                build.write_stamp(Path(self.get_ext_fullpath(ext.name)))

    extension = CppExtension(
        'mmrednet.ops._C',
        [str(path.relative_to(ROOT.resolve())) for path in build.sources()],
        depends=[str(path) for path in build.CSRC.glob('*.h')],
        extra_compile_args=[*build.compile_flags(), *symbol_flags()],
    )
    return dict(ext_modules=[extension], cmdclass=dict(build_ext=OptionalBuild))


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


if BUILDING & set(sys.argv):
    copy_mim_files()
setup(**build_arguments())
