"""`python -m benchmarks`: dcube beside the plain reference, on this machine."""

import argparse
import sys
from pathlib import Path

from benchmarks.run import report, run, write
from benchmarks.sizes import SIZES
from dcube.errors import InputError
from dcube.training.runtime import pick_device


def main() -> None:
    """Run the cases asked for; a line per case when it is done, the table at the end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME", help="cases whose names begin so, for example step2")
    parser.add_argument("--size", choices=SIZES, metavar="small|paper|card", help="default: small and paper")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed calls per side (default 5)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps (default cpu)")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    try:
        device = pick_device(options.device)
        rows, rates = [], {}
        for size in [options.size] if options.size else ["small", "paper"]:
            for kind, value in run(size, options.only, options.repeats, device, changes=options.set):
                if kind == "rates":
                    rates[size] = value
                else:
                    rows.append(value)
                    print(report([value]).splitlines()[1], file=sys.stderr, flush=True)
                if options.json:  # after every case: the whole takes the better part of an hour
                    write(options.json, rows, rates, device)
    except InputError as error:
        parser.error(str(error))
    print(report(rows))
    for size, rate in ((size, rate) for size, rate in rates.items() if rate):
        print(f"matrix rate at the shapes of {size}, GFLOP/s:", ", ".join(f"{k} {v:g}" for k, v in rate.items()))
    for row in rows:
        if row["note"]:
            print(f"{row['size']} {row['name']}: {row['note']}")


if __name__ == "__main__":
    main()
