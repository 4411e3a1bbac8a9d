"""Time from the command to the end of the first step, of cold processes on prepared data.

    cargo build --release && python3 bench/start.py [--rounds 9] [--binary target/release/aerogel]
        [recipes/quick.toml] [KEY=VALUE ...]

Prints the median, the lowest and the highest of each milestone in milliseconds after the process
was started. The data is prepared before the first round; every round begins a run of its own, which
is killed after its first step.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def start(binary, recipe, changes, data):
    """Milliseconds to the first event of each kind, up to the first step."""
    seen = {}
    with tempfile.TemporaryDirectory() as runs:
        command = [binary, "train", recipe, "--json", "--quiet", "--resume", "never",
                   "--runs", runs, "--data", data, *changes]
        started = time.monotonic()
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        for line in child.stdout:
            seen.setdefault(json.loads(line)["event"], 1e3 * (time.monotonic() - started))
            if "step" in seen:
                break
        child.kill()
        child.wait()
    if "step" not in seen:
        raise SystemExit("the run ended before its first step; run it by hand to see why")
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", nargs="?", default=str(ROOT / "recipes/quick.toml"))
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--binary", default=str(ROOT / "target/release/aerogel"))
    ask = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        subprocess.run([ask.binary, "prepare", ask.recipe, "--quiet", "--data", data, *ask.changes],
                       check=True, stdout=subprocess.DEVNULL)
        rounds = [start(ask.binary, ask.recipe, ask.changes, data) for _ in range(ask.rounds)]
    print("| until | median, ms | lowest | highest |\n|---|--:|--:|--:|")
    for event in rounds[0]:
        times = [r[event] for r in rounds if event in r]
        print(f"| {event} | {statistics.median(times):.0f} | {min(times):.0f} | {max(times):.0f} |")


if __name__ == "__main__":
    main()
