"""What stands in for NVIDIA's daemon of MPS: it is called alike, and listens at the same socket.

Each call adds a line to $STAND_IN_LOG; $STAND_IN says what goes wrong: fails, hangs, dies, stays.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

CONTROL = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]) / "control"
WRONG = os.environ.get("STAND_IN", "")


def note(event: str) -> None:
    of_cuda = {name: value for name, value in os.environ.items() if name.startswith("CUDA_")}
    with Path(os.environ["STAND_IN_LOG"]).open("a") as file:
        file.write(json.dumps([event, os.getpid(), of_cuda]) + "\n")


def start() -> None:
    note("start")
    if WRONG == "hangs":
        time.sleep(60)
    if WRONG == "fails":
        sys.exit("An instance of this daemon\nis not permitted here")
    if WRONG == "dies":
        return
    if os.fork():
        os._exit(0)
    os.setsid()
    note("daemon")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(CONTROL))
    server.listen()
    while True:
        client, _ = server.accept()
        with client:
            if client.recv(100) == b"quit" and WRONG != "stays":
                note("end")
                CONTROL.unlink()
                return


def tell(command: str) -> None:
    note(command)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(CONTROL))
        client.send(command.encode())
        client.recv(1)  # until the other end is closed
    if WRONG == "stays":
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:] == ["-d"]:
        start()
    else:
        tell(sys.stdin.read().strip())
