"""Names of models as OpenAI's clients and those of other local servers write them."""

import re

from sidecar.errors import ModelNotFoundError
from sidecar.server.state import ServerState

# OpenAI's own, dated ones and those to come among them: whichever is best here takes their place.
_STAND_INS = {
    "asr": re.compile(r"whisper-1|gpt-[\w.-]*transcribe[\w.-]*"),
    "tts": re.compile(r"tts-1.*|gpt-[\w.-]*tts.*"),
}
_WORDS = {"asr": ("transcription", "whisper-1"), "tts": ("speech", "tts-1")}


def model_named(state: ServerState, capability: str, name: str) -> str | None:
    """Our id for a model: itself, OpenAI's names (None, the best one), a runtime's ("kokoro") or a repository's.

    Raises ModelNotFoundError.
    """
    name = name.strip()
    if name in state.catalogue.specs:
        return name
    if _STAND_INS[capability].fullmatch(name):
        return None
    usable = state.catalogue.for_capability(capability)
    for spec in (*usable, *state.catalogue.ranking(capability)):
        repo = spec.source.repo if spec.source else None
        if name == spec.runtime or (repo is not None and name.lower() == repo.lower()):
            return spec.id
    purpose, best = _WORDS[capability]
    known = ", ".join(spec.id for spec in usable)
    raise ModelNotFoundError(f"no model {name[:64]!r} for {purpose}; there are {best} (the best here), {known}")
