"""The journal keeps what it acknowledged: over torn tails, kill -9, a full disk, rotation, any grouping."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import segment
from ingest.journal import Frame, Journal, JournalCorrupt, JournalError, JournalFull, Kind, read_frames
from ingest.segment import HEADER_BYTES

SMALL = 64 << 10


async def fill(journal: Journal, bodies: list[bytes]) -> list[int]:
    """Append all bodies at once; their offsets."""
    return await asyncio.gather(
        *(journal.append(Kind.TRACES_PROTO, body, received_at_ns=n) for n, body in enumerate(bodies))
    )


def read_all(directory: Path, *, stop: int, start: int = 0, max_bytes: int = 1 << 20) -> list[Frame]:
    """Read from `start` to `stop` in calls of at most `max_bytes`, as the ledger does."""
    frames: list[Frame] = []
    while start < stop:
        frames += read_frames(directory, start=start, stop=stop, max_bytes=max_bytes)
        start = frames[-1].offset
    return frames


def segments(directory: Path) -> list[str]:
    """The segment files, oldest first."""
    return sorted(path.name for path in directory.glob("*.seg"))


async def until_gone(path: Path, seconds: float = 5.0) -> None:
    """Wait until the background thread has deleted `path`."""
    deadline = time.monotonic() + seconds
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        await asyncio.sleep(0.01)


async def test_what_was_appended_is_read_back_in_order_with_kind_and_time(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", segment_bytes=SMALL)
    first = await journal.append(Kind.LOGS_JSON, b"{}", received_at_ns=7)
    second = await journal.append(Kind.CONTROL, b"", received_at_ns=-1)
    assert (first, second) == (HEADER_BYTES + 2, 2 * HEADER_BYTES + 2)
    assert journal.durable == second
    assert read_frames(tmp_path / "j", start=0, stop=second, max_bytes=1000) == [
        Frame(offset=first, kind=Kind.LOGS_JSON, received_at_ns=7, body=b"{}"),
        Frame(offset=second, kind=Kind.CONTROL, received_at_ns=-1, body=b""),
    ]
    assert read_frames(tmp_path / "j", start=0, stop=first, max_bytes=1000)[-1].offset == first
    await journal.close()


async def test_a_reopened_journal_goes_on_where_it_ended_under_the_same_name(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=SMALL)
    epoch, [end] = journal.epoch, await fill(journal, [b"one"])
    await journal.close()
    for body in (b"two", b"three"):
        journal = Journal.open(tmp_path, segment_bytes=SMALL)
        assert (journal.epoch, journal.durable) == (epoch, end)
        [end] = await fill(journal, [body])
        await journal.close()
    assert [frame.body for frame in read_all(tmp_path, stop=end)] == [b"one", b"two", b"three"]


async def test_one_group_one_wake_up(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=8 << 20)
    told: list[int] = []
    journal.on_durable = told.append
    bodies = [b"x" * 10] * 3000  # more buffers than one writev takes
    offsets = await fill(journal, bodies)
    assert offsets == [(HEADER_BYTES + 10) * (n + 1) for n in range(3000)]
    assert len(told) == journal.groups < 100
    assert told[-1] == offsets[-1] == journal.durable
    assert len(read_all(tmp_path, stop=journal.durable, max_bytes=4096)) == 3000
    await journal.close()


async def test_records_that_may_wait_are_written_with_the_first_that_may_not(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=SMALL)
    patient = [journal.submit(Kind.CONTROL, b"patient", received_at_ns=n, gather_s=3600) for n in range(3)]
    done, _ = await asyncio.wait(patient, timeout=0.05)
    assert not done
    last = await journal.append(Kind.CONTROL, b"hurried", received_at_ns=3)
    assert [each.result() for each in patient] == [(n + 1) * (HEADER_BYTES + 7) for n in range(3)]
    assert (last, journal.groups) == (4 * (HEADER_BYTES + 7), 1)
    assert await journal.append(Kind.CONTROL, b"alone", received_at_ns=4, gather_s=0.001) == journal.durable
    left = journal.submit(Kind.CONTROL, b"left", received_at_ns=5, gather_s=3600)
    await journal.close()
    assert left.result() == journal.durable


async def test_a_frame_larger_than_a_segment_gets_a_segment_of_its_size(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=SMALL)
    bodies = [b"a" * 100, os.urandom(5 * SMALL), b"b" * 100, os.urandom(SMALL - HEADER_BYTES)]
    await fill(journal, bodies)
    assert [frame.body for frame in read_all(tmp_path, stop=journal.durable, max_bytes=100)] == bodies
    await journal.close()


async def test_reading_is_bounded_but_always_gives_one_frame(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=SMALL)
    offsets = await fill(journal, [b"x" * 1000] * 10)
    one = HEADER_BYTES + 1000
    stop = offsets[-1]
    assert len(read_frames(tmp_path, start=0, stop=stop, max_bytes=0)) == 1
    assert len(read_frames(tmp_path, start=0, stop=stop, max_bytes=3 * one)) == 3
    assert len(read_frames(tmp_path, start=0, stop=stop, max_bytes=4 * one - 1)) == 3
    assert read_frames(tmp_path, start=stop, stop=stop, max_bytes=1000) == []
    await journal.close()


@settings(max_examples=25, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=6), min_size=1, max_size=8),
    segment_bytes=st.sampled_from([512, 1500, 4096, 100_000]),
    max_bytes=st.sampled_from([1, 700, 10_000]),
    reopen_every=st.integers(1, 4),
)
def test_any_frames_in_any_groups_and_segments_read_back_identical(
    groups: list[list[int]], segment_bytes: int, max_bytes: int, reopen_every: int
) -> None:
    async def scenario(directory: Path) -> None:
        expected: list[bytes] = []
        journal = Journal.open(directory, segment_bytes=segment_bytes)
        for number, sizes in enumerate(groups):
            bodies = [random.Random(f"{number}{size}").randbytes(size) for size in sizes]
            assert (await fill(journal, bodies))[-1] == journal.durable
            expected += bodies
            if number % reopen_every == 0:
                await journal.close()
                journal = Journal.open(directory, segment_bytes=segment_bytes)
        frames = read_all(directory, stop=journal.durable, max_bytes=max_bytes)
        assert [frame.body for frame in frames] == expected
        assert journal.backlog_bytes == sum(HEADER_BYTES + len(body) for body in expected)
        await journal.close()

    with TemporaryDirectory() as directory:
        asyncio.run(scenario(Path(directory)))


# --- torn tails and damage ---


async def test_a_tail_torn_at_any_byte_is_cut_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.open(tmp_path / "whole", segment_bytes=4096)
    kept, end = await fill(journal, [b"kept", bytes(range(1, 61))])
    await journal.close()
    name = segments(tmp_path / "whole")[0]
    for torn_at in range(kept, end):
        directory = tmp_path / f"torn{torn_at}"
        shutil.copytree(tmp_path / "whole", directory)
        with (directory / name).open("r+b") as file:
            file.truncate(torn_at)
            file.truncate(4096)  # what was not written is zeros
        caplog.clear()
        journal = Journal.open(directory, segment_bytes=4096)
        assert journal.durable == kept
        warnings = [record.getMessage() for record in caplog.records if record.name == "tollbook.journal"]
        assert len(warnings) == (1 if torn_at > kept else 0)
        if warnings:
            assert f"position {kept}" in warnings[0] and name in warnings[0]
        [again] = await fill(journal, [b"again"])
        await journal.close()
        assert [frame.body for frame in read_all(directory, stop=again)] == [b"kept", b"again"]


async def test_a_cut_tail_never_comes_back(tmp_path: Path) -> None:
    """A whole frame behind a torn one (pages reach the disk in any order) must not be joined to others."""
    journal = Journal.open(tmp_path, segment_bytes=4096)
    offsets = await fill(journal, [b"kept", b"torn", b"whole"])
    await journal.close()
    with (tmp_path / segments(tmp_path)[0]).open("r+b") as file:
        file.seek(offsets[1] - 1)
        file.write(b"X")
    for _ in range(2):
        journal = Journal.open(tmp_path, segment_bytes=4096)
        assert journal.durable == offsets[0]
        await journal.close()
    journal = Journal.open(tmp_path, segment_bytes=4096)
    [end] = await fill(journal, [b"torn"])  # as long as the damaged one: `whole` would be found behind it
    await journal.close()
    journal = Journal.open(tmp_path, segment_bytes=4096)
    assert [frame.body for frame in read_all(tmp_path, stop=journal.durable)] == [b"kept", b"torn"]
    assert journal.durable == end
    await journal.close()


async def test_damage_in_the_durable_range_is_named_and_the_next_good_frame_with_it(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=4096)
    first, second, third = await fill(journal, [b"good", b"damaged", b"fine"])
    name = segments(tmp_path)[0]
    with (tmp_path / name).open("r+b") as file:
        file.seek(second - 1)
        file.write(b"X")
    assert [frame.body for frame in read_frames(tmp_path, start=0, stop=third, max_bytes=1000)] == [b"good"]
    with pytest.raises(JournalCorrupt, match=name) as caught:
        read_frames(tmp_path, start=first, stop=third, max_bytes=1000)
    assert (caught.value.position, caught.value.next_position) == (first, second)
    assert [frame.body for frame in read_frames(tmp_path, start=second, stop=third, max_bytes=9)] == [b"fine"]
    await journal.close()


async def test_reading_what_was_deleted_says_so(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=1000)
    offsets = await fill(journal, [b"x" * 900] * 3)
    oldest = tmp_path / segments(tmp_path)[0]
    journal.release(offsets[1])
    await until_gone(oldest)
    with pytest.raises(JournalCorrupt, match="gone"):
        read_frames(tmp_path, start=0, stop=offsets[-1], max_bytes=1000)
    assert len(read_all(tmp_path, start=offsets[1], stop=offsets[-1])) == 1
    await journal.close()


# --- release, rotation, privacy ---


async def test_released_segments_go_and_the_position_survives(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=4096, rotate_after_s=0.05)
    await fill(journal, [os.urandom(3000) for _ in range(5)])
    old = segments(tmp_path)
    assert journal.backlog_bytes == 5 * (3000 + HEADER_BYTES)
    journal.release(journal.durable)
    assert journal.backlog_bytes == 0
    for name in old:
        await until_gone(tmp_path / name)
    end = journal.durable
    assert segments(tmp_path) == [f"{end:020d}.seg"]
    await journal.close()
    journal = Journal.open(tmp_path, segment_bytes=4096)
    assert (journal.durable, journal.released) == (end, end)
    assert (await fill(journal, [b"next"]))[0] == end + HEADER_BYTES + 4
    await journal.close()


async def test_a_trickle_does_not_keep_old_bodies(tmp_path: Path) -> None:
    """Bodies go a while after their commit also when the segment never fills and is never idle."""
    journal = Journal.open(tmp_path, segment_bytes=1 << 20, rotate_after_s=0.1)
    first = tmp_path / segments(tmp_path)[0]
    for _ in range(100):
        await fill(journal, [b"body"])
        journal.release(journal.durable)
        await asyncio.sleep(0.005)
        if not first.exists():
            break
    assert not first.exists()
    assert len(segments(tmp_path)) <= 3
    await journal.close()


async def test_what_is_not_released_stays(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=4096, rotate_after_s=0.02)
    offsets = await fill(journal, [os.urandom(1500) for _ in range(9)])
    journal.release(offsets[3])
    await asyncio.sleep(0.1)
    assert [frame.offset for frame in read_all(tmp_path, start=offsets[3], stop=offsets[-1])] == offsets[4:]
    with pytest.raises(ValueError, match="durable"):
        journal.release(offsets[-1] + 1)
    await journal.close()


async def test_everything_is_private(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir(mode=0o755)
    journal = Journal.open(tmp_path / "j", segment_bytes=4096)
    await fill(journal, [os.urandom(3000) for _ in range(4)] + [os.urandom(9000)])
    await journal.close()
    assert stat.S_IMODE((tmp_path / "j").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "j").iterdir()}
    assert len(modes) >= 5 and set(modes.values()) == {0o600}


async def test_one_directory_one_journal(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=4096)
    with pytest.raises(JournalError, match="open in another"):
        Journal.open(tmp_path, segment_bytes=4096)
    await journal.close()
    with pytest.raises(JournalError, match="closed"):
        await journal.append(1, b"", received_at_ns=0)
    await Journal.open(tmp_path, segment_bytes=4096).close()


async def test_closing_writes_what_waits(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=4096)
    waiting = [asyncio.ensure_future(journal.append(1, b"x", received_at_ns=0)) for _ in range(50)]
    await asyncio.sleep(0)
    await journal.close()
    offsets = await asyncio.gather(*waiting)
    assert len(read_all(tmp_path, stop=offsets[-1])) == 50


# --- full and failing disks ---


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """Lets a test lower RLIMIT_FSIZE: writes beyond it really come back short, then fail (EFBIG)."""
    old_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, old_signal)


def limit_files(size_bytes: int) -> None:
    """No file may grow, or be written, beyond `size_bytes`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.usefixtures("file_size_limit")
