"""A model server that does what it is told: each line that it is sent is a Python expression to evaluate.

usage: obedient.py PORT          needs: the standard library

Answers with a line for each: `= ` and the repr of what came of it, or `! ` and the name of the exception. It shows what
a model can do where it runs, and what it is kept from.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import socketserver
import subprocess
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)


def libc(name: str, *arguments: object) -> int:
    """Call a function of the C library; raises OSError."""
    result: int = getattr(LIBC, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def peek(pid: int) -> int:
    """Read a few bytes of another process's memory; raises OSError, EFAULT if it may and they are not there."""

    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]

    buffer = ctypes.create_string_buffer(8)
    here, there = Vector(ctypes.addressof(buffer), 8), Vector(0x1000, 8)
    return libc("process_vm_readv", pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)


def write(path: str, text: str = "x") -> int:
    return Path(path).write_text(text)


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            try:
                answer = f"= {eval(line)!r}"
            except Exception as error:
                answer = f"! {type(error).__name__}"
            self.wfile.write(f"{answer}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


__all__ = ["mmap", "peek", "socket", "subprocess", "write"]  # for expressions

if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
