from __future__ import annotations

import asyncio
import json
import time

import pytest
from fake_model import OK, Call, LeasingEngine, chat, fixed, house_of, last, until
from standins import Client, house, model

from llamaswapd.core.lifecycle import State
from llamaswapd.errors import CrashLoop, StartError
from llamaswapd.http import body as body_module
from llamaswapd.http import server as server_module


async def read_all(client: Client) -> bytes:
    """Everything up to the end of the connection; a reset ends it as well."""
    data = b""
    try:
        while piece := await client.reader.read(65536):
            data += piece
    except ConnectionResetError:
        data += b"<reset>"
    return data


# ---- finding the model and rewriting


async def test_a_chat_request_reaches_the_model_it_names_byte_for_byte() -> None:
    question = b'{ "model" : "m",  "n":1e0 }'
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(question))
        answer = await client.answer()
    assert (answer.status, answer.body) == (200, b"ok")
    assert (server.calls[0].request_line, server.calls[0].body) == ("POST /v1/chat/completions HTTP/1.1", question)


async def test_a_name_that_stands_at_the_end_of_a_large_body_is_found() -> None:
    question = b'{"pad":"' + b"x" * 12_000_000 + b'","model":"m"}'
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(question))
        assert (await client.answer()).status == 200
    assert server.calls[0].body == question


async def test_a_get_names_its_model_in_the_query_which_is_kept() -> None:
    async with house_of(fixed(OK)) as (it, server):
        assert (await it.ask("/props?a=%2F&model=m")).body == b"ok"
    assert server.calls[0].request_line == "GET /props?a=%2F&model=m HTTP/1.1"
    assert "content-length" not in server.calls[0].headers


async def test_prefixes_of_ours_are_not_forwarded_and_the_proxys_own_is_added() -> None:
    engine_settings = {"proxy": ""}
    async with house_of(fixed(OK)) as (it, server):
        engine_settings["proxy"] = server.url + "/base/"
        it.engine.config.models["m"].__dict__.update(engine_settings)
        for path in ("/v/embeddings", "/audioapi/v1/tasks/run", "/v1/rerank"):
            client = await it.connect()
            client.writer.write(chat(path=path))
            assert (await client.answer()).status == 200
    paths = [call.request_line.split()[1] for call in server.calls]
    assert paths == ["/base/embeddings", "/base/v1/tasks/run", "/base/v1/rerank"]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (b'{"model":"nobody"}', 'no router for requested model: "nobody" is not configured'),
        (b'{"messages":[]}', "no model id could be identified"),
        (b"not json", "no model id could be identified"),
        (b"", "no model id could be identified"),
    ],
)
async def test_a_request_without_a_known_model_is_a_404(question: bytes, message: str) -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(question) + chat())
        answer = await client.answer()
        assert answer.status == 404
        assert answer.json()["error"]["message"].startswith(message)
        assert (await client.answer()).body == b"ok"  # and the connection goes on
    assert len(server.calls) == 1


async def test_filters_change_a_json_body_and_its_length() -> None:
    async with house_of(fixed(OK), use_model_name="real") as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m","x":[1, 2]}'))
        assert (await client.answer()).status == 200
    assert server.calls[0].body == b'{"model":"real","x":[1, 2]}'


@pytest.mark.parametrize("audio_bytes", [10, 12_000_000])
async def test_a_form_gets_the_models_own_name_and_keeps_the_rest(audio_bytes: int) -> None:
    audio = b"\0\r\n" * (audio_bytes // 3)
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + audio + b"\r\n"
    field = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
    tail = b'--b\r\nContent-Disposition: form-data; name="z"\r\n\r\nlast\r\n--b--\r\n'
    async with house_of(fixed(OK), use_model_name="whisper-large") as (it, server):
        client = await it.connect()
        form = file + field % b"m" + tail
        await client.send(
            "/v1/audio/transcriptions",
            "Content-Type: multipart/form-data; boundary=b",
            f"Content-Length: {len(form)}",
            method="POST",
        )
        client.writer.write(form)
        assert (await client.answer()).status == 200
    assert server.calls[0].body == file + field % b"whisper-large" + tail


async def test_json_in_chunks_reaches_the_model_with_a_length() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        await client.send(
            "/v1/embeddings", "Content-Type: application/json", "Transfer-Encoding: chunked", method="POST"
        )
        client.writer.write(b'b\r\n{"model":"m\r\n2\r\n"}\r\n0\r\n\r\n')
        assert (await client.answer()).status == 200
    assert server.calls[0].headers["content-length"] == "13"
    assert server.calls[0].body == b'{"model":"m"}'


@pytest.mark.parametrize(
    ("target", "forwarded"), [("/v1/embeddings?a=%2F", "/v1/embeddings?a=%2F"), ("/upstream/m/x%20y?a", "/x%20y?a")]
)
async def test_a_target_that_is_a_whole_url_reaches_the_model_as_a_path(target: str, forwarded: str) -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(path=f"http://models:8080{target}"))
        assert (await client.answer()).status == 200
    assert server.calls[0].request_line == f"POST {forwarded} HTTP/1.1"


