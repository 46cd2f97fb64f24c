"""Processes that compute ask the C library for huge pages, unless the user has decided about them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.huge_pages import with_huge_pages

ALLOCATE = """
import ctypes, re
memory = (ctypes.c_char * (64 << 20))()
ctypes.memset(memory, 1, len(memory))
print(re.search(r"AnonHugePages: *([0-9]+) kB", open("/proc/self/smaps_rollup").read())[1])
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": ""}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_setting_of_the_user_stands(before: dict[str, str], after: str) -> None:
    """Other tunables are kept, and so is a choice about huge pages."""
    assert with_huge_pages({"PATH": "/bin", **before}) == {"PATH": "/bin", "GLIBC_TUNABLES": after}


def test_a_process_gets_huge_pages() -> None:
    """Most of the memory that a process allocates then lies in huge pages."""
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if (
        not offered.is_file()
        or "[never]" in offered.read_text()
        or tuple(map(int, os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))) < (2, 35)
    ):
        pytest.skip("this system has no huge pages, or its C library does not ask for them")
    run = subprocess.run(
        [sys.executable, "-c", ALLOCATE], env=with_huge_pages(os.environ), capture_output=True, text=True, check=True
    )
    assert int(run.stdout) > 32 << 10
