"""`WS /ws/asr` through the whole product, with real speech, and the ways to prove oneself on a WebSocket."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from sidecar.server import app
from sidecar.settings import Settings
from tests.product import Product, cpu_s, idle, until
from tests.prompts import hearing_s, load, plain, prompts
from tests.sound import RATE, pcm16

PIECE = 3200  # bytes: a tenth of a second


@contextmanager
def listening(product: Product, **options: Any):  # type: ignore[no-untyped-def]
    """An open socket behind its `ready`."""
    options = {"subprotocols": [f"bearer.{product.token}"], **options}
    with connect(f"ws://127.0.0.1:{product.port}/ws/asr", **options) as socket:
        ready = json.loads(socket.recv(30))
        assert ready["type"] == "ready" and ready["model"] == "pocketsphinx-en-us", ready
        yield socket


def say(socket: ClientConnection, sound: Any, piece: int = PIECE) -> None:
    data = pcm16(sound)
    for start in range(0, len(data), piece):
        socket.send(data[start : start + piece])


def rest(socket: ClientConnection) -> list[dict[str, Any]]:
    """Everything until the server closes."""
    told = []
    with suppress(ConnectionClosed):
        while True:
            told.append(json.loads(socket.recv(120)))
    return told


def quiet(seconds: float) -> Any:
    return np.zeros(int(seconds * RATE), np.float32)


@pytest.fixture(scope="module")
def speech() -> Any:
    chosen = prompts(100)
    return np.concatenate([quiet(1), load(chosen[2]), quiet(1), load(chosen[6]), quiet(1)])


def test_partials_settle_and_utterances_end_by_their_pause(product: Product, speech: Any) -> None:
    with listening(product) as socket:
        told: list[dict[str, Any]] = []
        reader = threading.Thread(target=lambda: told.extend(rest(socket)))
        reader.start()
        say(socket, speech)
        socket.send('{"type": "end"}')
        reader.join(60)
    finals = [message for message in told if message["type"] == "final"]
    assert len(finals) == 2 and told[-1]["type"] == "done"
    assert told[-1]["duration_s"] == round(len(speech) / RATE, 3), "of what was sent, not of what was heard"
    assert "password followed by the pound key" in plain(finals[0]["text"])
    assert finals[0]["start"] == pytest.approx(1.2, abs=0.4) and finals[0]["end"] < finals[1]["start"]
    assert finals[0]["language"] == "en" and finals[0]["model"] == "pocketsphinx-en-us"
    assert " ".join(word["word"] for word in finals[1]["words"]) == finals[1]["text"]
    for final in finals:
        stable = ""
        for partial in (each for each in told if each["type"] == "partial" and each["utterance"] == final["utterance"]):
            assert partial["stable"].startswith(stable) and partial["text"].startswith(partial["stable"])
            stable = partial["stable"]
        assert final["text"].startswith(stable)


def test_the_final_comes_with_the_pause_and_not_with_the_end(product: Product, speech: Any) -> None:
    with listening(product) as socket:
        say(socket, np.concatenate([speech[: len(speech) // 2], quiet(1.5)]))
        while (message := json.loads(socket.recv(60)))["type"] != "final":
            assert message["type"] == "partial"
        socket.send('{"type": "end"}')
        assert rest(socket)[-1]["type"] == "done"


def test_any_rate_and_pieces_of_any_size(product: Product, speech: Any) -> None:
    texts = []
    for rate, piece in ((RATE, 1001), (48_000, 9999), (8000, 333)):
        sound = np.interp(np.arange(0, len(speech), RATE / rate), np.arange(len(speech)), speech)
        with listening(product) as socket:
            socket.send(json.dumps({"type": "config", "sample_rate": rate, "language": "en", "min_silence_ms": 500}))
            answer = json.loads(socket.recv(10))
            assert answer["type"] == "config" and answer["sample_rate"] == rate and answer["min_silence_ms"] == 500
            say(socket, sound, piece)
            socket.send('{"type": "end"}')
            told = rest(socket)
        assert told[-1]["duration_s"] == pytest.approx(len(speech) / RATE, abs=0.05)
        texts.append(" ".join(message["text"] for message in told if message["type"] == "final"))
    assert all("followed by the pound key" in plain(text) for text in texts), texts


def test_flush_ends_an_utterance_at_once(product: Product, speech: Any) -> None:
    with listening(product) as socket:
        say(socket, speech[: int(2.5 * RATE)])
        socket.send('{"type": "flush"}')
        while (message := json.loads(socket.recv(60)))["type"] != "final":
            pass
        assert message["text"]
        say(socket, speech[int(2.5 * RATE) :])
        socket.send('{"type": "end"}')
        assert [each["type"] for each in rest(socket)][-2:] == ["final", "done"]


def test_silence_and_nothing_at_all_end_in_done(product: Product) -> None:
    for sound in (quiet(0), quiet(5)):
        with listening(product) as socket:
            say(socket, sound)
            socket.send('{"type": "end"}')
            assert [message["type"] for message in rest(socket)] == ["done"]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("no json", "JSON object"),
        ("[]", "JSON object"),
        ('{"type": "sing"}', "sing"),
        ('{"type": "config", "sample_rate": 1}', "sample_rate"),
        ('{"type": "config", "language": "xx"}', "language"),
        ('{"type": "config", "model": "nobody"}', "nobody"),
        ('{"type": "config", "keep_alive": "soon"}', "keep_alive"),
        ("[" * 100_000, "JSON object"),
        ('{"type":' * 100_000, "JSON object"),
    ],
)
def test_bad_messages_are_named_and_end_the_session(product: Product, message: str, named: str) -> None:
    with listening(product) as socket:
        socket.send(message)
        told = rest(socket)
        assert told[-1]["type"] == "error" and named in told[-1]["message"] and told[-1]["code"]
        assert "Value error" not in told[-1]["message"]
        assert socket.close_code == 1008


def test_a_model_that_is_not_here_yet_may_be_here_later(product: Product) -> None:
    with listening(product) as socket:
        socket.send('{"type": "config", "model": "whisper-base-en"}')
        assert rest(socket)[-1]["code"] == "model_unavailable" and socket.close_code == 1013


def test_a_recorder_may_have_nothing_yet(product: Product, speech: Any) -> None:
    with listening(product) as socket:
        socket.send(b"")
        socket.send('{"type": "config", "language": "auto"}')
        assert json.loads(socket.recv(10))["type"] == "config"
        for part in (b"", b"\1", b""):
            socket.send(part)
        socket.send('{"type": "end"}')
        assert [message["type"] for message in rest(socket)] == ["done"]


@pytest.mark.parametrize("model", ["pocketsphinx-en-us", "silero-vad-v6"])
def test_a_runner_that_dies_ends_no_session(product: Product, speech: Any, model: str) -> None:
    with listening(product) as socket:
        say(socket, speech[: len(speech) // 3])
        runner = until(lambda: product.runner(model), "it is loaded")
        runner.kill()
        say(socket, speech[len(speech) // 3 :])
        socket.send('{"type": "end"}')
        told = rest(socket)
    assert told[-1]["type"] == "done", told[-1]
    finals = [message["text"] for message in told if message["type"] == "final"]
    assert "password followed by the pound key" in plain(finals[0]) and len(finals) == 2


def test_config_after_sound_is_refused(product: Product) -> None:
    with listening(product) as socket:
        say(socket, quiet(0.5))
        socket.send('{"type": "config"}')
        assert rest(socket)[-1]["code"] == "invalid_input"


def test_a_language_that_no_model_knows_is_told_with_the_first_words(product: Product, speech: Any) -> None:
    with listening(product) as socket:
        socket.send('{"type": "config", "language": "de"}')
        with suppress(ConnectionClosed):  # it may be told before all is said
            say(socket, speech)
            socket.send('{"type": "end"}')
        told = rest(socket)
        assert told[-1]["type"] == "error" and "only English" in told[-1]["message"] and socket.close_code == 1008


def test_a_socket_that_closes_ends_its_work(product: Product) -> None:
    def spent_s() -> float:
        return sum(map(cpu_s, product.runners()))

    sound = np.tile(np.concatenate([load(each) for each in prompts(40)]), 4)
    utterance_s = hearing_s(product, sound[: 25 * RATE])
    before_s = spent_s()
    with listening(product) as socket:

        def send() -> None:
            with suppress(ConnectionClosed):
                say(socket, sound)

        sender = threading.Thread(target=send)
        sender.start()
        until(lambda: spent_s() > before_s + 0.5, "work")
        socket.close()
        sender.join(30)
    before_s = spent_s()
    resting = [idle(process) for process in product.runners()]
    until(lambda: all([still() for still in resting]), "the runners are idle")
    assert spent_s() < before_s + 4 * utterance_s, "two utterances under way; the rest would have been twenty"


def test_a_long_message_is_heard_piece_by_piece(product: Product, speech: Any) -> None:
    with listening(product) as socket:
        socket.send('{"type": "config", "sample_rate": 48000}')
        assert json.loads(socket.recv(10))["type"] == "config"
        sound = pcm16(np.repeat(speech, 3))
        socket.send(sound[:500_001])  # in the middle of a sample
        socket.send(sound[500_001:])
        socket.send('{"type": "end"}')
        told = rest(socket)
    finals = [message["text"] for message in told if message["type"] == "final"]
    assert len(finals) == 2 and "password followed by the pound key" in plain(finals[0])
    assert told[-1]["duration_s"] == pytest.approx(len(speech) / RATE, abs=0.001)


def test_no_pong_is_waited_for() -> None:
    """uvicorn's own patience, shortened, with an application that does not read for longer than that."""
    ended: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await asyncio.sleep(1.5)  # behind, and so not reading
        message = await receive()
        while message["type"] == "websocket.receive" and message.get("text") != "last":
            message = await receive()
        ended.append(message.get("text") or f"{message['type']} {message.get('code')}")

    config = app._uvicorn_config(application, Settings.load())
    config.ws_ping_timeout = 0.2
    if config.ws_ping_interval is not None:
        config.ws_ping_interval = 0.2
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = app._Server(config)
        serving = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        serving.start()
        try:
            with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/") as client:
                for _ in range(20):
                    client.send(bytes(PIECE))
                client.send("last")
                until(lambda: ended, "all of it is read")
        finally:
            server.should_exit = True
            serving.join(20)
    assert ended == ["last"]


