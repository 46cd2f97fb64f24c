"""Imports in the Python stubs of the embedded server: only what is installed is read from ``__pycache__``.

In the model repository, a file in such a folder could hold other code than the module beside it.
"""

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from pathlib import Path


class SourceOnlyLoader(SourceFileLoader):
    """Compiles a module each time, whatever bytecode there is."""

    def get_code(self, fullname):
        """Return the code of a module, as the import system asks for it."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def ignore_bytecode(installed):
    """Compile modules that are not installed from their source, and write no bytecode.

    Args:
        installed: The folder of the installed packages, which are read as usual. So is the standard library.
    """
    usual = [Path(os.__file__).parent.resolve(), Path(installed).resolve()]
    source_only = FileFinder.path_hook((ExtensionFileLoader, EXTENSION_SUFFIXES), (SourceOnlyLoader, SOURCE_SUFFIXES))

    def hook(path):
        found = Path(path).resolve()
        if any(found.is_relative_to(folder) for folder in usual):
            raise ImportError("the next hook takes it", path=path)
        return source_only(path)

    sys.dont_write_bytecode = True
    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.clear()
