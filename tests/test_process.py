import ast
import os

from sidecar import process
from sidecar.settings import ROOT


def test_both_systems_have_one_interface() -> None:
    for name in ("process_posix.py", "process_windows.py"):
        tree = ast.parse((ROOT / "sidecar" / name).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assigned = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
        names |= {each.id for each in assigned if isinstance(each, ast.Name) and not each.id.startswith("_")}
        assert names == set(process.__all__), name


def test_cores_are_those_this_process_may_use() -> None:
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert process.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, everything)
    assert 1 <= process.usable_cores() <= len(everything)