async def test_a_write_cut_short_fails_its_group_whole_and_nothing_else(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=SMALL)
    [kept] = await fill(journal, [b"kept" * 100])
    limit_files(5000)  # inside the group that comes now
    results = await asyncio.gather(
        *(journal.append(1, b"%04d" % n * 250, received_at_ns=0) for n in range(10)), return_exceptions=True
    )
    assert [type(result) for result in results] == [JournalFull] * 10
    assert journal.durable == kept and journal.backlog_bytes == kept and journal.failure
    for _ in range(2):
        with pytest.raises(JournalFull):
            await journal.append(1, b"x" * 6000, received_at_ns=0)
    limit_files(resource.RLIM_INFINITY)
    await fill(journal, [b"later"])
    assert journal.failure is None
    assert [frame.body for frame in read_all(tmp_path, stop=journal.durable)] == [b"kept" * 100, b"later"]
    end = journal.durable
    await journal.close()
    journal = Journal.open(tmp_path, segment_bytes=SMALL)
    assert journal.durable == end
    await journal.close()


@pytest.mark.usefixtures("file_size_limit")
async def test_a_refused_group_is_not_found_by_a_restart_either(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=SMALL)
    [kept] = await fill(journal, [b"kept"])
    limit_files(3000)
    with pytest.raises(JournalFull):
        await fill(journal, [b"a" * 1000] * 8)  # the first two were written whole
    await journal.close()
    limit_files(resource.RLIM_INFINITY)
    journal = Journal.open(tmp_path, segment_bytes=SMALL)
    assert journal.durable == kept
    await journal.close()


