"""What Minecraft needs of a machine beside Python, and MineDojo's copy of Malmo with its mended build."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wmkit.envs.minedojo.interpreter import MALMO, default_folder, find_malmo
from wmkit.errors import ConfigError

GRADLE = "4.10.2"
MIXIN = "com.github.SpongePowered:MixinGradle:dcfaf61"
MIXIN_FOLDER = "MixinGradle-dcfaf61"
JAR = Path("build", "libs", "MalmoMod-0.37.0-fat.jar")
BUILD = "build.gradle"


class Finding(NamedTuple):
    """Whether something is there, and what to say about it."""

    name: str
    good: bool
    text: str


def examine(folder: Path | None = None) -> Iterator[Finding]:
    """What is there and what is missing, each in plain words with how to get it.

    Args:
        folder: of the environment that has MineDojo; the default one if not given.

    >>> [finding.name for finding in examine()][:2]
    ['system', 'Java']
    """
    system = platform.system()
    posix = system in ("Linux", "Darwin")
    yield Finding(
        "system", posix, system if posix else f"{system}: MineDojo starts Minecraft on Linux and macOS"
    )
    yield _java()
    yield _screen()
    yield from _build(folder or default_folder())


def _java() -> Finding:
    found = java_version()
    if found == 8:
        return Finding("Java", True, "8")
    what = "no java on PATH" if found is None else f"Java {found}"
    return Finding(
        "Java",
        False,
        f"{what}, wanted 8 (1.8): Minecraft 1.11.2 is built and run by it; install a JDK 8 (Debian and "
        "Ubuntu: openjdk-8-jdk where it is packaged; else Temurin 8 or Zulu 8), its bin folder first on PATH",
    )


def java_version() -> int | None:
    """The main version of ``java`` on PATH; None where there is none.

    >>> isinstance(java_version(), (int, type(None)))
    True
    """
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_java_version(done.stderr + done.stdout)


def read_java_version(said: str) -> int | None:
    """The main version in what ``java -version`` says.

    >>> [read_java_version(f'openjdk version "{version}"') for version in ("1.8.0_392", "17.0.9")]
    [8, 17]
    """
    found = re.search(r'version "(\d+)(?:\.(\d+))?', said)
    if found is None:
        return None
    return int(found[2] or 0) if found[1] == "1" else int(found[1])


def _screen() -> Finding:
    headless = os.environ.get("MINEDOJO_HEADLESS") == "1"
    xvfb = shutil.which("xvfb-run")
    if headless and xvfb is None:
        text = "MINEDOJO_HEADLESS=1 and no xvfb-run; apt-get install xvfb xauth"
        return Finding("screen", False, text)
    if headless or platform.system() == "Darwin":
        return Finding("screen", True, "by xvfb-run, as MINEDOJO_HEADLESS=1 asks" if headless else "macOS")
    if os.environ.get("DISPLAY"):
        return Finding("screen", True, f"DISPLAY={os.environ['DISPLAY']}")
    get = "" if xvfb else "apt-get install xvfb xauth, and "
    return Finding("screen", False, f"no DISPLAY: {get}export MINEDOJO_HEADLESS=1")


def _build(environment: Path) -> Iterator[Finding]:
    own = environment.glob("lib/*/site-packages/minedojo/sim/Malmo/Minecraft")
    folder = find_malmo(environment) or next(own, None)
    if folder is None:
        yield Finding("Malmo", False, f"not there: MineDojo brings it; or name a copy in {MALMO}")
        return
    yield Finding("Malmo", True, str(folder))
    if (folder / JAR).is_file():
        yield Finding("build", True, f"{JAR.name} is built: no Gradle is needed any more")
        return
    zips = Path(os.environ.get("GRADLE_USER_HOME") or Path.home() / ".gradle", "wrapper", "dists")
    there = any(zips.glob(f"gradle-{GRADLE}-*"))
    later = (
        ""
        if there
        else "not yet: the first start gets it from services.gradle.org; without access put the zip"
    )
    yield Finding("Gradle", True, f"{later or GRADLE + ' lies'} in {zips}")
    old = MIXIN in (folder / BUILD).read_text(encoding="utf-8") if (folder / BUILD).is_file() else False
    yield Finding(
        "MixinGradle",
        not old,
        f"{BUILD} asks jitpack for {MIXIN}, which it no longer has (January 2024): clone {MIXIN_FOLDER} and "
        f"run `wmkit minedojo setup --mixin PATH/{MIXIN_FOLDER}`"
        if old
        else "taken from a folder of this machine",
    )


def mend_build(malmo: Path, mixin: Path, target: Path) -> Path:
    """A copy of MineDojo's Malmo whose build takes MixinGradle from a folder.

    Args:
        malmo: MineDojo's folder ``sim/Malmo``.
        mixin: a clone of the repository ``MixinGradle-dcfaf61``, under that name.
        target: of the copy; what is there is replaced.

    Returns:
        The copy's folder ``Minecraft``.

    Raises:
        ConfigError: the clone is not there, or the build is another one than expected.
    """
    if mixin.name != MIXIN_FOLDER or not mixin.is_dir():
        raise ConfigError(
            f"--mixin is {str(mixin)!r}: wanted a folder called {MIXIN_FOLDER}, a clone of that repository; "
            "clone it and give its path"
        )
    build = malmo / "Minecraft" / BUILD
    text = build.read_text(encoding="utf-8") if build.is_file() else ""
    if MIXIN not in text or "repositories {" not in text:
        raise ConfigError(
            f"{str(build)!r} cannot be mended: found no {MIXIN} in it, wanted MineDojo's own; mend your copy "
            f"by hand and name it in {MALMO}"
        )
    text = text.replace(MIXIN, f"{MIXIN_FOLDER}:MixinGradle:dcfaf61")
    local = f'repositories {{\n        maven {{ url "{mixin.absolute().parent.as_uri()}" }}'
    text = text.replace("repositories {", local, 1)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(malmo, target)
    (target / "Minecraft" / BUILD).write_text(text, encoding="utf-8")
    return target / "Minecraft"
