"""Draws products for hard routing, in MVTec AD's layout, for `moleflow benchmark`.

    python benchmarks/draw.py FOLDER --many 60 [--train 40 --good 10 --defective 12 --size 256 --seed 0]
    python benchmarks/draw.py FOLDER --look-alikes

`--many` draws that many different products: seven parts, each in varieties that lie otherwise, have another
colour or another detail. `--look-alikes` draws pairs that differ in one detail: a gear, and a gear that by
design lacks one of its holes. What is there already stays.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moleflow.data.factory import look_alikes, varieties, write_product


def main() -> None:
    options = arguments()
    names = varieties(options.many) if options.many else [name for pair in look_alikes() for name in pair]
    for number, name in enumerate(names, 1):
        if not (options.folder / name).exists():
            write_product(
                name,
                options.folder,
                train=options.train,
                test_good=options.good,
                test_defective=options.defective,
                size=options.size,
                seed=options.seed,
            )
        print(f"{number}/{len(names)} {name}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--many", type=int, metavar="N", help="how many products")
    which.add_argument("--look-alikes", action="store_true", help="pairs that differ in one detail")
    parser.add_argument("--train", type=int, default=40, help="images of each product")
    parser.add_argument("--good", type=int, default=10, help="good test images of each")
    parser.add_argument("--defective", type=int, default=12, help="defective test images of each")
    parser.add_argument("--size", type=int, default=256, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
