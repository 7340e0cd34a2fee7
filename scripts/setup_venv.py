"""`make setup`: a virtual environment in .venv with the exact versions of constraints.txt. Standard library only.

torch is installed first and alone, so its build (CPU or CUDA) is chosen once, by ``--torch-index`` or by pip's own
settings. With the same constraints on every later call nothing can replace it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
OLDEST = (3, 11)


def constraints(extras: str) -> str:
    """The versions of constraints.txt; with vLLM the numpy of constraints-vllm.txt, since a package that vLLM 0.30
    brings takes none from 2.4 on under Python 3.12 and older."""
    text = (ROOT / "constraints.txt").read_text()
    if "vllm" not in extras.split(","):
        return text
    pin = re.compile(r"^numpy==.*$", re.MULTILINE)
    return pin.sub(pin.findall((ROOT / "constraints-vllm.txt").read_text())[0], text)


def pip(*arguments: str) -> None:
    """Run pip of the new environment, bound by the constraints in it and silent except for its errors, which the user
    sees."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
    subprocess.run([*command, "-c", str(VENV / "constraints.txt"), *arguments], cwd=ROOT, check=True)


def install(torch_index: str | None, extras: str) -> None:
    (VENV / "constraints.txt").write_text(constraints(extras))
    index = ["--index-url", torch_index] if torch_index else []
    pip("torch", *index)
    # The build backend comes from the same constraints, hence no isolated (and unpinned) build environment.
    pip("hatchling", "editables")
    pip("--no-build-isolation", "-e", f".[{','.join(filter(None, ('dev,eval,vision,video', extras)))}]")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-index", help="package index of torch, e.g. https://download.pytorch.org/whl/cpu")
    parser.add_argument("--extras", default="", help="more extras of pyproject.toml by commas, such as vllm,gpu")
    options = parser.parse_args()
    if sys.version_info < OLDEST:
        version = ".".join(map(str, sys.version_info[:3]))
        print(f"stepstack needs Python 3.11 or newer; {sys.executable} is {version}.", file=sys.stderr)
        print("Name another interpreter: make setup PYTHON=python3.12", file=sys.stderr)
        return 1
    began = time.monotonic()
    if not (VENV / "bin" / "python").exists():
        print("setup: making .venv", flush=True)
        venv.create(VENV, with_pip=True)
    print("setup: installing stepstack and the versions of constraints.txt (a few minutes the first time)", flush=True)
    try:
        install(options.torch_index, options.extras)
    except subprocess.CalledProcessError as error:
        print(f"setup: pip failed (exit status {error.returncode}); its message is above", file=sys.stderr)
        return 1
    (VENV / ".ready").touch()
    print(f"setup: ready after {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
