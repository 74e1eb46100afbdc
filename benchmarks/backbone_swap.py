"""Every backbone in the same world model: equal parameters, equal updates, the same data.

    python benchmarks/backbone_swap.py --out RUNS            # everything, then the report
    python benchmarks/backbone_swap.py --out RUNS --report   # tables and plots of what is there
    python benchmarks/backbone_swap.py --out RUNS --quick    # each thing once, about a minute

What is measured is cut into cells, one JSON file each; a cell that is there with the same settings is not
run again. Cells run in processes of one thread each, those that take times alone. Plots and tables go to
docs/results/; there, what has no cells in RUNS stays as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from swap import cells, report

import wmkit


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where data and results lie")
    parser.add_argument("--parts", nargs="+", default=list(cells.PARTS), choices=cells.PARTS)
    known = wmkit.available("backbone")
    parser.add_argument("--backbones", nargs="+", default=known, choices=known)
    parser.add_argument("--updates", type=int, default=1000, help="of each world model")
    parser.add_argument("--recall-updates", type=int, default=600, help="of each backbone in the corridor")
    parser.add_argument("--recall-model-updates", type=int, default=4000, help="of each world model there")
    parser.add_argument("--window", type=int, default=64, help="of transformers in the part short_window")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="cells side by side, one thread each")
    parser.add_argument("--quick", action="store_true", help="everything once and tiny, into OUT/quick")
    parser.add_argument("--report", action="store_true", help="only tables and plots")
    parser.add_argument("--docs", type=Path, default=report.RESULTS, help="where they go")
    args = parser.parse_args(arguments)
    args.out = args.out.resolve()
    if args.quick:
        args.updates = args.recall_updates = args.recall_model_updates = 2
        args.out, args.docs = args.out / "quick", args.out / "quick"
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if not args.report:
        cells.run(args)
    for name, table in report.write(args.out, args.docs, cells.PARTS).items():
        print(f"\n{name}\n\n{table}")


if __name__ == "__main__":
    main()
