"""Transcripts as subtitles: SubRip, and WebVTT (W3C).

What players stumble over is left out or put right: cues without text, without length, or with a blank line in them.
"""

from collections.abc import Iterator, Sequence

from sidecar.capabilities.asr import Segment

_SHORTEST_MS = 1  # WebVTT: a cue ends after it has begun


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip."""
    cues = enumerate(_cues(segments), 1)
    return "".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n" for number, (start, end, text) in cues
    )


def to_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT."""
    cues = (
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n\n" for start, end, text in _cues(segments)
    )
    return "WEBVTT\n\n" + "".join(cues)


def _cues(segments: Sequence[Segment]) -> Iterator[tuple[int, int, str]]:
    """Start and end (ms), and the text in one line. An arrow in it would begin another cue."""
    for segment in segments:
        if text := " ".join(segment["text"].split()).replace("-->", "->"):
            start, end = max(0, round(segment["start"] * 1000)), round(segment["end"] * 1000)
            yield start, max(end, start + _SHORTEST_MS), text


def _escaped(text: str) -> str:
    # "<" would begin a tag, and what follows would not be shown.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(milliseconds: int, point: str) -> str:
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
