"""The table of docs/parallel.md: one rank of several layouts of recipes/dense-70b.toml.

    python3 bench/plan_table.py target/release/aerogel
"""

import json
import pathlib
import subprocess
import sys
import time

RECIPE = "recipes/dense-70b.toml"
PAGE = pathlib.Path("docs/parallel.md")
START, END = "<!-- table -->", "<!-- end of table -->"
# Name, changes of the recipe, and the ranks that are shown.
LAYOUTS = [
    ("16 x 8 x 8, ZeRO-1, bitwise", [], [0, 32, 1023]),
    ("16 x 8 x 8, ZeRO-1, fast", ["train.determinism=fast"], [0]),
    (
        "32 x 8 x 4, ZeRO-1, fast",
        ["train.determinism=fast", "parallel.mesh={data=32,pipe=4,tensor=8}"],
        [0],
    ),
    ("1,024 x 1 x 1, ZeRO-3", ["parallel.mesh={data=1024}", "parallel.preset=zero3"], [0]),
]


def gigabytes(n):
    return f"{n / 1e9:.2f}"


def row(binary, name, changes, rank):
    command = [binary, "plan", RECIPE, *changes, "--rank", str(rank), "--json"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if not done.stdout:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    plan = json.loads(done.stdout)
    memory = plan["memory"]
    pipeline = plan.get("pipeline")
    wire = sum(c["wire_bytes"] for c in plan["communication"])
    activations = memory["activations_bytes"] + memory["in_flight_bytes"]
    columns = [
        name,
        str(rank),
        gigabytes(memory["parameters_bytes"]),
        gigabytes(memory["gradients_bytes"]),
        gigabytes(memory["master_bytes"] + memory["optimizer_bytes"]),
        gigabytes(activations),
        gigabytes(memory["total_bytes"]),
        gigabytes(wire),
        f"{100 * pipeline['bubble']:.1f} %" if pipeline else "",
        f"{seconds:.1f}",
    ]
    return "| " + " | ".join(columns) + " |"


def main():
    binary = sys.argv[1]
    head = [
        "layout (data x tensor x pipe)",
        "rank",
        "parameters",
        "gradients",
        "master and optimizer",
        "activations",
        "total",
        "on the wire a step",
        "bubble",
        "planned in, s",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, changes, ranks in LAYOUTS:
        lines += [row(binary, name, changes, rank) for rank in ranks]
    table = "\n".join(lines)
    page = PAGE.read_text()
    before, rest = page.split(START)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{START}\n\n{table}\n\nSizes in GB (10^9 bytes).\n\n{END}{after}")
    print(table)


if __name__ == "__main__":
    main()
