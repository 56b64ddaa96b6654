"""The best model of a capability cannot be loaded: the next best answers, and leaves again."""

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.load import Load
from tests.product import Product, until, write_fake


def test_nobody_is_refused_while_a_lesser_model_can_answer(launch_fake: Callable[..., Product], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    product = launch_fake(load=f"fail_while:{broken}", wait=False)
    product.wait("degraded")
    with Load(product) as load:
        until(lambda: load.answered_by("minilm"), "the next best answers")
        health = product.call("GET", "/health").json()
        assert health["status"] == "degraded" and [each["id"] for each in health["failing"]] == ["fake"]
        [told] = [line for line in health["warnings"] if line.startswith("emotion: ")]
        assert "told to fail" in told and "(minilm answers in its place)" in told
        assert "emotion" in product.call("GET", "/models/minilm").json()["active_for"]
        shown = product.call("GET", "/models/fake").json()
        assert shown["active_for"] == [] and shown["error"] and shown["breaker"]["failures"]
        pinned = product.call("POST", "/emotion/detect", {"text": "x", "model": "fake"})
        assert pinned.status == 503 and pinned.json()["code"] == "model_load_failed" and "retry-after" in pinned.headers
        until(lambda: product.call("GET", "/v2/health/ready").status == 200, "every capability is answered")
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["x"]}
        inferred = product.call("POST", "/v2/models/emotion/infer", {"inputs": [tensor]})
        assert inferred.status == 200 and inferred.json()["model_name"] == "minilm"
        broken.unlink()
        until(lambda: load.answered_by("fake"), "the best one is back", 30)
    until(lambda: product.call("GET", "/health").json()["status"] == "healthy", "nothing is wrong any more")
    assert [answer for answer in load.answers if answer[0] != 200] == []
    models = [model for _, model, _ in load.answers]
    assert models[0] == "minilm" and set(models) == {"minilm", "fake"}


def test_an_entry_that_was_mended_is_tried_at_once(launch: Callable[..., Product], tmp_path: Path) -> None:
    folder = write_fake(tmp_path / "catalogue", load="fail")
    product = launch(SIDECAR_CATALOGUE=str(folder))
    assert product.emotion("x").json()["model"] == "minilm"
    write_fake(folder)
    until(lambda: product.emotion("x").json()["model"] == "fake", "the entry is read again", 10)


@pytest.mark.parametrize("load", ["fail", "crash"])
def test_the_first_request_by_capability_or_by_a_voice_of_openai_is_answered_by_the_next_best(
    load: str, launch: Callable[..., Product], tmp_path: Path
) -> None:
    # Not preloaded: these requests are the ones that find out.
    folder = write_fake(tmp_path / "catalogue", load=load)
    speaker = (folder / "fake.toml").read_text().replace('"fake"', '"speaker"', 1).replace('"emotion"]', '"tts"]')
    for name in ("speaker", "other"):
        (folder / f"{name}.toml").write_text(speaker.replace("speaker", name), encoding="utf-8")
    product = launch(SIDECAR_CATALOGUE=str(folder), SIDECAR_PRELOAD="vad")
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["x", "y"]}
    inferred = product.call("POST", "/v2/models/emotion/infer", {"inputs": [tensor]})
    assert inferred.status == 200 and inferred.json()["model_name"] == "minilm"
    spoken = product.call("POST", "/v1/audio/speech", {"model": "tts-1", "input": "Hello.", "voice": "onyx"})
    assert spoken.status == 200 and spoken.headers["x-model"] == "espeak-ng", spoken.body
    named = product.call("POST", "/v2/models/fake/infer", {"inputs": [tensor]})
    assert named.status == 503


def test_keep_alive_of_openais_speech_and_of_a_load(product: Product) -> None:
    def left_s(model: str) -> float | None:
        found = [each for each in product.call("GET", "/api/ps").json()["models"] if each["name"] == model]
        now = datetime.now(timezone.utc)
        return (datetime.fromisoformat(found[0]["expires_at"]) - now).total_seconds() if found else None

    body = {"model": "tts-1", "input": "Hello.", "voice": "onyx", "keep_alive": "77s"}
    assert product.call("POST", "/v1/audio/speech", body).status == 200
    assert 60 < (left_s("espeak-ng") or 0) < 78
    assert product.call("POST", "/models/espeak-ng/load", {"keep_alive": "1h"}).status == 200
    assert 3000 < (left_s("espeak-ng") or 0) < 3601
    product.call("POST", "/models/espeak-ng/unload")
    assert product.call("POST", "/models/espeak-ng/load").status == 200
    assert 200 < (left_s("espeak-ng") or 0) < 301, "what was said before went with it"
    for path in ("/v1/audio/speech", "/models/espeak-ng/load", "/tts/synthesize"):
        for nonsense in ("soon", True, [5]):
            refused = product.call(
                "POST", path, body | {"text": "Hello.", "model": "espeak-ng", "voice": None, "keep_alive": nonsense}
            )
            assert refused.status in (400, 422), (path, nonsense)
    assert product.call("POST", "/models/espeak-ng/load", b"[]").status == 422