async def test_a_failed_sync_is_never_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one fault that cannot be had without a broken disk is made by hand: fdatasync says EIO once."""
    journal = Journal.open(tmp_path, segment_bytes=SMALL)
    [kept] = await fill(journal, [b"kept"])
    before = segments(tmp_path)

    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(segment, "_sync_data", broken)
    with pytest.raises(JournalFull):
        await fill(journal, [b"lost"])
    monkeypatch.undo()
    await fill(journal, [b"later"])
    assert (tmp_path / before[-1]).stat().st_size == kept
    assert segments(tmp_path) == [before[-1], f"{kept:020d}.seg"]
    assert [frame.body for frame in read_all(tmp_path, stop=journal.durable)] == [b"kept", b"later"]
    await journal.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB (tmpfs), where the machine lets a test mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


async def test_a_full_disk_refuses_and_later_takes(tiny_disk: Path) -> None:
    directory = tiny_disk / "j"
    journal = Journal.open(directory, segment_bytes=128 << 10)
    taken: list[bytes] = []
    refused = 0
    for _ in range(100):
        body = os.urandom(20_000)
        try:
            await journal.append(1, body, received_at_ns=0)
            taken.append(body)
        except JournalFull as error:
            assert "No space left" in str(error)
            refused += 1
    assert len(taken) > 20 and refused > 40
    frames = read_all(directory, stop=journal.durable)
    assert [frame.body for frame in frames] == taken
    journal.release(frames[len(frames) // 2].offset)  # the ledger has caught up: segments go, space is back
    await asyncio.sleep(0.1)
    offset = await journal.append(1, b"later", received_at_ns=0)
    assert read_all(directory, start=frames[-1].offset, stop=offset)[0].body == b"later"
    await journal.close()


# --- kill -9 ---

APPENDER = """
import asyncio, hashlib, os, sys
from pathlib import Path
from ingest.journal import Journal