def test_many_listen_side_by_side(product: Product, speech: Any) -> None:
    texts: list[str] = []

    def one() -> None:
        with listening(product) as socket:
            say(socket, speech)
            socket.send('{"type": "end"}')
            texts.append(" ".join(each["text"] for each in rest(socket) if each["type"] == "final"))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(texts) == 4 and all("pound key" in plain(text) for text in texts)


# Who may connect


def test_the_token_as_subprotocol_is_echoed(product: Product) -> None:
    with listening(product, subprotocols=["other", f"bearer.{product.token}"]) as socket:
        assert socket.subprotocol == f"bearer.{product.token}"


def test_the_token_as_header(product: Product) -> None:
    headers = {"Authorization": f"Bearer {product.token}"}
    with listening(product, subprotocols=None, additional_headers=headers) as socket:
        assert socket.subprotocol is None


def test_the_token_as_first_message(product: Product) -> None:
    with connect(f"ws://127.0.0.1:{product.port}/ws/asr") as socket:
        socket.send(json.dumps({"type": "auth", "token": product.token}))
        assert json.loads(socket.recv(30))["type"] == "ready"
        socket.send('{"type": "end"}')
        assert rest(socket)[-1]["type"] == "done"


@pytest.mark.parametrize(
    "first",
    [
        '{"type": "auth", "token": "wrong"}',
        '{"type": "auth"}',
        "[]",
        "x" * 10_000,
        b"\0\0",
        '{"type": "auth", "token": 7}',
        "[" * 4000,
    ],
    ids=range(7),
)
def test_another_first_message_is_the_last(product: Product, first: str | bytes) -> None:
    with connect(f"ws://127.0.0.1:{product.port}/ws/asr") as socket:
        socket.send(first)
        assert json.loads(socket.recv(10))["code"] == "unauthorized"
        with pytest.raises(ConnectionClosed):
            socket.recv(10)
        assert socket.close_code == 1008


@pytest.mark.parametrize(
    "options",
    [
        {"subprotocols": ["bearer.wrong"]},
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"origin": "https://evil.example"},
    ],
    ids=["subprotocol", "header", "origin"],
)
def test_a_wrong_token_or_origin_is_refused_before_anything(product: Product, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{product.port}/ws/asr", **options):
        pass


def test_without_auth_a_local_client_just_speaks(launch: Callable[..., Product]) -> None:
    product = launch("--auth", "off")
    with listening(product, subprotocols=None) as socket:
        socket.send('{"type": "end"}')
        assert rest(socket)[-1]["type"] == "done"


def test_a_stopping_server_sends_its_listeners_home(launch: Callable[..., Product]) -> None:
    product = launch()
    with listening(product) as socket:
        say(socket, quiet(0.5))
        product.call("POST", "/shutdown", b"")
        with pytest.raises(ConnectionClosed):
            while True:
                socket.recv(30)
        assert product.process.wait(20) == 0
