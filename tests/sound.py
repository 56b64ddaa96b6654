"""Sounds for tests: made here, or Debian's recorded prompts with their words."""

import io
import struct
import wave
from typing import Any

import numpy as np

RATE = 16_000


def tone(seconds: float = 1.0, hz: float = 440.0, rate: int = RATE, level: float = 0.3) -> Any:
    """A sine, float32 mono."""
    times = np.arange(int(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def pcm16(samples: Any) -> bytes:
    return bytes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def wav(samples: Any, rate: int = RATE) -> bytes:
    """A WAV file, PCM16; `samples` of shape (n,) or (n, channels)."""
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm16(samples))
    return held.getvalue()


def wav_float(samples: Any, rate: int = RATE) -> bytes:
    """A WAV file of 32-bit floats, as they are."""
    data = samples.astype("<f4").tobytes()
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, rate * 4, 4, 32)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def encode(samples: Any, container: str, codec: str, rate: int, layout: str = "mono") -> bytes:
    """Mono `samples` at `rate` in any container and codec of PyAV, the same in every channel."""
    import av

    held = io.BytesIO()
    with av.open(held, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.layout = layout
        # Packed: the library cannot make frames of eight planes.
        channels = np.repeat(samples.astype(np.float32), stream.channels)[None, :]
        frame = av.AudioFrame.from_ndarray(channels, format="flt", layout=layout)
        frame.sample_rate = rate
        fitted = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate).resample(frame)
        for part in [*fitted, None]:
            out.mux(stream.encode(part))
    return held.getvalue()