async def test_another_body_in_chunks_is_passed_on_in_chunks() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        await client.send("/upstream/m/put", "Transfer-Encoding: chunked", method="PUT")
        client.writer.write(b"5\r\nhello\r\n")
        await until(lambda: bool(server.calls))
        client.writer.write(b"1\r\n!\r\n0\r\n\r\n")
        assert (await client.answer()).status == 200
    assert server.calls[0].headers["transfer-encoding"] == "chunked"
    assert server.calls[0].body == b"hello!"


# ---- headers


async def test_the_model_sees_the_clients_headers_without_what_is_of_one_connection() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        dropped = (
            "Connection: keep-alive, X-Hop, Host",
            "X-Hop: 1",
            "Keep-Alive: 5",
            "TE: gzip",
            "Proxy-Authorization: x",
        )
        kept = ("X-Trace: a  b", "Cookie: c=1", "Authorization: Bearer theirs", "accept-ENCODING: gzip")
        client.writer.write(chat(b'{"model":"m"}', *dropped, *kept, "X-Forwarded-For: 10.0.0.9"))
        assert (await client.answer()).status == 200
    assert server.calls[0].lines == [
        "Host: models",
        "Content-Type: application/json",
        *kept,
        "X-Forwarded-For: 10.0.0.9, 127.0.0.1",
        "Content-Length: 13",
    ]


async def test_the_model_is_told_that_trailers_are_welcome() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', "TE: deflate, Trailers"))
        assert (await client.answer()).status == 200
    assert server.calls[0].headers["te"] == "trailers"


async def test_a_request_for_two_hosts_is_none() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', "Host: other"))
        assert (await client.answer()).status == 400
    assert not server.calls


@pytest.mark.parametrize("header", ["Authorization: Bearer k1", "Authorization: Basic dTprMQ==", "x-api-key: k1"])
async def test_a_header_that_carries_one_of_our_keys_stays_here(header: str) -> None:
    async with house_of(fixed(OK), {"api_keys": ("k0", "k1")}) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', header))
        assert (await client.answer()).status == 200
    assert not {"authorization", "x-api-key"} & set(server.calls[0].headers)


async def test_a_key_that_is_not_ours_is_the_models() -> None:
    async with house_of(fixed(OK), {"api_keys": ("k1",)}) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', "Authorization: Bearer k1", "x-api-key: theirs"))
        assert (await client.answer()).status == 200
    assert server.calls[0].headers["x-api-key"] == "theirs"
    assert "authorization" not in server.calls[0].headers


async def test_the_client_sees_the_models_headers_without_what_is_of_one_connection() -> None:
    head = "HTTP/1.1 201 Made\r\nServer: s\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nSet-Cookie: a\r\n"
    async with house_of(fixed(head.encode() + b"Set-Cookie: b\r\nContent-Length: 1\r\n\r\n.")) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        raw = await client.reader.readuntil(b"\r\n\r\n")
    assert raw == b"HTTP/1.1 201 Made\r\nServer: s\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 1\r\n\r\n"


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 13"))
        assert (await client.head()).status == 100
        client.writer.write(b'{"model":"m"}')
        assert (await client.answer()).status == 200
    assert "expect" not in server.calls[0].headers


# ---- waiting for the model


