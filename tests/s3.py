"""A real S3 server for tests, from the Python registry: it speaks HTTP and keeps its objects in
memory. It can be away for a while.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

BUCKET = "artifacts"
KEY, SECRET = "AKIAVISWEEPTESTS", "s3cr3t/of+the=tests"


class Server:
    """One server with one bucket, stopped and started at will; it keeps its port and objects."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: Any = None
        self.port = 0
        self.start()
        self.files().mkdir(BUCKET)

    @property
    def environment(self) -> dict[str, str]:
        """What tells fsspec where the server is, and who asks."""
        return {
            "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "FSSPEC_S3_KEY": KEY,
            "FSSPEC_S3_SECRET": SECRET,
        }

    def start(self) -> None:
        from moto.moto_server.werkzeug_app import MotoRequestHandler
        from werkzeug.serving import make_server

        self._server = make_server(
            "127.0.0.1", self.port, self._app, threaded=True, request_handler=MotoRequestHandler
        )
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def files(self) -> Any:
        """The bucket, as another machine sees it."""
        import s3fs

        return s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=f"http://127.0.0.1:{self.port}",
            skip_instance_cache=True,
        )


@pytest.fixture(scope="session")
def s3() -> Iterator[Server]:
    """A running server; whoever stops it starts it again."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def s3_url(s3: Server, request: pytest.FixtureRequest) -> str:
    """A folder of the bucket that no other test uses."""
    return f"s3://{BUCKET}/{abs(hash(request.node.nodeid)):x}"
