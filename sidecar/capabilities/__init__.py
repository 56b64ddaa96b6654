"""The registry: one line per capability."""

from typing import Any

from sidecar.capabilities.base import Capability
from sidecar.capabilities.emotion import Emotion

CAPABILITIES: tuple[Capability[Any, Any, Any, Any], ...] = (Emotion(),)

BY_NAME = {capability.name: capability for capability in CAPABILITIES}
