"""MineDojo's own interpreter: where it is, and how one is made.

MineDojo 0.1 wants gym 0.21, which pip 24.1 and setuptools 66 refuse, and a numpy before 2. Pins that were
tried on Python 3.9, 3.10 and 3.11 are :data:`PINS`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from wmkit.errors import ConfigError

VARIABLE = "WMKIT_MINEDOJO_PYTHON"
"""Environment variable that names the interpreter."""

MALMO = "WMKIT_MINEDOJO_MALMO"
"""Environment variable that names another folder ``Minecraft`` of Malmo, with mended Gradle files."""

VERSIONS = ("3.10", "3.9", "3.11")  # the first that is there
PINS = ("minedojo==0.1", "numpy==1.26.4", "opencv-python==4.8.1.78", "gym==0.21.0")
TOOLS = ("pip==23.0.1", "setuptools==65.5.0", "wheel==0.38.4")


def default_folder() -> Path:
    """Where ``wmkit minedojo setup`` makes the environment: in the user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "wmkit" / "minedojo"


def find_python() -> Path:
    """The interpreter that has MineDojo: what :data:`VARIABLE` names, else what setup made.

    Raises:
        ConfigError: there is none.
    """
    if named := os.environ.get(VARIABLE):
        if not os.access(named, os.X_OK) or not Path(named).is_file():
            raise ConfigError(
                f"{VARIABLE} is {named!r}: wanted the path of an interpreter that has MineDojo; correct it"
            )
        return Path(named)
    made = python_in(default_folder())
    if not made.exists():
        raise ConfigError(
            f"MineDojo cannot be played: found no interpreter for it at {str(made)!r}, wanted Python 3.9 to "
            f"3.11 with minedojo 0.1; run `wmkit minedojo setup`, or name one in {VARIABLE}"
        )
    return made


def find_malmo(environment: Path | None = None) -> Path | None:
    """The folder that :data:`MALMO` names, else what ``setup --mixin`` made; None for MineDojo's own.

    Args:
        environment: that setup made; the default one if not given.

    Raises:
        ConfigError: it has no ``launchClient.sh``.
    """
    if not (named := os.environ.get(MALMO)):
        mended = (environment or default_folder()) / "Malmo" / "Minecraft"
        return mended if mended.is_dir() else None
    if not Path(named, "launchClient.sh").is_file():
        raise ConfigError(
            f"{MALMO} is {named!r}: found no launchClient.sh there, wanted a copy of MineDojo's folder "
            "sim/Malmo/Minecraft; correct it"
        )
    return Path(named)


def python_in(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / "bin" / "python"


def find_base(named: str | None = None) -> Path:
    """A Python 3.9, 3.10 or 3.11 to make the environment with.

    Args:
        named: a path or a command; None looks along PATH, at this interpreter and among pyenv's.

    Raises:
        ConfigError: there is none, or ``named`` is another version.
    """
    if named is not None:
        path = shutil.which(named)
        found = _version(Path(path)) if path else None
        if path is None or found not in VERSIONS:
            what = f"Python {found}" if found else "no interpreter"
            raise ConfigError(
                f"--python is {named!r}: found {what}, wanted {' or '.join(VERSIONS)}; name one of these"
            )
        return Path(path)
    for candidate in _candidates():
        if candidate.exists() and _version(candidate) in VERSIONS:
            return candidate
    raise ConfigError(
        "MineDojo needs a Python of its own: found no Python 3.9, 3.10 or 3.11 on PATH or under pyenv, "
        "wanted one of them; install one (pyenv install 3.10, uv python install 3.10, or your system's "
        "python3.10 with its venv module) and name it with --python"
    )


def create(folder: Path, base: Path, say: Callable[[str], None] = print) -> Path:
    """A virtual environment with MineDojo and the pins that work.

    What is there already is used again; a step that fails leaves the folder for a second try.

    Args:
        folder: of the environment.
        base: a Python 3.9, 3.10 or 3.11.
        say: told each step.

    Returns:
        Its interpreter.

    Raises:
        ConfigError: a step failed; the message has its last line.
    """
    python = python_in(folder)
    if not python.exists():
        say(f"making {folder} with {base}")
        _run([str(base), "-m", "venv", str(folder)], "make the environment")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    say(f"installing {' '.join(PINS)}")
    _run([*pip, *TOOLS], "install pip and setuptools of their time")
    _run([*pip, "--no-build-isolation", *PINS], "install MineDojo")
    say("importing it")
    check_import(python)
    return python


def check_import(python: Path) -> str:
    """MineDojo's version in an interpreter.

    Raises:
        ConfigError: it cannot be imported there.
    """
    code = "import minedojo, cv2, importlib.metadata as m; print(m.version('minedojo'))"
    said = _run([str(python), "-c", code], f"import MineDojo with {python}")
    return said.strip().splitlines()[-1]


def _run(command: list[str], what: str) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)
        output, code = done.stdout, done.returncode
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    except OSError as error:
        output, code, last = "", 1, [str(error)]
    if code:
        raise ConfigError(
            f"wmkit could not {what}: found {''.join(last)[:300]!r} (exit code {code}), wanted "
            f"{' '.join(command[:3])} ... to succeed; correct that and run it again"
        )
    return output


def _version(python: Path) -> str | None:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _candidates() -> Iterator[Path]:
    for version in VERSIONS:
        if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
            yield Path(sys.executable)
        root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
        yield from (path / "bin" / "python" for path in sorted(root.glob(f"{version}.*"), reverse=True))
        if found := shutil.which(f"python{version}"):
            yield Path(found)
