"""Read mutated decks and count what comes of them: ``python tests/benchmarks/fuzz_reader.py [N] [seed]``.

Anything but a deck or one of our errors is printed with its traceback, and the exit code is 1.
"""

from __future__ import annotations

import random
import re
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "spice"))

from deck_mutations import mutated
from reader_decks import DECKS

from circuitsim.errors import CircuitsimError
from circuitsim.spice.reader import parse_deck


def main(count: int, seed: int) -> int:
    warnings.simplefilter("error")
    decks = list(DECKS.values())
    outcomes: Counter[str] = Counter()
    broken = 0
    slowest = (0.0, -1)
    start = time.perf_counter()
    for k in range(count):
        text = mutated(random.Random(f"{seed}:{k}"), decks)
        begin = time.perf_counter()
        try:
            parse_deck(text)
            outcomes["read"] += 1
        except CircuitsimError as error:
            rule = re.sub(r"node .*|'.*|[0-9].*|(?<=^)[\w.{}]+: ", "...", error.rule.splitlines()[0])
            outcomes[f"{type(error).__name__}: {rule[:60]}"] += 1
        except Exception:
            broken += 1
            outcomes["BROKEN"] += 1
            if broken <= 10:
                print(f"--- deck {k}\n{text}\n")
                traceback.print_exc()
        slowest = max(slowest, (time.perf_counter() - begin, k))
    seconds = time.perf_counter() - start
    for outcome, number in outcomes.most_common():
        print(f"{number:8d}  {outcome}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count} decks in {seconds:.0f} s; slowest {slowest[0]:.3f} s (deck {slowest[1]}); {memory:.0f} MiB"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:3]]
    sys.exit(main(*(numbers + [100_000, 0][len(numbers) :])))