async def main():
    journal = Journal.open(Path(sys.argv[1]), segment_bytes=200_000, rotate_after_s=0.05)
    async def append(worker):
        n = 0
        while True:
            body = os.urandom(8) * ((n * 37 + worker * 101) % 900)
            offset = await journal.append(1 + worker % 6, body, received_at_ns=n)
            os.write(1, f"{offset} {hashlib.sha1(body).hexdigest()}\\n".encode())
            n += 1
    await asyncio.gather(*(append(worker) for worker in range(16)))

asyncio.run(main())
"""


def test_kill_9_under_load_loses_nothing_acknowledged(tmp_path: Path) -> None:
    import hashlib  # noqa: PLC0415

    moments = random.Random(20260101)
    acknowledged: dict[int, str] = {}
    for _ in range(8):
        acknowledged |= run_and_kill(tmp_path / "j", after_s=moments.uniform(0.15, 0.5))
    journal = Journal.open(tmp_path / "j", segment_bytes=200_000)
    frames = read_all(tmp_path / "j", stop=journal.durable)
    found = {frame.offset: hashlib.sha1(frame.body).hexdigest() for frame in frames}
    assert len(acknowledged) > 500
    assert len(segments(tmp_path / "j")) > 5
    assert acknowledged.items() <= found.items()
    asyncio.run(journal.close())


def run_and_kill(directory: Path, *, after_s: float) -> dict[int, str]:
    """Append from a process of its own until it is killed; offset -> digest of all it was told is durable."""
    command = [sys.executable, "-c", APPENDER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as appender:
        assert appender.stdout
        first = appender.stdout.readline()
        timer = time.monotonic() + after_s
        output = [first]
        while time.monotonic() < timer:
            output.append(appender.stdout.readline())
        appender.kill()
        output += appender.stdout.readlines()
    lines = [line.split() for line in output if line.endswith(b"\n")]
    return {int(offset): digest.decode() for offset, digest in lines}
