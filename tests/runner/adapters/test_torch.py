"""The torch adapter: tiny classifiers in the real format, loaded in the torch profile's environment."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sidecar import wire
from sidecar.catalogue.spec import ModelSpec
from tests.product import ROOT
from tests.torch_profile import LABELS, make_classifier, torch_python

ASKED: list[Any] = [
    "I am so happy today!",
    "x",
    "a much longer text, with a comma and a tail that goes on and on " * 2,
    ["and then he left", "mm-hm"],
    ["", "hello"],
]


@pytest.fixture(scope="module")
def python() -> Path:
    return torch_python()


class Runner:
    """`python -m sidecar run` in the torch environment, spoken to as the server does."""

    def __init__(self, python: Path, spec: ModelSpec, device: str = "auto", threads: int = 1) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [str(python), "-m", "sidecar", "run", spec.id], env=env, stdin=pipe, stdout=pipe, stderr=pipe
        )
        self._decoder = wire.Decoder()
        self._messages: list[wire.Message] = []
        self.progress: list[wire.Progress] = []
        self.send(wire.Load(spec.model_dump(mode="json"), threads, device))
        self.ready = self.next()

    def send(self, message: wire.Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(wire.encode(message))
        self.process.stdin.flush()

    def next(self) -> Any:
        assert self.process.stdout is not None
        while True:
            while not self._messages:
                data = os.read(self.process.stdout.fileno(), 65536)
                assert data, self.process.communicate()[1].decode()[-3000:]
                self._messages += self._decoder.feed(data)
            message = self._messages.pop(0)
            if not isinstance(message, wire.Progress):
                return message
            self.progress.append(message)

    def detect(self, *texts: str) -> Any:
        self.send(wire.Infer(1, "emotion", list(texts)))
        return self.next()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run(python: Path) -> Iterator[Callable[..., Runner]]:
    running: list[Runner] = []

    def start(spec: ModelSpec, **options: Any) -> Runner:
        running.append(Runner(python, spec, **options))
        return running[-1]

    yield start
    for each in running:
        each.close()


def make_spec(folder: Path, *files: str, pickles: tuple[str, ...] = (), **values: Any) -> ModelSpec:
    named = [{"path": name, "pickle": name in pickles} for name in (*files, *pickles)]
    defaults = {"id": "tiny", "title": "t", "capabilities": ["emotion"], "runtime": "torch", "licence": "MIT"}
    defaults |= {"profile": "torch", "heads": {"emotion": {"labels": LABELS}}}
    return ModelSpec.model_validate({**defaults, "folder": folder, "files": named, **values})


@pytest.fixture(scope="module")
def distilbert(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[float]]]:
    folder = tmp_path_factory.mktemp("torch") / "distilbert"
    return folder, make_classifier(python, folder, asked=ASKED)


@pytest.fixture(scope="module")
def roberta(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[float]]]:
    folder = tmp_path_factory.mktemp("torch") / "roberta"
    return folder, make_classifier(python, folder, family="roberta", weights="bin", asked=ASKED)


PROBE = """
import json, sys
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import SidecarError
from sidecar.runner.adapters import make_adapter

def load(spec, device):
    adapter = make_adapter(ModelSpec.model_validate(spec), 1, device)
    adapter.load(lambda *_: None)
    return adapter

def answer(spec, device, texts):
    try:
        adapter = load(spec, device)
    except SidecarError as error:
        return {"code": error.code, "message": error.message}
    found = adapter.classify(texts, "emotion")
    return {"logits": found.tolist(), "dtype": str(found.dtype), "labels": list(adapter.labels("emotion")),
            "device": adapter.device, "reason": adapter.device_reason}

