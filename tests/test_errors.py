import pytest

from sidecar.errors import DownloadError, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://alice:hush@host:9/x cannot", "http://***@host:9/x cannot"),
        ("'https://alice:hu@sh@[::1]:9'", "'https://***@[::1]:9'"),
        ("http://token@host", "http://***@host"),
        ("Invalid endpoint: alice:hush@127.0.0.1:9", "Invalid endpoint: ***@127.0.0.1:9"),
        ("proxy=alice:hush@proxy.example:3128, socks5h://a:b@c", "***@proxy.example:3128, socks5h://***@c"),
        ("s3://bucket/prefix and http://host/path?a=b@c", "s3://bucket/prefix and http://host/path?a=b@c"),
        ("model 'tiny': acme/tiny@0123456789ab model.onnx", "model 'tiny': acme/tiny@0123456789ab model.onnx"),
        ("mail somebody@example.org at 12:30:05", "mail somebody@example.org at 12:30:05"),
    ],
)
def test_an_address_is_shown_without_its_credentials(text: str, shown: str) -> None:
    assert redact(text) == shown
    error = DownloadError(text)
    assert error.message == shown and str(error) == shown
