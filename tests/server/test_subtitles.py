"""Subtitles as players read them."""

import re

from sidecar.capabilities.asr import Segment
from sidecar.server.subtitles import to_srt, to_vtt


def segment(start: float, end: float, text: str) -> Segment:
    return {
        "id": 0, "start": start, "end": end, "text": text, "avg_logprob": 0.0, "no_speech_prob": 0.0,
        "compression_ratio": 1.0, "temperature": 0.0, "seek": 0, "tokens": [],
    }  # fmt: skip


def test_hours_and_rounding() -> None:
    told = to_srt([segment(3599.9996, 3661.0504, " An hour "), segment(360_000.0, 360_001.0, "A hundred")])
    assert told == ("1\n01:00:00,000 --> 01:01:01,050\nAn hour\n\n2\n100:00:00,000 --> 100:00:01,000\nA hundred\n\n")


def test_cues_without_text_or_length_or_in_several_lines() -> None:
    segments = [segment(0, 1, " "), segment(1, 1, "no length"), segment(2, 1.5, "a\n\nb\r\n c"), segment(-1, 3, "x")]
    assert re.findall(r"(?m)^\d+$", to_srt(segments)) == ["1", "2", "3"], "numbered without a gap"
    assert to_vtt(segments).split("\n\n") == [
        "WEBVTT",
        "00:00:01.000 --> 00:00:01.001\nno length",
        "00:00:02.000 --> 00:00:02.001\na b c",
        "00:00:00.000 --> 00:00:03.000\nx",
        "",
    ]


def test_signs_that_mean_something_to_a_player() -> None:
    segments = [segment(0, 1, "R&D <b>said</b> a --> b")]
    assert to_srt(segments).splitlines()[2] == "R&D <b>said</b> a -> b"
    assert to_vtt(segments).splitlines()[3] == "R&amp;D &lt;b&gt;said&lt;/b&gt; a -&gt; b"


def test_nothing_said() -> None:
    assert to_srt([]) == "" and to_vtt([]) == "WEBVTT\n\n"
