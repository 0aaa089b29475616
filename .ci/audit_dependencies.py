"""Looks up the installed packages in PyPI's advisory database: `python .ci/audit_dependencies.py`, part of `make quality`.

A known vulnerability fails. A database that cannot be reached does not, and is said: behind a mirror or offline, nothing was
audited, and silence would look like a clean bill. (pip-audit itself says "No known vulnerabilities found" then, or breaks
off.)
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

TIME_LIMIT = 180
"""Seconds in all; one request may take five."""
COMMAND = (
    sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off", "--format", "json",
    "--timeout", "5",
)  # fmt: skip


def verdict(output: str) -> tuple[int, str]:
    """The exit status and what to print, from pip-audit's JSON; what is no JSON counts as no data."""
    try:
        packages = json.loads(output)["dependencies"]
        audited = [package for package in packages if "vulns" in package]
        found = [
            f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in "
            f"{', '.join(vulnerability.get('fix_versions') or []) or 'no version yet'}"
            for package in audited
            for vulnerability in package["vulns"]
        ]
    except (ValueError, KeyError, TypeError):
        return 0, "Dependencies were NOT audited: the advisory database could not be reached."
    if found:
        return 1, "\n".join(["Known vulnerabilities in installed packages:", *(f"  {line}" for line in found)])
    if not audited:
        return 0, f"Dependencies were NOT audited: the database knew none of the {len(packages)} packages."
    return (
        0,
        f"No known vulnerability in {len(audited)} of {len(packages)} installed packages; the others are not in it.",
    )


def main() -> int:
    if importlib.util.find_spec("pip_audit") is None:
        print("Dependencies were NOT audited: pip-audit is not installed. It is among the `dev` extras.")
        return 0
    try:
        output = subprocess.run(COMMAND, capture_output=True, text=True, timeout=TIME_LIMIT, check=False).stdout
    except subprocess.TimeoutExpired:
        print(f"Dependencies were NOT audited: no answer in {TIME_LIMIT} seconds.")
        return 0
    status, text = verdict(output)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
