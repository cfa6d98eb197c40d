"""A model server that is listening within milliseconds and answers with what it was given.

usage: python -I -S mirror.py PORT [--health=STATUS,...] [WORD...]

Answers `…health…` with each STATUS in turn, then with 200; anything else with JSON: its arguments, environment,
directory and ids, the request's line, headers (names in lower case) and body, how many requests it has served, and how
it answered the health checks. JSON bodies may ask for more: `"until": FILE` has the answer wait until the file exists,
`"die": true` ends the server instead. A request to upgrade gets a 101, and then its own bytes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time

port, *words = sys.argv[1:]
statuses = [int(each) for word in words if word.startswith("--health=") for each in word[9:].split(",")]
probes: list[str] = []
served = 0


def serve(client: socket.socket) -> None:
    global served
    with client, client.makefile("rb") as reader:
        line = reader.readline().decode("latin-1").strip()
        headers = {}
        while (header := reader.readline().decode("latin-1").strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        if not line:
            return
        if "health" in line:
            status = statuses.pop(0) if statuses else 200
            probes.append(f"{line.rpartition(' ')[0]} {status}")
            answer(client, status, {})
            return
        served += 1
        if "upgrade" in headers:
            client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            while data := client.recv(65536):
                client.sendall(data)
            return
        body = reader.read(int(headers.get("content-length", 0)))
        obey(body)
        facts = {"argv": words, "env": dict(os.environ), "cwd": os.getcwd(), "stdin": os.readlink("/proc/self/fd/0")}
        ids = {"pid": os.getpid(), "group": os.getpgid(0), "port": int(port)}
        request = {"line": line, "headers": headers, "body": body.decode("latin-1")}
        answer(client, 200, {**facts, **ids, **request, "served": served, "probes": probes})


def obey(body: bytes) -> None:
    try:
        wishes = json.loads(body)
    except ValueError:
        return
    if not isinstance(wishes, dict):
        return
    if wishes.get("die"):
        os._exit(9)
    while wishes.get("until") and not os.path.exists(str(wishes["until"])):
        time.sleep(0.005)


def answer(client: socket.socket, status: int, value: object) -> None:
    body = b"" if status == 204 else json.dumps(value).encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nLocation: /ok\r\nConnection: close\r\n"
    client.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def take(client: socket.socket) -> None:
    with contextlib.suppress(OSError):  # whoever asked has left
        serve(client)


with socket.create_server(("127.0.0.1", int(port)), backlog=1024) as server:
    while True:
        threading.Thread(target=take, args=(server.accept()[0],), daemon=True).start()