async def test_a_request_waits_for_its_model_and_is_then_sent_whole() -> None:
    question = b'{"model":"m","pad":"' + b"x" * 12_000_000 + b'"}'
    async with house_of(fixed(OK)) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(question))
        await it.engine.waited.wait()
        assert not server.calls
        it.engine.ready.set()
        assert (await client.answer()).status == 200
    assert server.calls[0].body == question


async def test_a_client_that_leaves_while_it_waits_gives_its_lease_back() -> None:
    async with house_of(fixed(OK)) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat())
        await it.engine.waited.wait()
        assert it.engine.leases == 1
        client.close()
        await until(lambda: it.engine.leases == 0)
    assert not server.calls


async def test_a_model_that_cannot_start_is_an_error_answer() -> None:
    async with house_of(fixed(OK)) as (it, _):
        it.engine.failure = StartError("upstream command exited prematurely")
        client = await it.connect()
        client.writer.write(chat())
        answer = await client.answer()
    assert answer.status == 500
    assert answer.json()["error"]["message"] == "unspecific error: upstream command exited prematurely"
    assert answer.headers["x-should-retry"] == "false"


STREAMING = b'{"model":"m","stream":true}'


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


async def test_a_chat_client_sees_its_model_loading_and_then_the_models_own_stream() -> None:
    sse = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with house_of(fixed(sse + b"8\r\ndata: 1\n\r\n1\r\n\n\r\n0\r\n\r\n"), send_loading_state=True) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(STREAMING) + chat())
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        text = await client.text_until("loading model: m")
        text += await client.text_until('"."')  # progress without being asked for
        it.engine.ready.set()
        while chunk := await client.chunk():
            text += chunk.decode()
        assert (await client.head()).status == 200  # the connection goes on with the next request
    *shown, last_event = events(text)
    assert "Done! (" in json.loads(shown[-1])["choices"][0]["delta"]["reasoning_content"]
    assert last_event == "1"


@pytest.mark.parametrize(
    ("of_usual", "state", "shown"),
    [(0.5, State.STARTING, " 50 % (about "), (0.5, State.STOPPED, "."), (2.0, State.STARTING, ".")],
)
async def test_progress_is_told_in_percent_while_a_load_takes_no_longer_than_usual(
    of_usual: float, state: State, shown: str
) -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}) as (it, _):
        it.engine.expected_load_s = lambda _: time.time() / of_usual  # type: ignore[method-assign]
        it.engine.become("m", state)  # since 1970
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(STREAMING))
        await client.head()
        await client.chunk()
        (event,) = events((await client.chunk()).decode())
        assert json.loads(event)["choices"][0]["delta"]["reasoning_content"].startswith(shown)
        it.engine.ready.set()
        while await client.chunk():
            pass


async def test_a_place_in_the_queue_is_told_when_it_changes() -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}) as (it, _):
        it.engine.position = 2
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(STREAMING))
        await client.head()
        text = await client.text_until("Queue position: #2 ")
        it.engine.position = 1
        text += await client.text_until("Queue position: #1 ")
        assert text.count("Queue position") == 2
        it.engine.ready.set()
        while await client.chunk():
            pass


async def test_a_model_that_fails_behind_a_loading_stream_is_an_event_in_it() -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}) as (it, _):
        it.engine.failure = StartError("health check timed out after 15s")
        client = await it.connect()
        client.writer.write(chat(STREAMING))
        assert (await client.head()).status == 200
        text = ""
        while chunk := await client.chunk():
            text += chunk.decode()
    error = json.loads(events(text)[-1])["error"]
    assert (error["message"], error["code"]) == ("unspecific error: health check timed out after 15s", "internal_error")


@pytest.mark.parametrize(
    ("question", "path", "own"),
    [
        (b'{"model":"m"}', "/v1/chat/completions", True),
        (STREAMING, "/v1/completions", True),
        (STREAMING, "/v/chat/completions", True),
        (STREAMING, "/v1/chat/completions", False),
    ],
)
async def test_others_hear_nothing_until_the_model_answers(question: bytes, path: str, own: bool) -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}, send_loading_state=own) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(question, path=path))
        await it.engine.waited.wait()
        it.engine.ready.set()
        assert (await client.answer()).body == b"ok"


# ---- what goes wrong


