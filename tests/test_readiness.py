"""When a model counts as ready, before real servers that do what they should not."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from llamaswapd import readiness
from llamaswapd.config.schema import ModelConfig
from llamaswapd.errors import StartError, UnitResult
from llamaswapd.readiness import endpoint, go_duration, greet, wait_until_ready

FOREVER_S = 3600


class Unit:
    """A unit that ends, gives signs of life and writes lines when the test says so."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[UnitResult] = asyncio.get_running_loop().create_future()
        self.notified = asyncio.Event()
        self.holder: str | None = None
        self.asked_ports: list[int] = []
        self.written: list[str] = []
        self.log: asyncio.Queue[str] = asyncio.Queue()
        self.was_read = asyncio.Event()
        self.readers = 0

    def write(self, line: str) -> None:
        self.written.append(line)
        self.log.put_nowait(line)

    async def stranger(self, port: int) -> str | None:
        self.asked_ports.append(port)
        return self.holder

    async def last_lines(self, count: int) -> list[str]:
        return self.written[-count:]

    async def wait_for_line(self, pattern: re.Pattern[str]) -> str:
        self.readers += 1
        try:
            while not pattern.search(line := await self.log.get()):
                self.was_read.set()
            return line
        finally:
            for _ in range(10):  # to leave a journal takes a moment
                await asyncio.sleep(0)
            self.readers -= 1


@dataclass(frozen=True)
class Hang:
    """Accept, and never answer, or not to the end."""

    said: bytes = b""


HANG = Hang()
Answer: TypeAlias = bytes | Hang


class Server:
    """A server that has one answer for each connection, the last one for all that follow."""

    def __init__(self, answers: Sequence[Answer], delay_s: float) -> None:
        self.heads: list[str] = []
        self.probed = asyncio.Event()
        self.left = asyncio.Event()  # somebody closed a connection that got no answer
        self.port = 0
        self._answers = answers
        self._delay_s = delay_s

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            self.probed.set()
            answer = self._answers[min(len(self.heads), len(self._answers)) - 1]
            await asyncio.sleep(self._delay_s)
            if isinstance(answer, Hang):
                writer.write(answer.said)
                await reader.read()
                self.left.set()
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()


