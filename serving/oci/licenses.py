"""The licenses that packages state themselves, as CycloneDX lists them.

A package that states none in a form that can be read has none here: nothing is guessed from a text.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageMetadata

License = dict[str, object]

NO_LICENSE = ("UNKNOWN", "OSI Approved")
"""What metadata of old tools says where it says nothing: no license, and a group of licenses."""
MACHINE_READABLE = re.compile(r"\AFormat(-Specification)?:.*copyright-format", re.IGNORECASE)
"""The first line of copyright files whose fields have fixed names."""


def python_licenses(metadata: PackageMetadata) -> list[License]:
    """Return the license of a Python package: its SPDX expression, or else its own words.

    Args:
        metadata: The core metadata of the package.
    """
    expressions = metadata.get_all("License-Expression")
    if expressions:
        return [{"expression": expressions[0]}]
    words = [text.strip() for text in metadata.get_all("License", [])]
    names = [text for text in words if text and "\n" not in text]  # some packages have the whole text there
    classifiers = metadata.get_all("Classifier", [])
    classified = [name.rpartition(" :: ")[2] for name in classifiers if name.startswith("License ::")]
    return _named(_stated(names) or _stated(classified))


def debian_licenses(text: str) -> list[License]:
    """Return the licenses of the parts of a Debian package, by the short names of its copyright file.

    Args:
        text: The copyright file.
    """
    if not MACHINE_READABLE.match(text):
        return []
    return _named(sorted(set(re.findall(r"^License:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE))))


def _stated(names: list[str]) -> list[str]:
    return [name for name in names if name not in NO_LICENSE]


def _named(names: list[str]) -> list[License]:
    return [{"license": {"name": name}} for name in names]
