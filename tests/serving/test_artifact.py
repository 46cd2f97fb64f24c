"""Artifact folders: whatever moment is the last, one whole folder stands under the name."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving import artifact
from serving.artifact import is_current, publish, staging_folder, write_manifest

LAST_BREATH = """
import os, sys
from pathlib import Path
from serving import artifact

target, left, exchange, end = Path(sys.argv[1]), [int(sys.argv[2])], sys.argv[3] == "exchange", sys.argv[4]

class Stopped(BaseException):
    pass

def before(original):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0 and end == "killed":
            os._exit(9)
        if left[0] == -1:
            raise Stopped
        return original(*arguments, **options)
    return call

Path.rename = before(Path.rename)
artifact._exchange = before(artifact._exchange if exchange else lambda *_: False)
artifact.shutil.rmtree = before(artifact.shutil.rmtree) if end == "killed" else artifact.shutil.rmtree
try:
    with artifact.publish(target) as fresh:
        (fresh / "content").write_text("new")
except Stopped:
    sys.exit(9)
"""


def write(target: Path, content: str) -> None:
    with publish(target) as fresh:
        (fresh / "content").write_text(content)


def left_aside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("end", ["killed", "raised"])
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_every_rename_may_be_the_last(tmp_path: Path, way: str, end: str) -> None:
    """Ends before the nth rename or removal, for every n."""
    seen = set()
    for limit in range(20):
        target = tmp_path / str(limit) / "target"
        write(target, "old")
        command = [sys.executable, "-c", LAST_BREATH, str(target), str(limit), way, end]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 9), done.stderr
        if way == "exchange" or end == "raised":
            assert (target / "content").exists(), "at no moment is there none"
        is_current(target, "bundle", {})  # what every stage asks first
        content = (target / "content").read_text()
        seen.add(content)
        assert left_aside(target.parent) == []
        if done.returncode == 0:
            assert content == "new"
            break
    assert limit >= 1
    assert seen == {"old", "new"}


def test_a_next_run_that_fails_leaves_what_the_killed_one_had_put_aside(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    aside = tmp_path / f".target.{killed.stdout.strip()}.abc.partial"
    (aside / "retired").mkdir(parents=True)
    (aside / "retired" / "content").write_text("old")
    foreign = tmp_path / f".target.more.{killed.stdout.strip()}.abc.partial"
    foreign.mkdir()
    with pytest.raises(RuntimeError), publish(tmp_path / "target"):
        raise RuntimeError
    assert (tmp_path / "target" / "content").read_text() == "old"
    assert left_aside(tmp_path) == [foreign.name], "that of another name is not this one's"


def test_a_running_process_keeps_what_it_put_aside(tmp_path: Path) -> None:
    with staging_folder(tmp_path, "target") as staging:
        (staging / "retired").mkdir()
        assert not is_current(tmp_path / "target", "bundle", {})
        assert (staging / "retired").exists()


def test_two_folders_change_places_or_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    assert artifact._exchange(one, other)
    assert (one / "other").exists() and (other / "one").exists()
    with pytest.raises(FileNotFoundError, match="absent"):
        artifact._exchange(one, tmp_path / "absent")
    for code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        monkeypatch.setattr(artifact, "RENAME_EXCHANGE", 1 << 20)  # a flag nobody knows
        monkeypatch.setattr(artifact.ctypes, "get_errno", lambda code=code: code)
        assert not artifact._exchange(one, other)
    assert (one / "other").exists()


def test_a_manifest_is_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_manifest(tmp_path, "bundle", {}, figure=float("nan"))
    write_manifest(tmp_path, "bundle", {}, figure=None)
    assert json.loads((tmp_path / "manifest.json").read_text())["figure"] is None