async def test_a_model_that_refuses_the_connection_is_a_502() -> None:
    async with house_of(fixed(OK), proxy="http://127.0.0.1:1") as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        answer = await client.answer()
    assert answer.status == 502
    message = answer.json()["error"]["message"]
    assert message.startswith('model "m": http://127.0.0.1:1 does not take connections: ')


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\nX: y\n\n", b"HTTP/1.1 200 OK\r\nX:" + b"y" * 70000]
)
async def test_a_model_that_does_not_speak_http_is_a_502(garbage: bytes) -> None:
    async with house_of(last(garbage)) as (it, _):
        it.engine.cause = "no unit is asked: it may take a second to find that nothing has ended"
        client = await it.connect()
        client.writer.write(chat())
        answer = await client.answer()
    assert answer.status == 502
    assert "does not answer in HTTP" in answer.json()["error"]["message"]


async def test_a_model_that_ends_lines_in_its_own_way_is_not_waited_for() -> None:
    async with house_of(fixed(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok")) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        assert (await client.answer()).status == 502


async def test_a_model_that_dies_before_it_answers_is_a_502_that_says_why() -> None:
    async def die(call: Call) -> None:
        await call.read_body()
        call.reset()

    async with house_of(die) as (it, _):
        it.engine.cause = "killed by SIGKILL (oom-kill)"
        client = await it.connect()
        client.writer.write(chat())
        answer = await client.answer()
    assert answer.status == 502
    assert "killed by SIGKILL (oom-kill)" in answer.json()["error"]["message"]


SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CUT = [
    (SSE + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n", True),
    (SSE + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata:", False),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n", False),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n.", False),
    (SSE + b"Content-Length: 99\r\n\r\ndata: 1\n\n", False),
]


@pytest.mark.parametrize(("start", "tells"), CUT)
async def test_an_answer_that_breaks_off_has_no_clean_end(start: bytes, tells: bool) -> None:
    async with house_of(last(start)) as (it, _):
        it.engine.cause = "killed by SIGKILL (oom-kill)"
        client = await it.connect()
        client.writer.write(chat())
        data = await read_all(client)
    body = data.partition(b"\r\n\r\n")[2]
    assert body.startswith(start.partition(b"\r\n\r\n")[2])
    assert not data.endswith(b"0\r\n\r\n")
    assert (b"SIGKILL (oom-kill)" in data) == tells
    if tells:
        (event,) = [line for line in body.split(b"\n") if line.startswith(b"data: {")]
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "bad_gateway"


async def test_an_answer_until_the_end_of_the_connection_is_reset_when_the_model_is() -> None:
    async def die(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await seen.wait()
        call.reset()

    seen = asyncio.Event()
    async with house_of(die) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.reader.readuntil(b"some")
        seen.set()
        assert await read_all(client) == b"<reset>"


async def test_a_kept_connection_that_the_model_has_closed_is_not_noticed() -> None:
    async def answer(call: Call) -> None:
        if call.connection == 1 and len(server.calls) == 2:
            call.reset()  # the model's idle limit, in the very moment of the next request
            return
        await fixed(OK)(call)

    async with house_of(answer) as (it, server):
        client = await it.connect()
        for _ in range(2):
            client.writer.write(chat())
            assert (await client.answer()).body == b"ok"
    assert [call.connection for call in server.calls] == [1, 1, 2]


async def test_a_request_is_sent_again_only_once_and_only_while_nothing_came() -> None:
    async def answer(call: Call) -> None:
        await call.read_body()
        if len(server.calls) == 1:
            await call.send(OK)
            return
        await call.send(b"HTTP/1.1 200")
        call.reset()

    async with house_of(answer) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        assert (await client.answer()).body == b"ok"
        client.writer.write(chat())
        assert (await client.answer()).status == 502
    assert len(server.calls) == 2


async def test_a_body_that_never_ends_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(server_module, "LOOK_EVERY_S", 0.01)
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(chat(b'{"mod').replace(b"Length: 5", b"Length: 50"))
        answer = await client.answer()
    assert (answer.status, answer.json()["error"]["type"]) == (408, "invalid_request_error")


async def test_a_streamed_body_that_never_ends_gives_the_model_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(server_module, "LOOK_EVERY_S", 0.01)
    left = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.left()
        left.set()

    async with house_of(answer) as (it, _):
        client = await it.connect()
        client.writer.write(chat().replace(b"Length: 13", b"Length: 50"))
        assert (await client.answer()).status == 408
        await left.wait()


# ---- /upstream


async def test_upstream_passes_anything_on_to_the_model_in_the_path() -> None:
    async with house_of(fixed(OK)) as (it, server):
        answer = await it.ask("/upstream/m/a%2Fb/?x=%20&y", "Content-Length: 0", method="DELETE")
        assert answer.body == b"ok"
    assert server.calls[0].request_line == "DELETE /a%2Fb/?x=%20&y HTTP/1.1"


@pytest.mark.parametrize(("method", "status"), [("GET", 301), ("HEAD", 301), ("POST", 308)])
async def test_a_bare_upstream_model_redirects_to_its_root(method: str, status: int) -> None:
    async with house_of(fixed(OK)) as (it, _):
        answer = await it.ask("/upstream/m?a=1", method=method)
    assert (answer.status, answer.headers["location"]) == (status, "/upstream/m/?a=1")


async def test_upstream_knows_only_configured_models() -> None:
    async with house_of(fixed(OK)) as (it, _):
        answer = await it.ask("/upstream/nobody/")
    assert (answer.status, answer.json()["error"]["message"]) == (404, "model not found")


async def test_upstream_finds_names_with_slashes_escaped_or_not() -> None:
    async with house_of(fixed(OK), aliases=("author/x",)) as (it, server):
        for target in ("/upstream/author/x/p", "/upstream/author%2Fx/p"):
            assert (await it.ask(target)).body == b"ok"
    assert [call.request_line for call in server.calls] == ["GET /p HTTP/1.1"] * 2


# ---- observers


async def test_a_request_is_in_flight_until_its_answer_has_ended() -> None:
    proceed = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        await call.send(OK[:-1])
        await proceed.wait()
        await call.send(OK[-1:])

    async with house_of(answer) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.reader.readuntil(b"\r\n\r\no")
        (entry,) = it.observer.inflight.snapshot().data["requests"]  # type: ignore[index]
        proceed.set()
        await client.reader.readexactly(1)
    assert (entry["model"], entry["resp_bytes"], entry["resp_headers"]) == ("m", 1, {"Content-Length": "2"})


async def test_other_models_are_served_while_one_loads() -> None:
    engine = LeasingEngine(model("m"))
    engine.ready.clear()
    async with house(engine) as it:
        client = await it.connect()
        client.writer.write(chat())
        await engine.waited.wait()
        assert (await it.ask("/health")).status == 200


# ---- a model that keeps dying


def looping() -> CrashLoop:
    return CrashLoop("m", 4, StartError("exit status 3", ["out of memory"]), 2.4)


async def test_a_model_that_keeps_dying_is_503_and_says_when_to_come_again(way: str) -> None:
    async with house_of(fixed(OK)) as (it, _):
        it.engine.failure = looping()
        client = await it.connect()
        client.writer.write(chat())
        answer = await client.answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "3")
    assert "x-should-retry" not in answer.headers
    error = answer.json()["error"]
    assert (error["message"], error["code"]) == (str(looping()), "service_unavailable")


async def test_a_model_that_keeps_dying_is_an_event_behind_a_loading_stream() -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}) as (it, _):
        it.engine.failure = looping()
        client = await it.connect()
        client.writer.write(chat(STREAMING))
        assert (await client.head()).status == 200
        text = ""
        while chunk := await client.chunk():
            text += chunk.decode()
    assert json.loads(events(text)[-1])["error"]["message"] == str(looping())


@pytest.mark.parametrize(
    ("target", "method", "is_load"),
    [
        ("/upstream/m/", "GET", True),
        ("/upstream/al%69as/?_=1", "GET", True),
        ("/upstream/m/", "POST", False),
        ("/upstream/m/", "HEAD", False),
        ("/upstream/m/v1/models", "GET", False),
        ("/upstream/m", "GET", False),
    ],
)
async def test_only_the_front_page_of_a_model_is_an_order_to_load_it(target: str, method: str, is_load: bool) -> None:
    async with house_of(fixed(OK), aliases=("alias",)) as (it, _):
        await it.ask(target, "Content-Length: 0", method=method)
        assert it.engine.forgiven == (["m"] if is_load else [])
