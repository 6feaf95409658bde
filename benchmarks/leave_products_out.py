"""What do options give on products that had no part in choosing them?

    python benchmarks/leave_products_out.py ROOT... [--drawn gear] [--cache DIR] [--kept FILE]

The defaults were settled with the test images of three real products in view. Here every product in turn
is left out: options are chosen on the others and judged on its test images, beside the defaults. Chosen
is the configuration (of `benchmarks/criterion.py`, whose arguments these are) with the highest mean rank
over the other products,

- by each candidate for a criterion without labels, and by the mean rank of all of them;
- by the labelled test images of the other products, which is how defaults come about;
- and, as a bound that nobody can have, by the labels of the very product that is judged.

Printed are image AUROC and pixel AP of every product in per cent, their mean, and the difference of the
mean from the defaults' with a 95 % interval: a bootstrap over products and, for image AUROC, their test
images; the choice is not drawn again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from criterion import (
    CONFIGURATIONS,
    DEFAULT,
    FIGURES,
    Found,
    arguments,
    criteria_of,
    figure_of,
    measured,
    print_setting,
    redraw,
)
from ranking import chosen_on_others, difference, ranks

LABELS, OWN = "labels of the others", "its own labels"


def main() -> None:
    options = arguments(__doc__)
    found = measured(options)
    print_setting(options, found)
    for figure in FIGURES:
        own = [one for one in found if figure != "pixel AP" or one.pixel_ap is not None]
        if len(own) > 1:
            print_table(figure, own, options.draws)


def print_table(figure: str, found: Sequence[Found], draws: int) -> None:
    labelled = figure_of(found, figure)
    default = np.full(len(found), CONFIGURATIONS.index(DEFAULT))
    choices = {name: chosen_on_others(ranks(values)) for name, values in criteria_of(found).items()}
    choices[LABELS] = chosen_on_others(ranks(labelled))
    choices[OWN] = labelled.argmax(axis=1)
    names = [one.product for one in found]
    print(f"\n{figure}, chosen by | {' | '.join(names)} | mean | less the defaults' | chosen most often")
    print("|".join(["---"] * (len(names) + 4)))
    print(f"nothing: the defaults | {cells(labelled, default)} | | {DEFAULT}")
    again = partial(redraw, found) if figure == "image AUROC" else None
    for name, chosen in choices.items():
        gap, (low, high) = difference(labelled, chosen, default, redrawn=again, draws=draws)
        often = CONFIGURATIONS[Counter(chosen.tolist()).most_common(1)[0][0]]
        span = f"{100 * gap:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        print(f"{name} | {cells(labelled, chosen)} | {span} | {often}", flush=True)


def cells(labelled: np.ndarray, chosen: np.ndarray) -> str:
    values = 100 * labelled[np.arange(len(labelled)), chosen]
    return " | ".join(f"{value:.1f}" for value in (*values, values.mean()))


if __name__ == "__main__":
    main()
