"""The audit of dependencies tells a vulnerability from a database that was not reached."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CLEAN = {"name": "one", "version": "1.0", "vulns": []}
SKIPPED = {"name": "two", "skip_reason": "Dependency not found on PyPI and could not be audited: two (2.0)"}
BAD = {"name": "three", "version": "3.0", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["3.1"]}]}
WITHOUT_FIX = {"name": "four", "version": "4.0", "vulns": [{"id": "CVE-2026-2", "fix_versions": []}]}


@pytest.fixture(scope="module")
def audit(repository_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", repository_root / ".ci" / "audit_dependencies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "status", "text"),
    [
        ([CLEAN], 0, "No known vulnerability in 1 of 1 installed packages"),
        ([CLEAN, SKIPPED], 0, "No known vulnerability in 1 of 2 installed packages"),
        ([SKIPPED, SKIPPED], 0, "NOT audited: the database knew none of the 2 packages"),
        ([CLEAN, BAD, SKIPPED], 1, "three 3.0: CVE-2026-1, fixed in 3.1"),
        ([WITHOUT_FIX], 1, "four 4.0: CVE-2026-2, fixed in no version yet"),
    ],
)
def test_what_was_found(audit: ModuleType, packages: list[dict[str, Any]], status: int, text: str) -> None:
    found, said = audit.verdict(json.dumps({"dependencies": packages, "fixes": []}))
    assert (found, text in said) == (status, True), said


@pytest.mark.parametrize("output", ["", "Traceback (most recent call last)", "[]", "{}", '{"dependencies": 5}'])
def test_no_answer_is_said_and_is_no_failure(audit: ModuleType, output: str) -> None:
    assert audit.verdict(output) == (0, "Dependencies were NOT audited: the advisory database could not be reached.")


def test_a_hanging_audit_ends(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(audit, "COMMAND", ("sleep", "60"))
    monkeypatch.setattr(audit, "TIME_LIMIT", 0.1)
    assert audit.main() == 0
    assert "NOT audited: no answer in 0.1 seconds" in capsys.readouterr().out


def test_a_missing_tool_is_said(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: None)
    assert audit.main() == 0
    assert "NOT audited: pip-audit is not installed" in capsys.readouterr().out