def bound(host: str) -> socket.socket:
    if ":" not in host:
        return socket.create_server((host, 0))
    try:
        return socket.create_server((host, 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")


@asynccontextmanager
async def serving(
    *answers: Answer, host: str = "127.0.0.1", at: socket.socket | None = None, delay_s: float = 0
) -> AsyncIterator[Server]:
    server = Server(answers, delay_s)
    listener = await asyncio.start_server(server.serve, sock=at or bound(host))
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server


def status(code: int, rest: str = "") -> bytes:
    return f"HTTP/1.1 {code} Whatever\r\n{rest}Content-Length: 0\r\n\r\n".encode()


OK = status(200)


def model(port: int = 1, **settings: Any) -> ModelConfig:
    defaults = {"id": "m", "cmd": f"serve {port}", "proxy": f"http://127.0.0.1:{port}", "health_check_timeout": 15}
    return ModelConfig(**(defaults | settings))


async def ready(of: ModelConfig, unit: Unit) -> None:
    """`wait_until_ready`, of which nothing is left on any way out."""
    before = asyncio.all_tasks()
    try:
        await wait_until_ready(of, unit)
    finally:
        left = [task for task in asyncio.all_tasks() - before if "Server.serve" not in repr(task)]
        assert left == []
        assert unit.readers == 0
        assert not unit.ended.cancelled()


# ---- what counts


@pytest.mark.parametrize(
    "refusal",
    [
        *(status(code) for code in (100, 201, 204, 401, 404, 500, 503)),
        status(301, "Location: /elsewhere\r\n"),
        b"",
        b"220 mail.example ESMTP 200\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"\x00\xff\r\n",
        b"HTTP/1.1 200 " + b"x" * 100_000,
    ],
    ids=lambda answer: repr(answer[:20]),
)
async def test_only_an_answer_of_200_makes_a_model_ready(refusal: bytes) -> None:
    async with serving(refusal, refusal, OK) as server:
        await ready(model(server.port), Unit())
    assert len(server.heads) == 3


async def test_a_probe_is_a_get_of_the_health_endpoint_on_a_connection_of_its_own() -> None:
    async with serving(OK) as server:
        await ready(model(server.port, check_endpoint="/v1/health?deep=1"), Unit())
    request_line, *headers = server.heads[0].split("\r\n")[:-2]
    assert request_line == "GET /v1/health?deep=1 HTTP/1.1"
    assert {f"Host: 127.0.0.1:{server.port}", "Connection: close"} <= set(headers)


async def test_a_server_may_begin_to_listen_late() -> None:
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        waiting = asyncio.create_task(ready(model(late.getsockname()[1]), Unit()))
        await asyncio.sleep(0.05)  # be refused a few times
        assert not waiting.done()
        async with serving(OK, at=late):
            await waiting


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("first", ["127.0.0.1", "::1"])
async def test_localhost_is_whichever_of_its_addresses_is_listened_on(
    host: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(name: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        assert name == "localhost"
        both = [(socket.AF_INET6, 1, 6, "", ("::1", port, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]
        return both if first == "::1" else both[::-1]

    async with serving(OK, host=host) as server:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        await ready(model(proxy=f"http://localhost:{server.port}"), Unit())
    assert f"\r\nHost: localhost:{server.port}\r\n" in server.heads[0]


async def test_an_ipv6_address_is_a_host_too() -> None:
    async with serving(OK, host="::1") as server:
        await ready(model(proxy=f"http://[::1]:{server.port}"), Unit())
    assert f"\r\nHost: [::1]:{server.port}\r\n" in server.heads[0]


def host_of(proxy: str) -> readiness._Host:
    there = model(proxy=proxy)
    where = endpoint(there)
    assert where is not None
    return readiness._Host(there, where)


async def test_addresses_that_take_long_to_learn_are_believed_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, look_ups = [100.0], []

    async def resolve(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        look_ups.append(host)
        clock[0] += 3
        return [(0, 0, 0, "", ("192.0.2.1", port))]

    host = host_of("http://slow.invalid")
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: clock[0])
        for _ in range(12):
            assert await host.addresses() == [("192.0.2.1", 80)]
            clock[0] += 2
    assert len(look_ups) == 2


@pytest.mark.parametrize("name", ["localhost", "slow.invalid"])
async def test_that_a_host_has_no_address_is_believed_for_a_moment_only(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, results = [100.0], [[], [(0, 0, 0, "", ("192.0.2.1", 80))]]

    async def resolve(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        clock[0] += 3
        if found := results.pop(0):
            return found
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    host = host_of(f"http://{name}")
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: clock[0])
        assert await host.addresses() == []
        clock[0] += readiness.ADDRESSES_KEPT_S
        assert await host.addresses() == [("192.0.2.1", 80)]


async def test_a_host_that_can_have_no_address_is_an_error() -> None:
    with pytest.raises(StartError, match=r"cannot resolve the host of http://a\.\.b:80/health: .*; correct"):
        await ready(model(proxy="http://a..b"), Unit())


def resolving(name: str, *results: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loop find one host at the given addresses, the last one from then on; None is no address."""
    left = list(results)

    async def resolve(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        assert host == name  # never ask the machine's resolver
        address = left.pop(0) if len(left) > 1 else left[0]
        if address is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, 1, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)


@pytest.mark.parametrize("first", [None, "127.0.0.2"])
async def test_a_host_is_looked_up_again_as_a_container_has_its_name_once_it_runs(
    first: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "ADDRESSES_KEPT_S", 0.05)
    async with serving(OK) as server:
        with monkeypatch.context() as patch:
            resolving("vllm", first, first, "127.0.0.1", monkeypatch=patch)
            await ready(model(proxy=f"http://vllm:{server.port}"), Unit())
    assert f"\r\nHost: vllm:{server.port}\r\n" in server.heads[0]


async def test_a_host_without_an_address_is_told_at_once_and_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cause = "cannot resolve the host of http://nowhere.invalid:80/health: .*; correct the model's proxy"
    with monkeypatch.context() as patch:
        resolving("nowhere.invalid", None, monkeypatch=patch)
        with pytest.raises(StartError, match=f"health check timed out after 1s; {cause}"):
            await ready(model(proxy="http://nowhere.invalid", health_check_timeout=1), Unit())
    assert [bool(re.search(cause, record.getMessage())) for record in caplog.records] == [True]


async def test_a_server_without_tls_is_not_ready_under_https() -> None:
    async with serving(OK) as server:
        with pytest.raises(StartError, match="timed out after 1s"):
            await ready(model(proxy=f"https://127.0.0.1:{server.port}", health_check_timeout=1), Unit())


# ---- greeting


@pytest.mark.parametrize("answer", [OK, status(404), b"nonsense"])
async def test_a_greeting_is_a_get_of_the_root_below_the_proxy_whatever_the_answer(answer: bytes) -> None:
    async with serving(answer) as server:
        await greet(model(proxy=f"http://127.0.0.1:{server.port}/base"))
    assert server.heads[0].startswith("GET /base/ HTTP/1.1\r\n")


async def test_a_greeting_that_is_not_answered_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "GREETING_LIMIT_S", 0.05)
    async with serving(HANG) as server:
        await greet(model(server.port))
        await server.left.wait()


async def test_nobody_need_be_there_for_a_greeting() -> None:
    await greet(model(port=1))
    await greet(model(proxy="http://no..where:1"))


# ---- bounds


def let_pass(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every time limit that ends within this time end now, all in one turn of the loop."""
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + seconds)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 O"], ids=["nothing", "half a status line"])
async def test_a_probe_that_hangs_is_given_up(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FIRST_PROBE_LIMIT_S", 0.05)
    async with serving(Hang(said), Hang(said), OK) as server:
        await ready(model(server.port), Unit())
        await server.left.wait()
    assert len(server.heads) == 3


async def test_a_slow_server_gets_more_time_with_every_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FIRST_PROBE_LIMIT_S", 0.02)
    async with serving(OK, delay_s=0.2) as server:
        await ready(model(server.port), Unit())


async def test_the_time_of_a_probe_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FIRST_PROBE_LIMIT_S", 0.001)
    monkeypatch.setattr(readiness, "LONGEST_PROBE_LIMIT_S", 0.002)
    async with serving(*[HANG] * 20, OK) as server:  # 0.001 * 2 ** 20 would be 17 minutes
        await ready(model(server.port), Unit())


async def test_the_pause_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FIRST_PAUSES_FOR_S", 0.0)
    monkeypatch.setattr(readiness, "PAUSE_GROWTH", FOREVER_S)
    async with serving(*[status(503)] * 5, OK) as server:
        await ready(model(server.port), Unit())


@pytest.mark.parametrize("answer", [HANG, status(503)], ids=["hangs", "loads"])
async def test_the_health_check_ends_in_time_whatever_the_server_does(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_still(monkeypatch)
    unit = Unit()
    unit.write("loading tensors")
    async with serving(answer) as server:
        waiting = asyncio.create_task(ready(model(server.port), unit))
        await server.probed.wait()
        let_pass(15, monkeypatch)
        with pytest.raises(StartError) as failure:
            await waiting
    assert str(failure.value) == (
        "unspecific error: health check timed out after 15s; last lines of its log:\n  loading tensors"
    )


async def test_a_probe_and_the_health_check_may_run_out_of_time_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(HANG) as server:
        waiting = asyncio.create_task(ready(model(server.port), Unit()))
        await server.probed.wait()
        let_pass(15, monkeypatch)
        with pytest.raises(StartError, match="health check timed out after 15s"):
            await waiting


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (15, "15s"), (60, "1m0s"), (120, "2m0s"), (3599, "59m59s"), (3600, "1h0m0s"), (90061, "25h1m1s")],
)
def test_durations_are_written_as_go_does(seconds: int, text: str) -> None:
    assert go_duration(seconds) == text


# ---- the unit


@pytest.mark.parametrize("answer", [HANG, status(503)], ids=["during a probe", "during a pause"])
async def test_a_unit_that_ends_ends_the_wait_with_its_result_and_log(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_still(monkeypatch)
    unit = Unit()
    for n in range(12):
        unit.write(f"line {n}")
    async with serving(answer) as server:
        waiting = asyncio.create_task(ready(model(server.port, health_check_timeout=FOREVER_S), unit))
        await server.probed.wait()
        unit.ended.set_result(UnitResult("oom-kill", 2, 9))
        with pytest.raises(StartError, match="upstream command exited prematurely: killed by SIGKILL") as failure:
            await waiting
    assert failure.value.log == tuple(f"line {n}" for n in range(2, 12))


@pytest.mark.parametrize("check", ["/health", "none"])
async def test_a_unit_that_has_ended_is_not_ready_whoever_answers(check: str) -> None:
    unit = Unit()
    unit.ended.set_result(UnitResult("exit-code", 1, 3))
    async with serving(OK) as server:
        with pytest.raises(StartError, match=r"upstream command exited prematurely: exit status 3 \(exit-code\)$"):
            await ready(model(server.port, check_endpoint=check), unit)


@pytest.mark.parametrize("answer", [OK, status(503)], ids=["ready", "loading"])
async def test_a_stranger_on_the_port_is_an_error_and_never_ready(answer: bytes) -> None:
    unit = Unit()
    unit.holder = "process 4711 (python3) of unit other.service"
    unit.write("cannot bind")
    async with serving(answer) as server:
        with pytest.raises(StartError) as failure:
            await ready(model(server.port), unit)
    assert str(failure.value) == (
        f"unspecific error: port {server.port} of proxy http://127.0.0.1:{server.port} answers, but it belongs to "
        "process 4711 (python3) of unit other.service; stop that program or give this model another port"
        "; last lines of its log:\n  cannot bind"
    )


async def test_a_port_that_the_command_does_not_name_is_anybodys() -> None:
    unit = Unit()
    unit.holder = "process 4711 (python3) of unit other.service"
    async with serving(OK) as server:
        await ready(model(server.port, cmd=f"tunnel {server.port}9"), unit)


async def test_who_owns_the_port_is_asked_once_and_at_the_first_answer() -> None:
    unit = Unit()
    async with serving(b"", status(503), status(503), OK) as server:
        await ready(model(server.port), unit)
    assert unit.asked_ports == [server.port]


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("localhost", True), ("127.0.0.2", True), ("[::1]", True), ("0.0.0.0", True), ("[::]", True), ("10.0.0.1", False)],
)
def test_only_ports_of_this_machine_are_asked_for_their_owner(host: str, is_local: bool) -> None:
    where = endpoint(model(proxy=f"http://{host}:80"))
    assert where is not None
    assert where.is_local == is_local


@pytest.mark.parametrize("answer", [HANG, status(503)], ids=["during a probe", "during a pause"])
async def test_nothing_is_left_of_a_wait_that_is_cancelled(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_still(monkeypatch)
    unit = Unit()
    async with serving(answer) as server:
        waiting = asyncio.create_task(ready(model(server.port, ready_log="listening"), unit))
        await server.probed.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if answer == HANG:
            await server.left.wait()


# ---- hints


def hold_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses and probes so long that nothing but a hint brings the next probe about."""
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S", "FIRST_PROBE_LIMIT_S", "LONGEST_PROBE_LIMIT_S"):
        monkeypatch.setattr(readiness, name, FOREVER_S)


@pytest.mark.parametrize("answer", [HANG, status(503)], ids=["during a probe", "during a pause"])
@pytest.mark.parametrize(
    "give_hint",
    [lambda unit: unit.notified.set(), lambda unit: unit.write("now listening on 1")],
    ids=["notified", "log line"],
)
async def test_a_hint_causes_a_probe_at_once(
    answer: Answer, give_hint: Callable[[Unit], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_still(monkeypatch)
    unit = Unit()
    async with serving(answer, OK) as server:
        waiting = asyncio.create_task(ready(model(server.port, ready_log="listening on [0-9]"), unit))
        await server.probed.wait()
        unit.write("loading, then listening on a port")
        give_hint(unit)
        await waiting
    assert len(server.heads) == 2


async def test_every_notification_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    hold_still(monkeypatch)
    unit = Unit()
    async with serving(*[status(503)] * 4, OK) as server:
        waiting = asyncio.create_task(ready(model(server.port), unit))
        for n in range(1, 5):
            await server.probed.wait()
            server.probed.clear()
            assert len(server.heads) == n
            unit.notified.set()
        await waiting


async def test_a_hint_alone_does_not_make_a_model_ready() -> None:
    unit = Unit()
    unit.notified.set()
    unit.write("listening")
    async with serving(status(503)) as server:
        with pytest.raises(StartError, match="health check timed out"):
            await ready(model(server.port, ready_log="listening", health_check_timeout=1), unit)


# ---- without an endpoint


@pytest.mark.parametrize("spelling", ["none", "None", " NONE "])
async def test_without_an_endpoint_a_model_is_ready_at_once(spelling: str) -> None:
    unit = Unit()
    await ready(model(check_endpoint=spelling), unit)
    assert unit.asked_ports == []


async def test_without_an_endpoint_a_model_is_ready_after_its_line() -> None:
    unit = Unit()
    waiting = asyncio.create_task(ready(model(check_endpoint="none", ready_log="^ready"), unit))
    unit.write("not ready")
    await unit.was_read.wait()
    assert not waiting.done()
    unit.write("ready")
    await waiting


async def test_without_an_endpoint_the_line_has_the_same_time() -> None:
    with pytest.raises(StartError, match="health check timed out after 0s"):
        await ready(model(check_endpoint="none", ready_log="ready", health_check_timeout=0), Unit())


# ---- where to probe


@pytest.mark.parametrize(
    ("proxy", "check", "url"),
    [
        ("http://localhost:5800", "/health", "http://localhost:5800/health"),
        ("http://localhost:5800", "health", "http://localhost:5800/health"),
        ("http://localhost:5800/", " /health ", "http://localhost:5800/health"),
        ("http://localhost:5800", "", "http://localhost:5800/"),
        ("http://localhost:5800/base/", "/health", "http://localhost:5800/base/health"),
        ("http://localhost:5800/base", "/a/b?c=d&e", "http://localhost:5800/base/a/b?c=d&e"),
        ("http://localhost:5800/base", "http://other:1/up?x=1", "http://localhost:5800/base/up?x=1"),
        ("http://models", "/health", "http://models:80/health"),
        ("https://models", "/health", "https://models:443/health"),
        ("http://[::1]:5800", "/health", "http://[::1]:5800/health"),
    ],
)
def test_the_endpoint_is_joined_to_the_proxy_like_a_request(proxy: str, check: str, url: str) -> None:
    where = endpoint(model(proxy=proxy, check_endpoint=check))
    assert where is not None
    assert where.url == url
