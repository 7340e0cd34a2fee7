"""`make check`: style, format, types, floors, tables, the house's tests. All run, so that one call shows all faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
CHECKS = (
    (str(BIN / "ruff"), "check", "--quiet", "."),
    (str(BIN / "ruff"), "format", "--quiet", "--check", "--diff", "."),
    (sys.executable, "-m", "mypy", "--no-error-summary"),
    (str(BIN / "lint-imports"),),
    (sys.executable, "-m", "stepstack", "table", "--check"),
    (sys.executable, "-m", "pytest", "tests/house"),
)


def main() -> int:
    """Exit status: the number of checks that failed."""
    failed = []
    for command in CHECKS:
        line = " ".join([Path(command[0]).name, *command[1:]])
        print(f"== {line}", flush=True)
        if subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=False).returncode:
            failed.append(line)
    print(f"FAILED: {'; '.join(failed)}" if failed else "all checks passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
