"""A model server that is ready at once: a bare socket, so that `python -I -S` has it listening within milliseconds.

usage: instant.py PORT [WAIT_S]

With WAIT_S it listens at once and answers 503 until then, and prints the moment (CLOCK_MONOTONIC) of its first 200.
"""

import socket
import sys
import time

port, wait_s = int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
ready_at = time.monotonic() + wait_s
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", port))
server.listen(128)
while True:
    client, _ = server.accept()
    client.recv(65536)
    body = b'{"ready_at": %f}' % ready_at
    status = b"200 OK" if time.monotonic() >= ready_at else b"503 Service Unavailable"
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    client.sendall(head % (status, len(body)) + body)
    client.close()
