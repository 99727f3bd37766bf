"""The file of keys is read again when it changes, and the old keys stay when it cannot be."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.tokens import verifier as module
from gateway.tokens.keys import read_keys
from gateway.tokens.verifier import LOOK_EVERY, Verifier

from ..fakes import virtual
from .signers import ID, NOW, jwks, signer

FIRST, SECOND = signer("ES256"), signer("ES256", 1)


class Scene:
    """A verifier of a file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "keys"
        self.file.write_bytes(FIRST.file)
        self.verifier = Verifier(str(self.file), read_keys(str(self.file)), lambda: NOW)

    def knows(self) -> list[bool]:
        """Whether it knows the first key, and the second."""
        return [self.verifier.refusal(ID, key.token()) is None for key in (FIRST, SECOND)]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_it_says_why(scene: Scene) -> None:
    assert scene.verifier.refusal(ID, None) == "missing"
    assert scene.verifier.refusal(ID, FIRST.token(exp=NOW - 100)) == "expired"
    assert scene.knows() == [True, False]


def test_the_time_is_the_systems(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    verifier = Verifier(str(scene.file), read_keys(str(scene.file)))
    assert verifier.refusal(ID, FIRST.token(exp=1_000_000_000)) == "expired"
    assert verifier.refusal(ID, FIRST.token(exp=9_000_000_000)) is None


def test_a_file_that_has_changed_is_read_again(scene: Scene) -> None:
    scene.file.write_bytes(SECOND.file)
    with capture_logs() as lines:
        scene.verifier.look()
        scene.verifier.look()
    assert scene.knows() == [False, True]
    assert [(line["event"], line["algorithms"], line["kids"]) for line in lines] == [
        ("registration keys read again", ["ES256"], [None])
    ]


def test_a_file_that_has_not_changed_is_not_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: str, before: Any) -> Any:
        raise AssertionError(path, before)

    monkeypatch.setattr(module, "read_keys", read)
    scene.verifier.look()


def test_a_new_file_in_its_place_is_read_though_it_looks_the_same(scene: Scene) -> None:
    """As programs replace a file: written beside it, then renamed. Archives keep the time."""
    old = scene.file.stat()
    new = scene.file.with_name("new")
    new.write_bytes(SECOND.file)
    os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))
    new.rename(scene.file)
    scene.verifier.look()
    assert scene.knows() == [False, True]


def test_a_link_that_leads_elsewhere_is_followed(tmp_path: Path) -> None:
    """As Kubernetes replaces a Secret."""
    for name, key in (("1", FIRST), ("2", SECOND)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_bytes(key.file)
    data = tmp_path / "data"
    data.symlink_to("1")
    file = str(data / "keys")
    verifier = Verifier(file, read_keys(file), lambda: NOW)
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(data)
    verifier.look()
    assert verifier.refusal(ID, SECOND.token()) is None


@pytest.mark.parametrize("content", [b"", b"{", b"short", FIRST.private_file, None])
def test_a_broken_file_keeps_the_keys_and_says_so_once(scene: Scene, content: bytes | None) -> None:
    if content is None:
        scene.file.unlink()
    else:
        scene.file.write_bytes(content)
    with capture_logs() as lines:
        scene.verifier.look()
        scene.verifier.look()
    assert scene.knows() == [True, False]
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("registration keys not read again", "error")
    assert "stay in use" in line["hint"]
    assert line["reason"]
    scene.file.write_bytes(jwks(FIRST.jwk(kid="1"), SECOND.jwk(kid="2")))
    with capture_logs() as lines:
        scene.verifier.look()
    assert scene.knows() == [True, True]
    assert lines[0]["kids"] == ["1", "2"]


def test_it_is_read_again_when_told_so(scene: Scene) -> None:
    with capture_logs() as lines:
        scene.verifier.reload()
    assert [line["event"] for line in lines] == ["registration keys read again"]


def test_a_file_that_changed_before_the_verifier_began_is_noticed(scene: Scene) -> None:
    """A worker gets the keys that its parent has read long ago."""
    keys = read_keys(str(scene.file))
    scene.file.write_bytes(SECOND.file)
    scene.verifier = Verifier(str(scene.file), keys, lambda: NOW)
    scene.verifier.look()
    assert scene.knows() == [False, True]


def test_it_looks_every_few_seconds(scene: Scene) -> None:
    @virtual
    async def rotate() -> None:
        watching = asyncio.create_task(scene.verifier.watch())
        await asyncio.sleep(0)
        scene.file.write_bytes(SECOND.file)
        await asyncio.sleep(LOOK_EVERY - 0.1)
        assert scene.knows() == [True, False]
        await asyncio.sleep(0.2)
        assert scene.knows() == [False, True]
        scene.file.write_bytes(b"broken")
        await asyncio.sleep(3 * LOOK_EVERY)
        assert not watching.done()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    with capture_logs():
        rotate()


def test_it_looks_at_once(scene: Scene) -> None:
    """A worker gets the keys that its parent has read long ago, and pages register as soon as it listens."""

    @virtual
    async def begin() -> None:
        watching = asyncio.create_task(scene.verifier.watch())
        await asyncio.sleep(0)
        assert scene.knows() == [False, True]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    scene.file.write_bytes(SECOND.file)
    with capture_logs():
        begin()


@pytest.mark.parametrize("content", [signer("HS256").file, jwks(SECOND.jwk(), signer("HS256").jwk())])
def test_public_keys_never_become_a_secret_while_a_node_runs(scene: Scene, content: bytes) -> None:
    scene.file.write_bytes(content)
    with capture_logs() as lines:
        scene.verifier.look()
    assert scene.knows() == [True, False]
    assert scene.verifier.refusal(ID, signer("HS256").token()) == "algorithm"
    assert [line["event"] for line in lines] == ["registration keys not read again"]
    assert "start the node again" in lines[0]["reason"]


def test_a_secret_may_become_another_one_or_public_keys(scene: Scene) -> None:
    scene.file.write_bytes(signer("HS256").file)
    scene.verifier = Verifier(str(scene.file), read_keys(str(scene.file)), lambda: NOW)
    with capture_logs():
        scene.file.write_bytes(signer("HS256", 1).file)
        scene.verifier.look()
        assert scene.verifier.refusal(ID, signer("HS256", 1).token()) is None
        scene.file.write_bytes(FIRST.file)
        scene.verifier.look()
    assert scene.knows() == [True, False]
