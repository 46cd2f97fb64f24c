"""Clients in processes that were forked: each program below runs in a Python of its own, because it forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.servers import Server

pytestmark = pytest.mark.server
PROTOCOLS = ["grpc", "http"]

BEGIN = """
import asyncio, faulthandler, multiprocessing, os, socket, sys, threading, time, traceback, warnings
from serving import TruncationWarning
from serving.client import AsyncTritonPipeline, TritonPipeline
warnings.simplefilter("ignore", TruncationWarning)
url, protocol = sys.argv[1:]

def fork(work, leave=sys.exit):  # whatever Python ends there must not reach the parent's connection
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(30, exit=True)  # a child that hangs says where
        try:
            work()
            leave(0)
        except BaseException as error:
            if not isinstance(error, SystemExit):
                traceback.print_exc()
                os._exit(1)
            raise
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def raised(error, use):
    try:
        use()
    except error as caught:
        return str(caught)
    raise AssertionError("not refused")

def print_refusal(use):
    print(raised(RuntimeError, use).replace(str(parent), "PARENT"), flush=True)

parent = os.getpid()
pipe = TritonPipeline("ragged", url=url, protocol=protocol)
"""
PRELOADED = """
before = pipe("a text")
stream = pipe.stream(["one", "two", "three"])
first = next(stream)
stop, calls, errors = threading.Event(), [0] * 4, []

def keep_calling(place):
    while not stop.is_set():
        try:
            assert pipe("a text") == before
            calls[place] += 1
        except BaseException as error:
            errors.append(error)
            raise

def work():
    assert pipe("a text") == before and pipe.task == "text-classification"
    assert len(list(pipe.stream(["one", "two"]))) == 2
    told = raised(RuntimeError, lambda: next(stream))
    assert told == f"process {parent} began this stream and forked this one: begin another stream here", told
    with TritonPipeline("ragged", url=url, protocol=protocol) as own:
        assert own("a text") == before
    if os.getpid() % 2:
        pipe.close()  # the other leaves that to Python

threads = [threading.Thread(target=keep_calling, args=(place,)) for place in range(4)]
for state in ("idle", "busy", "busy", "busy"):
    if state == "busy" and not threads[0].is_alive():
        [thread.start() for thread in threads]
        time.sleep(0.2)
    workers = [fork(work) for _ in range(2)]
    assert [ended(worker) for worker in workers] == [0, 0]
    assert pipe("a text") == before
    counted = sum(calls)
    time.sleep(0.1)
    assert state == "idle" or sum(calls) > counted
stop.set()
[thread.join() for thread in threads]
assert not errors and min(calls) > 0
assert len(list(stream)) == 2
print("as before")
"""
LIBRARIES = """
import torch
before = pipe("a text")

class Answered(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, place):
        return pipe("a text")[0]["score"]

found = torch.cat(list(torch.utils.data.DataLoader(Answered(), batch_size=2, num_workers=2))).tolist()
assert len(found) == 6 and max(abs(score - before[0]["score"]) for score in found) < 1e-6, found

class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, place):
        return "a text"

loader = torch.utils.data.DataLoader(Texts(), batch_size=2, num_workers=2)
for _ in range(2):
    assert list(pipe(loader)) == [before * 2] * 3
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(pipe, [["a text"]] * 4) == [before] * 4
assert pipe("a text") == before
print("as before")
"""
ASYNCHRONOUS = """
async def serve():
    async def ask():
        assert await asynchronous("a text") == before
        await asynchronous.close()

    def fork_once(work=lambda: asyncio.run(ask())):
        return ended(fork(work, leave=os._exit))  # this thread belongs to a loop

    asynchronous = AsyncTritonPipeline("ragged", url=url, protocol=protocol)
    before = await asynchronous("a text")
    assert fork_once() == 0  # idle, in the thread of the loop
    assert await asynchronous("a text") == before
    calls = [asyncio.create_task(asynchronous("a long text " * 500)) for _ in range(8)]
    assert await asyncio.to_thread(fork_once) == 0  # busy, in another thread
    assert len({call[0]["score"] for call in await asyncio.gather(*calls)}) == 1

    waiting = asyncio.create_task(asynchronous("a long text " * 500))
    while asynchronous._connection._in_flight == 0:
        await asyncio.sleep(0)
    if protocol == "http":
        assert fork_once() == 0  # busy, in the thread of the loop
    else:
        assert fork_once(lambda: print_refusal(lambda: asyncio.run(ask()))) == 0
    assert (await waiting)[0]["label"] and await asynchronous("a text") == before
    await asynchronous.close()

before = pipe("a text")
asynchronous = AsyncTritonPipeline("ragged", url=url, protocol=protocol)
loop = asyncio.new_event_loop()
assert loop.run_until_complete(asynchronous("a text")) == before
assert ended(fork(lambda: asyncio.run(asynchronous.close()))) == 0  # between two runs of the loop, and left through Python's end
assert loop.run_until_complete(asynchronous("a text")) == before
loop.run_until_complete(asynchronous.close())
loop.close()
asyncio.run(serve())
print("as before")
"""
TIMED_OUT = """
silent = socket.create_server(("127.0.0.1", 0))
lost = TritonPipeline("x", url=f"127.0.0.1:{silent.getsockname()[1]}", protocol=protocol, timeout=1.5)
errors = []

def ask():
    started = time.monotonic()
    try:
        lost("a text")
    except Exception as error:
        assert 1 < time.monotonic() - started < 5
        errors.append(error.status)

def work():
    errors.clear()
    ask()
    assert errors == ["DEADLINE_EXCEEDED"], errors

thread = threading.Thread(target=ask)
thread.start()
time.sleep(0.3)
assert ended(fork(work)) == 0
thread.join()
assert errors == ["DEADLINE_EXCEEDED"], errors
print("as before")
"""
BESIDE_GRPC = """
import grpc
from serving import forks
forks.CLOSING_SECONDS = 0.2
other = grpc.insecure_channel(url)
grpc.channel_ready_future(other).result(10)
before = pipe("a text")
assert ended(fork(lambda: print_refusal(lambda: pipe("a text")))) == 0
assert pipe("a text") == before
print("as before")
"""
REFUSED = (
    "gRPC does not work in this process: it ran in process PARENT during the fork, because of other code, or of an "
    'AsyncTritonPipeline whose loop could not run; use protocol="http", or start processes by "spawn"'
)


def run(program: str, server: Server, protocol: str) -> list[str]:
    """Run a program that must not hang and say nothing on standard error but what gRPC notes about forks."""
    command = [sys.executable, "-c", BEGIN + program, server.url(protocol), protocol]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    noted = [line for line in done.stderr.splitlines() if "fork_posix.cc" not in line]
    assert (done.returncode, noted) == (0, []), done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_workers_of_a_server_that_was_loaded_before_it_forked(server: Server, protocol: str) -> None:
    assert run(PRELOADED, server, protocol) == ["as before"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.long
def test_workers_of_a_data_loader_and_of_a_pool(server: Server, protocol: str) -> None:
    assert run(LIBRARIES, server, protocol) == ["as before"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_asynchronous_client(server: Server, protocol: str) -> None:
    assert run(ASYNCHRONOUS, server, protocol) == ["as before"] if protocol == "http" else [REFUSED, "as before"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_time_limit_holds_in_both_processes(server: Server, protocol: str) -> None:
    assert run(TIMED_OUT, server, protocol) == ["as before"]


def test_grpc_is_refused_where_it_would_crash(server: Server) -> None:
    assert run(BESIDE_GRPC, server, "grpc") == [REFUSED, "as before"]
