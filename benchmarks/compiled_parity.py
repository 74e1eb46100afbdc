"""Whether a compiled update of `dreamer_v3` computes what the eager one does, with the real code generator.

    python benchmarks/compiled_parity.py                                        # tiny: minutes
    python benchmarks/compiled_parity.py size=1m batch.size=16 batch.length=16 --device cuda

Two systems start with the same weights. One is updated eagerly, the other compiled as one graph (Inductor),
on the same batch and from the same random numbers; losses and weights are compared after each update. The
test suite checks the trace alone, because generating code takes minutes. How quick either is, measures
`update_speed.py --compile`; on a GPU, `gpu_suite.py`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torchrl.data import Composite, OneHot, Unbounded

import wmkit
from wmkit.optim.captured import compile_update

TINY = ["size=tiny", "batch.size=2", "batch.length=3", "controller.horizon=2"]


def build(overrides: list[str], device: str) -> Any:
    torch.manual_seed(0)
    spec = Composite(observation=Unbounded((24,)))
    system = wmkit.build("dreamer_v3", observation_spec=spec, action_spec=OneHot(6), overrides=overrides)
    return system.to(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", default=TINY, help="of the system's page")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--updates", type=int, default=3)
    args = parser.parse_args()
    torch._inductor.config.fallback_random = True  # or the generated code would draw other numbers

    eager, compiled = (build(args.overrides, args.device) for _ in range(2))
    batch = eager.example_batch().to(args.device)
    ways = {"eager": eager.update, "compiled": compile_update(compiled)}
    print(f"torch {torch.__version__}, {args.device}, {' '.join(args.overrides)}")
    for i in range(args.updates):
        losses, seconds = {}, {}
        for name, update in ways.items():
            torch.manual_seed(i)
            begin = time.perf_counter()
            losses[name] = {k: v.item() for k, v in update(batch).items() if k.startswith("loss")}
            seconds[name] = time.perf_counter() - begin
        apart = {k: abs(v - losses["compiled"][k]) / max(abs(v), 1.0) for k, v in losses["eager"].items()}
        worst = max(apart, key=apart.__getitem__)
        pairs = zip(eager.parameters(), compiled.parameters(), strict=True)
        weights = max((a - b).abs().max().item() for a, b in pairs)
        took = ", ".join(f"{name} {s:.1f} s" for name, s in seconds.items())
        print(f"update {i + 1}: losses within {apart[worst]:.1e}, weights within {weights:.1e}; {took}")
        if apart[worst] > 1e-4 or weights > 1e-4:
            raise SystemExit("the compiled update differs: wanted losses and weights within 1e-4")


if __name__ == "__main__":
    main()
