from __future__ import annotations
import asyncio, base64, gc, logging, sys
import pytest
from fake_model import OK, Call, chat, fixed, house_of, last, until
from standins import model
from llamaswapd.errors import StartError
from llamaswapd.http import express
from llamaswapd.http.express import Exchange
from llamaswapd.http.connection import Connection
from llamaswapd import observe
from test_recording import form, FORM


async def test_a_loading_stream_that_fails_capture_has_no_framing() -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}) as (it, _):
        it.engine.failure = StartError("boom")
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m","stream":true}'))
        await client.head()
        while await client.chunk():
            pass
        await until(lambda: len(it.activity.ended) == 1)
        said = base64.b64decode((await it.activity.capture(1))["resp_body"])
        print(said[:80], said[-30:])
        assert said.startswith(b"data:")


async def early(call: Call) -> None:  # answers before the body is all there
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    await asyncio.sleep(30)


async def test_a_plain_request_that_was_not_kept_is_null() -> None:
    async with house_of(fixed(OK), {"capture_buffer": 1}) as (it, _):
        budget = it.front._recorder.budget
        budget.held += budget.whole  # what a few long streams hold
        try:
            whole = chat(b'{"model":"m","x":1}')
            client = await it.connect()
            client.writer.write(whole[:-3])
            await asyncio.sleep(0.05)
            client.writer.write(whole[-3:])
            assert (await client.answer()).status == 200
        finally:
            budget.held -= budget.whole
        await until(lambda: len(it.activity.ended) == 1)
        assert it.activity.ended[0].is_plain and it.activity.ended[0].request is None
        assert (await it.activity.capture(1))["req_body"] is None


async def test_a_plain_request_from_before_a_reload_is_null() -> None:
    go = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        await go.wait()
        await call.send(OK)

    async with house_of(answer, {"capture_buffer": 0}) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        await until(lambda: bool(server.calls))
        config = it.engine.config.having(capture_buffer=1)
        it.engine.use(config)
        it.front.reconfigure(config)
        await it.activity.reconfigure(config)
        go.set()
        assert (await client.answer()).status == 200
        await until(lambda: len(it.activity.ended) == 1)
        assert (await it.activity.capture(1))["req_body"] is None


async def test_a_record_lets_go_of_a_connection_that_leaves_in_rest() -> None:
    async with house_of(early, {"capture_buffer": 0}) as (it, _):
        client = await it.connect()
        whole = chat(b'{"model":"m","x":1}')
        client.writer.write(whole[:-3])
        assert (await client.answer()).status == 200
        client.close()
        await asyncio.sleep(0.2)
        record = it.activity._store._added[0]
        assert isinstance(record, Exchange) and record.is_plain
        assert not hasattr(record, "connection")


async def test_a_plain_form_lets_go_of_its_reader() -> None:
    async with house_of(fixed(OK), {"capture_buffer": 1}) as (it, _):
        client = await it.connect()
        pad = b'\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"y" * 7000 + b"\r\n--b--\r\n"
        client.writer.write(form("/v1/rerank", FORM[:-4] + pad))
        assert (await client.answer()).status == 200
        await until(lambda: len(it.activity.ended) == 1)
        await asyncio.sleep(0.1)
        record = it.activity._store._added[0]
        assert isinstance(record, Exchange) and record.is_plain
        held = record._form and len(record._form._scanner._text)
        print("held", held)
        assert record._form is None


async def test_access_log_line_added_while_another_thread_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = observe.LogRing()
    ring.setFormatter(observe.LineFormat("rfc3339"))
    access = observe.AccessLog()
    logger = observe.log
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.INFO)
    logger.addHandler(ring)
    errors = []
    monkeypatch.setattr(ring, "handleError", lambda record: errors.append(sys.exc_info()[1]))
    late = access._entries  # what the loop's thread has read in `add` when it loses the interpreter's lock

    class Slow(observe.Access):
        def access_line(self) -> str:
            return super().access_line()

    one = observe.Access(1.0, "ip", "POST /", 200, 2, "a", 0.1)

    class Last(observe.Access):
        def access_line(self) -> str:
            return super().access_line()
    access.add(one)
    info = logger.info
    def switched(*args, **kw):
        late.append(one)  # the loop's thread goes on
        info(*args, **kw)
    monkeypatch.setattr(logger, "info", switched)
    access.flush()
    logger.removeHandler(ring)
    assert not errors, errors
    assert ring.history().count("POST") >= 1


async def test_the_newest_plain_capture_stays() -> None:
    sys.path.insert(0, "tests/activity")
    import ended
    async with ended.activity(capture_buffer=1) as it:
        for n in range(256):
            it.add(ended.plain(b"[" + b"1," * 3000 + b"1]", request=b"x" * 2000))
        rows = await it.rows()
        print(sum(r["has_capture"] for r in rows), len(rows))
        assert rows[-1]["has_capture"]


async def test_real_race() -> None:
    import threading, time
    sys.setswitchinterval(1e-6)
    ring = observe.LogRing(10**8); ring.setFormatter(observe.LineFormat("rfc3339"))
    errors = []
    ring.handleError = lambda record: errors.append(repr(sys.exc_info()[1]))
    access = observe.AccessLog()
    logger = observe.log; logger.propagate = False; logger.setLevel(logging.INFO); logger.addHandler(ring)
    one = observe.Access(1.0, "ip", "POST /", 200, 2, "a", 0.1)
    stop = False
    def work():
        while not stop:
            access.flush()
    thread = threading.Thread(target=work); thread.start()
    n = 0; end = time.monotonic() + 3
    loop = asyncio.get_running_loop()
    while time.monotonic() < end:
        access._timer = access._timer or loop.call_later(9, int)
        try: access.add(one); n += 1
        except Exception as e: errors.append("add " + repr(e))
    stop = True; thread.join(); access.flush()
    logger.removeHandler(ring)
    got = ring.history().count("POST")
    sys.setswitchinterval(0.005)
    print("added", n, "written", got, "errors", len(errors), errors[:2])
    assert not errors and got == n
