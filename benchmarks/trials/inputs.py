"""Overrides that make little sense: each is refused in one sentence, or means something."""

from __future__ import annotations

import random
import resource
import shutil

from omegaconf import OmegaConf

from wmkit.systems import compose

from .common import SHORT, SYSTEM, TINY, Trial, call

VALUES = (
    *("-1", "0", "1e20", "-1e20", "1e400", "nan", "inf", "-inf", "abc", "''", "null", "true", "[]", "{}"),
    *(
        "[1,2]",
        "[null]",
        "{a: 1}",
        "0.5",
        "1",
        "2147483648",
        "9223372036854775808",
        "0x10",
        "1_000",
        "é",
        "../x",
    ),
    *("${nobody}", "${seed}", "${oc.env:HOME}", "a:b", "{_target_: os.getpid}", "'a b'", "x" * 300),
)
GRAMMAR = (
    *(
        "@x=1",
        "a@b=1",
        "+@x=1",
        "=1",
        "x",
        "+",
        "~",
        "~seed",
        "~env",
        "++a.b=1",
        "training..steps=1",
        ".seed=1",
    ),
    *("seed", "seed==1", "seed=1=2", "preset=none", "env=none", "size=none", "+size=[1m,12m]", "defaults=[]"),
    *(
        "hydra.run.dir=x",
        "+hydra.searchpath=[x]",
        "resume=",
        "run_dir=",
        "resume=/nowhere",
        "+nobody.reads=1",
    ),
    *("seed=${", "seed=]", "seed={", "env.options={a:", "env.options.x=1", "\n=1", "seed=1\nx=2", "\0=1"),
)
FREE = ("run_dir", "resume", "training.steps")  # a folder of somebody's choice, or no end


def generated(count: int) -> list[str]:
    """Overrides, always the same ones: of the grammar, then values of all kinds for keys of all kinds."""
    chance, keys = random.Random(0), []

    def walk(node: object, path: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            keys.append(f"{path}{key}")
            walk(value, f"{path}{key}.")

    walk(OmegaConf.to_container(compose(SYSTEM, TINY)), "")
    keys = [key for key in keys if key not in FREE and not key.startswith("hydra")]
    pairs = [f"{key}={value}" for key in keys for value in VALUES]
    grammar = list(GRAMMAR)
    chance.shuffle(grammar)
    found = grammar[: max(1, count // 6)]
    return found + chance.sample(pairs, count - len(found))


def run(trial: Trial) -> None:
    """One override a row; one that is taken plays 64 steps, or until its time is over."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, before[1]))
    try:
        for i, override in enumerate(generated(trial.options.inputs)):
            if not trial.begin(f"{i} {override}"):
                continue
            folder = trial.folder / f"run{i}"
            found = call("train", SYSTEM, *TINY, *SHORT, f"run_dir={folder}", override, seconds=20)
            refused = found["code"] == 2 and folder.exists()
            trial.keep(f"{i} {override}", **found, left=int(refused))
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
