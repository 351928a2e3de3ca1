"""A part of the tests on other Pythons and versions: ``python tests/matrix.py [PYTHON-VERSIONS ...]``.

VERSIONS is ``lowest``, the lower bounds of pyproject.toml, or ``highest``, what pip takes today. Without arguments, as
``make test-matrix`` calls it: the oldest Python of this machine with the lowest versions, the newest with the highest.
Environments are kept in build/matrix, several GiB each where pip brings torch with CUDA.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]  # oldest first
VERSIONS = ("lowest", "highest")
#: What versions have broken before: products, compilation, checkpoints, random states, exports, settings, packaging.
TESTS = (
    "solvers/test_products.py",
    "solvers/test_unrolled_optimizers.py",
    "problems/test_adjoint_pass.py",
    "problems/test_checkpoint.py",
    "problems/test_compilation.py",
    "problems/test_rematerialization.py",
    "problems/test_replay.py",
    "levels/test_masked_autoencoder.py",
    "recipes/data",
    "package/test_checkpointing.py",
    "package/test_export.py",
    "package/test_wrong_input.py",
    "test_installation.py",
)


def interpreters():
    """The working Pythons of this machine, oldest first, by version: those on the path and pyenv's."""
    working = {}
    for version in PYTHONS:
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        for candidate in [shutil.which(f"python{version}"), *map(str, pyenv)]:
            if candidate and subprocess.run([candidate, "-c", "import ensurepip"], capture_output=True).returncode == 0:
                working[version] = candidate
    return working


def lower_bounds():
    """``NAME==VERSION`` for every lower bound of pyproject.toml, the highest where a name has several."""
    bounds = {}
    for line in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"]):
        name, version = re.match(r"([\w.-]+)[^>]*(?:>=([\d.]+))?", line).groups()
        if version is not None:
            bounds[name] = max(bounds.get(name, version), version, key=lambda text: [int(n) for n in text.split(".")])
    return "".join(f"{name}=={version}\n" for name, version in bounds.items())


def passes(python, version, versions):
    """Install into build/matrix/VERSION-VERSIONS and run the tests there; says how it went."""
    folder = ROOT / "build" / "matrix" / f"{version}-{versions}"
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    command = [str(own), "-m", "pip", "install", "-q", "--upgrade", "-e", f"{ROOT}[test]"]
    if versions == "lowest":
        constraints = folder / "constraints.txt"
        constraints.write_text(lower_bounds())
        command += ["-c", str(constraints)]
    subprocess.run(command, check=True)
    say = "import platform, torch; print('Python', platform.python_version(), 'with torch', torch.__version__)"
    subprocess.run([str(own), "-c", say], check=True)
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    arguments = ["-q", "-n", "auto", "--dist", "loadfile", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(own), "-m", "pytest", *arguments], cwd=ROOT, env=environment).returncode == 0


def main(arguments):
    working = interpreters()
    known = [f"{version}-{versions}" for version in PYTHONS for versions in VERSIONS]
    chosen = arguments or [f"{min(working, key=PYTHONS.index)}-lowest", f"{max(working, key=PYTHONS.index)}-highest"]
    wrong = [cell for cell in chosen if cell not in known or cell.partition("-")[0] not in working]
    if wrong:
        print(f"{wrong[0]}: expected one of {', '.join(cell for cell in known if cell.partition('-')[0] in working)}")
        return 2
    outcomes = {}
    for cell in chosen:
        version, _, versions = cell.partition("-")
        try:
            outcomes[cell] = "passed" if passes(working[version], version, versions) else "FAILED"
        except subprocess.CalledProcessError as error:
            outcomes[cell] = f"FAILED: {' '.join(error.cmd[:5])} ..."
    for cell in known:
        missing = "" if cell.partition("-")[0] in working else ": this machine has no such Python"
        print(f"{cell:<14} {outcomes.get(cell, f'not run{missing}')}")
    print(f"of the tests: {', '.join(TESTS)}")
    return int(any(outcome != "passed" for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
