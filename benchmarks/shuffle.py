"""Cost of an epoch's shuffle: computed where it is needed, beside `jax.random.permutation`.

    python benchmarks/shuffle.py                 10 million rows
    python benchmarks/shuffle.py --rows 1000000

Seconds without compilation, of the first batch (for which a permutation must be complete) and of each batch
after it; and the largest memory of a process that does nothing else, less that of one that does nothing. The
state of training is kept on every device and in every checkpoint, a stored permutation with it.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

BATCH, BATCHES = 1024, 50


def measure(way: str, rows: int) -> None:
    """Print seconds of the first batch, of a later one, and the peak memory in MB."""
    import jax
    import jax.numpy as jnp

    from dogfit.autoencoder.shuffle import shuffled_rows

    key = jax.random.key(0)
    first, later = 0.0, [0.0]
    if way != "nothing":
        computed = jax.jit(
            lambda start: shuffled_rows(
                jnp.zeros(BATCH, jnp.int32), start + jnp.arange(BATCH), jax.random.key_data(key), rows
            )
        )
        permute = jax.jit(lambda key: jax.random.permutation(key, rows))
        take = jax.jit(lambda order, start: jax.lax.dynamic_slice(order, (start,), (BATCH,)))
        if way == "computed":
            computed(0).block_until_ready()
            begin = time.perf_counter()
            computed(0).block_until_ready()
        else:
            permute = permute.lower(key).compile()
            begin = time.perf_counter()
            order = permute(key).block_until_ready()
            first = time.perf_counter() - begin
            take(order, 0).block_until_ready()
            begin = time.perf_counter()
            take(order, 0).block_until_ready()
        first += time.perf_counter() - begin
        later = []
        for number in range(1, BATCHES):
            begin = time.perf_counter()
            (
                computed(number * BATCH) if way == "computed" else take(order, number * BATCH)
            ).block_until_ready()
            later.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(first, statistics.median(later), peak)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--way", choices=["nothing", "computed", "stored"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way, arguments.rows)
        return
    found = {}
    for way in ("nothing", "computed", "stored"):
        command = [sys.executable, __file__, "--way", way, "--rows", str(arguments.rows)]
        found[way] = [
            float(x) for x in subprocess.run(command, check=True, capture_output=True).stdout.split()
        ]
    print(
        f"{arguments.rows:,} rows, batches of {BATCH:,}; {os.cpu_count()} cores, {platform.machine()}, ",
        end="",
    )
    print(f"load {os.getloadavg()[0]:.1f}\n")
    print(
        "| shuffle | first batch, s | a later batch, ms | memory, MB | kept in the state, MB |\n"
        + "|---" * 5
        + "|"
    )
    for way, says, kept in (
        ("computed", "computed (a Feistel network)", 0),
        ("stored", "`jax.random.permutation`, once an epoch", 4 * arguments.rows / 2**20),
    ):
        first, later, peak = found[way]
        memory = max(peak - found["nothing"][2], 0)
        print(f"| {says} | {first:.4f} | {1e3 * later:.2f} | {memory:,.0f} | {kept:,.0f} |")


if __name__ == "__main__":
    main()
