"""The registry: one line per capability."""

from typing import Any

from sidecar.capabilities.align import Align
from sidecar.capabilities.asr import Asr
from sidecar.capabilities.backchannel import BACKCHANNEL
from sidecar.capabilities.base import Capability
from sidecar.capabilities.classify import Classify
from sidecar.capabilities.decode import Decode
from sidecar.capabilities.embeddings import Embeddings
from sidecar.capabilities.emotion import Emotion
from sidecar.capabilities.speech_emotion import SpeechEmotion
from sidecar.capabilities.tts import Synthesis
from sidecar.capabilities.vad import Vad

CAPABILITIES: tuple[Capability[Any, Any, Any, Any], ...] = (
    Emotion(),
    BACKCHANNEL,
    Embeddings(),
    Classify(),
    Synthesis(),
    Align(),
    SpeechEmotion(),
    Asr(),
    Vad(),
)

BY_NAME = {capability.name: capability for capability in CAPABILITIES}

# What runners can be asked for besides.
INTERNAL = {Decode.name: Decode()}
