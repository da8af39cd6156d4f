"""The plugin objects on the host, and their agreement with ``graph/contract.py``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from native import run

from vimdeploy import contract
from vimdeploy.contract import AttributeKind
from vimdeploy.native.locate import SOURCE_FOLDERS, plugin_sources

FIELD_TYPES = {
    AttributeKind.INT: (5, 1),  # PluginFieldType::kINT32, one value
    AttributeKind.INTS: (5, 0),  # kINT32, one per group
    AttributeKind.FLOAT: (1, 1),  # kFLOAT32
    AttributeKind.STRING: (6, 0),  # kCHAR
}
"""How TensorRT's parser maps ONNX attributes to plugin fields, and the length that getFieldNames() announces."""


def test_googletest_passes_under_sanitizers(host_build: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    run(host_build / "tests" / "plugin_tests", f"--gtest_output=json:{report}")
    suites = json.loads(report.read_text())["testsuites"]
    ran = {f"{suite['name']}.{test['name']}": test for suite in suites for test in suite["testsuite"]}
    assert all(test["result"] == "COMPLETED" and "failures" not in test for test in ran.values())
    random = ran["Property.RandomFieldsAndDescriptorsNeverCrash"]
    assert int(random["launched"]) > 100, "the random inputs must also get as far as a launch"


@pytest.fixture(scope="module")
def described(host_build: Path) -> dict[str, dict[str, object]]:
    """What the creators answer through TensorRT's interfaces, by op."""
    creators = json.loads(run(host_build / "tests" / "plugin_describe").stdout)
    return {creator["name"]: creator for creator in creators}


def test_creators_are_the_ops_of_the_contract(described: dict[str, dict[str, object]]) -> None:
    assert list(described) == list(contract.PLUGIN_OPS)
    for creator in described.values():
        assert creator["version"] == contract.PLUGIN_VERSION
        assert creator["namespace"] == contract.PLUGIN_NAMESPACE


@pytest.mark.parametrize("op", map(contract.OPS.get, contract.PLUGIN_OPS), ids=contract.PLUGIN_OPS)
def test_fields_are_the_attributes_of_the_contract(
    op: contract.CustomOp, described: dict[str, dict[str, object]]
) -> None:
    wanted = {attribute.name: list(FIELD_TYPES[attribute.kind]) for attribute in op.attributes}
    assert described[op.name]["fields"] == wanted


@pytest.mark.parametrize("op", map(contract.OPS.get, contract.PLUGIN_OPS), ids=contract.PLUGIN_OPS)
def test_inputs_and_types_are_those_of_the_contract(
    op: contract.CustomOp, described: dict[str, dict[str, object]]
) -> None:
    assert described[op.name]["types"] == [tensor.dtype for tensor in (*op.inputs, op.output)]


@pytest.mark.parametrize("op", map(contract.OPS.get, contract.PLUGIN_OPS), ids=contract.PLUGIN_OPS)
def test_tensor_shapes_are_those_of_the_contract(
    op: contract.CustomOp, described: dict[str, dict[str, object]]
) -> None:
    # The table of tensors in the C++ source, with the contract's way of writing the letters.
    assert described[op.name]["tensors"] == [[tensor.name, *tensor.shape] for tensor in (*op.inputs, op.output)]


def test_limits_are_those_of_the_contract(described: dict[str, dict[str, object]]) -> None:
    scan, conv = described["SelectiveScan"]["limits"], described["CausalConv1d"]["limits"]
    assert scan["N"] == [1, contract.PLUGIN_MAX_STATE]
    assert scan["R"] == [1, contract.PLUGIN_MAX_DT_RANK]
    assert list(range(conv["K"][0], conv["K"][1] + 1)) == list(contract.PLUGIN_CONV_WIDTHS)
    for name, creator in described.items():
        assert creator["groups"] == ([] if "Delta" in name else list(contract.PLUGIN_GROUPS))
    assert described["SelectiveScanDelta"]["limits"]["N"] == scan["N"]


def test_sources_are_formatted() -> None:
    tool = shutil.which("clang-format", path=str(Path(sys.executable).parent)) or shutil.which("clang-format")
    assert tool, "clang-format is missing: pip install clang-format"
    root = plugin_sources()
    folders = (*SOURCE_FOLDERS, "emulation", "tests")
    files = [path for folder in folders for path in sorted((root / folder).glob("*"))]
    files = [path for path in files if path.suffix in {".h", ".cpp", ".cuh", ".cu"}]
    assert len(files) > 30
    run(tool, "--dry-run", "--Werror", *files)


def test_no_source_file_is_longer_than_the_house_allows() -> None:
    root = plugin_sources()
    lengths = {
        path.relative_to(root).as_posix(): len(path.read_text().splitlines())
        for folder in (*SOURCE_FOLDERS, "tests")
        for path in (root / folder).glob("*")
        if path.suffix in {".h", ".cpp", ".cuh", ".cu"}
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}