frames = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    print(json.dumps(answer(*json.loads(line))), file=frames, flush=True)
"""


class Bench:
    """A process of the torch environment that loads adapters one after the other: torch is imported only once."""

    def __init__(self, python: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([str(python), "-c", PROBE], env=env, stdin=pipe, stdout=pipe, text=True)

    def ask(self, spec: ModelSpec, texts: Sequence[Any] = ("hello",), device: str = "cpu") -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([spec.model_dump(mode="json"), device, list(texts)]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the process died; its stderr has the reason"
        return json.loads(line)

    def refusal(self, spec: ModelSpec) -> str:
        found = self.ask(spec)
        assert "code" in found, found
        return f"{found['code']}: {found['message']}"


@pytest.fixture(scope="module")
def bench(python: Path) -> Iterator[Bench]:
    one = Bench(python)
    yield one
    one.process.communicate()


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_logits_are_those_of_transformers(bench: Bench, family: str, request: pytest.FixtureRequest) -> None:
    folder, expected = request.getfixturevalue(family)
    pickles = ("pytorch_model.bin",) if family == "roberta" else ()
    spec = make_spec(folder, "config.json", pickles=pickles)
    texts, pairs, mixed = bench.ask(spec, ASKED[:3]), bench.ask(spec, ASKED[3:]), bench.ask(spec, ASKED)
    assert np.allclose(texts["logits"] + pairs["logits"], expected, atol=1e-5), "padding and batching change nothing"
    assert np.allclose(mixed["logits"], expected, atol=1e-5)
    assert (texts["labels"], texts["dtype"]) == (list(LABELS), "float32")
    assert (texts["device"], texts["reason"]) == ("cpu", "it is set to run on the CPU")


def test_what_is_over_the_window_is_cut(bench: Bench, roberta: Any) -> None:
    spec = make_spec(roberta[0], pickles=("pytorch_model.bin",))
    one, other = bench.ask(spec, ["word " * 300, "word " * 300 + "ending"])["logits"]
    assert np.allclose(one, other, atol=1e-5)


def test_a_runner_answers_and_tells_its_device(run: Callable[..., Runner], distilbert: Any) -> None:
    folder, logits = distilbert
    one = run(make_spec(folder, "config.json", "model.safetensors"))
    assert isinstance(one.ready, wire.Ready), one.ready
    assert one.ready.device in ("cpu", "cuda:0", "mps") and one.ready.device_reason
    assert [step.item for step in one.progress] == ["torch", "transformers", "weights", "warm up"]
    [best, *_], _ = one.detect(ASKED[0], ASKED[1]).outputs
    assert best[0] == LABELS[int(np.argmax(logits[0]))] and 0 < best[1] <= 1


def test_labels_come_from_the_config_where_the_entry_has_none(bench: Bench, python: Path, tmp_path: Path) -> None:
    make_classifier(python, tmp_path / "m", labels=["calm", "storm"])
    assert bench.ask(make_spec(tmp_path / "m", heads={"emotion": {}}))["labels"] == ["calm", "storm"]


def test_a_device_that_is_not_there_gives_the_reason(bench: Bench, distilbert: Any) -> None:
    found = bench.ask(make_spec(distilbert[0]), device="mps" if sys.platform != "darwin" else "cuda")
    assert found["device"] == "cpu"
    assert "could not be used: " in found["reason"] and "running on the CPU" in found["reason"]


def test_a_pickle_needs_the_permission_for_that_very_file(run: Callable[..., Runner], roberta: Any) -> None:
    told = run(make_spec(roberta[0], "config.json")).ready
    assert isinstance(told, wire.Error) and told.code == "pickle_refused"
    assert "pytorch_model.bin is a Python pickle" in told.message


def test_permission_for_another_file_is_none(bench: Bench, roberta: Any) -> None:
    assert bench.refusal(make_spec(roberta[0], pickles=("config.json",))).startswith("pickle_refused: ")


def test_a_pickle_that_wants_to_run_code_does_not(bench: Bench, roberta: Any, tmp_path: Path) -> None:
    folder, proof = tmp_path / "evil", tmp_path / "it ran"
    shutil.copytree(roberta[0], folder)

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (proof,))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    told = bench.refusal(make_spec(folder, pickles=("pytorch_model.bin",)))
    assert told.startswith("model_load_failed: ") and "or wants to run code" in told
    assert not proof.exists()


def test_code_in_the_folder_is_never_run(bench: Bench, distilbert: Any, tmp_path: Path) -> None:
    folder, proof = tmp_path / "custom", tmp_path / "it ran"
    shutil.copytree(distilbert[0], folder)
    (folder / "modeling_custom.py").write_text(f"open({str(proof)!r}, 'w').close()\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {"AutoConfig": "modeling_custom.C", "AutoModelForSequenceClassification": "modeling_custom.M"}
    config |= {"model_type": "custom", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "wants to run code of its own, which is never done" in bench.refusal(make_spec(folder))
    assert not proof.exists()


def test_an_untrained_head_is_no_classifier(bench: Bench, python: Path, tmp_path: Path) -> None:
    make_classifier(python, tmp_path / "m", weights="headless")
    told = bench.refusal(make_spec(tmp_path / "m"))
    assert "is no trained classifier: its weights lack classifier.bias" in told


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (LABELS[:3], "has 3 labels, the model 7: anger"),
        (("disgust", "anger", *LABELS[2:]), "in another order: 0: 'disgust' for 'anger', 1: 'anger' for 'disgust'"),
    ],
)
def test_labels_that_contradict_the_model_are_refused(
    bench: Bench, distilbert: Any, labels: tuple[str, ...], told: str
) -> None:
    assert told in bench.refusal(make_spec(distilbert[0], heads={"emotion": {"labels": labels}}))


def test_other_names_for_the_same_labels_are_fine(bench: Bench, distilbert: Any) -> None:
    labels = ["happiness" if label == "joy" else label.upper() for label in LABELS]
    assert bench.ask(make_spec(distilbert[0], heads={"emotion": {"labels": labels}}))["labels"] == labels


def test_a_folder_without_weights_or_files_says_so(bench: Bench, distilbert: Any, tmp_path: Path) -> None:
    assert "has no weights: neither model.safetensors nor" in bench.refusal(make_spec(tmp_path))
    assert "lacks vocab.txt" in bench.refusal(make_spec(distilbert[0], "vocab.txt"))


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="this system has no limits of a running process")
def test_memory_that_runs_out_is_told_and_survived(run: Callable[..., Runner], python: Path, tmp_path: Path) -> None:
    make_classifier(python, tmp_path / "m", hidden=256, layers=2)
    one = run(make_spec(tmp_path / "m"), threads=1)
    assert isinstance(one.ready, wire.Ready), one.ready
    process = psutil.Process(one.process.pid)
    small = one.detect("fits")
    assert isinstance(small, wire.Result)
    room = process.memory_info().vms + (64 << 20)
    process.rlimit(psutil.RLIMIT_AS, (room, psutil.RLIM_INFINITY))
    answer = one.detect(*["word " * 64] * 4000)
    assert isinstance(answer, wire.Error) and answer.code == "out_of_memory" and answer.retryable, answer
    assert "ran out of memory on cpu" in answer.message
    process.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    assert isinstance(one.detect("fits"), wire.Result)
