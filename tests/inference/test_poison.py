"""Which inputs are refused, and that nothing else is hashed on their account."""

from typing import Any

import numpy as np
import pytest

from sidecar.errors import PoisonInputError
from sidecar.inference import poison
from sidecar.inference.poison import POISON_CRASHES, PoisonLedger, fingerprint

S, A, B = (("count", "s"), ("emotion", "a"), ("emotion", "b"))


def blamed(item: Any) -> PoisonLedger:
    ledger = PoisonLedger()
    for _ in range(POISON_CRASHES):
        ledger.check("asr", item)
        ledger.accuse([("asr", item)])
    return ledger


def test_after_three_crashes_in_a_row_it_is_refused() -> None:
    sound = np.arange(100_000, dtype=np.float32)
    ledger = blamed({"samples": sound, "options": {"language": "en"}})
    same = {"samples": sound.copy(), "options": {"language": "en"}}
    with pytest.raises(PoisonInputError):
        ledger.check("asr", same)
    ledger.check("vad", same)
    for other in ({**same, "options": {"language": "de"}}, {**same, "samples": sound + 1}, sound, "text"):
        ledger.check("asr", other)
    ledger.absolve("asr", same)
    ledger.check("asr", same)


def test_only_what_has_the_size_of_a_culprit_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = blamed("text")
    hashed: list[Any] = []

    def counting(capability: str, item: Any) -> poison.Fingerprint:
        hashed.append(item)
        return fingerprint(capability, item)

    monkeypatch.setattr(poison, "fingerprint", counting)
    ledger.check("asr", np.zeros(1_000_000, np.float32))
    ledger.absolve("asr", np.zeros(1_000_000, np.float32))
    assert not hashed
    ledger.check("asr", "TEXT")
    assert hashed == ["TEXT"]


def refused(ledger: PoisonLedger, one: tuple[str, str]) -> bool:
    try:
        ledger.check(*one)
    except PoisonInputError:
        return True
    return False


def test_who_was_alone_is_to_blame_until_it_is_answered() -> None:
    ledger = PoisonLedger()
    for _ in range(POISON_CRASHES - 1):
        ledger.accuse([S])
    ledger.absolve(*S)
    ledger.accuse([S])
    assert not refused(ledger, S)
    for _ in range(POISON_CRASHES - 1):
        ledger.accuse([S])
    with pytest.raises(PoisonInputError):
        ledger.check(*S)


def test_of_several_who_is_left_when_the_others_have_been_answered_is_to_blame() -> None:
    ledger = PoisonLedger()
    for _ in range(POISON_CRASHES):
        assert not refused(ledger, S)
        ledger.accuse([S, A, B])
        ledger.absolve(*A)
        ledger.absolve(*B)
    assert [refused(ledger, one) for one in (S, A, B)] == [True, False, False]


def test_one_that_crashes_alone_clears_those_that_were_beside_it() -> None:
    ledger = PoisonLedger()
    for _ in range(POISON_CRASHES):
        ledger.accuse([S, A])
        ledger.accuse([A])
    assert [refused(ledger, one) for one in (S, A)] == [False, True]
    ledger.absolve(*A)
    assert not refused(ledger, S)


def test_what_nobody_can_tell_apart_is_not_refused() -> None:
    ledger = PoisonLedger()
    for _ in range(10 * POISON_CRASHES):
        ledger.accuse([S, A])
    assert not refused(ledger, S) and not refused(ledger, A)


def test_the_same_input_twice_is_one() -> None:
    ledger = PoisonLedger()
    for _ in range(POISON_CRASHES):
        ledger.accuse([A, A])
    assert refused(ledger, A)
