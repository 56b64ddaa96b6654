"""A real S3 server on this computer (moto's), and a line to it that can be cut."""

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

KEY_ID, SECRET = "AKIATESTKEYIDOFOURS", "a/secret+that/nobody/may/read"
REGION = "eu-central-1"


class Bucket:
    """`bucket` of a server that is ours alone."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name=REGION
        )
        self.ask("reset")  # what it holds belongs to the process, not to one server
        self.client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})

    def put(self, key: str, content: bytes, **more: Any) -> None:
        self.client.put_object(Bucket="bucket", Key=key, Body=content, **more)

    @contextmanager
    def checked_signatures(self) -> Iterator[tuple[str, str]]:
        """Every request has to be signed by this key; without it the server takes any."""
        iam: Any = boto3.client(
            "iam", endpoint_url=self.url, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name=REGION
        )
        iam.create_user(UserName="reader")
        allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        iam.close()
        self.ask("reset-auth", b"0")
        try:
            yield key["AccessKeyId"], key["SecretAccessKey"]
        finally:
            self.ask("reset-auth", b"inf")

    def ask(self, what: str, data: bytes = b"") -> None:
        """A request to the server about itself."""
        headers = {"Content-Type": "text/plain"}  # the client's default would be parsed as a form
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/{what}", data, headers)).close()


@contextmanager
def running_bucket() -> Iterator[Bucket]:
    """A server with an empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        bucket = Bucket(f"http://{host}:{port}")
        yield bucket
        bucket.client.close()
    finally:
        server.stop()


class Line:
    """Forwards connections; each of `cuts` ends one of them after so many bytes of an answer of over 64 KiB."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts: list[int] = []
        self.forwarded = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        seen = 0
        try:
            while data := source.recv(1 << 14):
                seen += len(data)
                if answers and self.cuts and seen > 1 << 16 and seen > self.cuts[0]:
                    self.cuts.pop(0)
                    break
                target.sendall(data)
                self.forwarded += len(data) if answers else 0
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if answers:
            source.close()
            target.close()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(5)
