"""What the scripts of this folder share: children with their memory, medians, tables."""

import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
AEROGEL = HERE.parent / "target" / "release" / "aerogel"
PREPARED = HERE / "data" / "prepared"
MIB = 1 << 20


class Failed(SystemExit):
    """A child ended badly: what it was, and the end of what it said."""


def run(command):
    """Runs a command to its end: stdout, and the most memory that it had, in bytes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text = out.read().decode()
        if child.returncode != 0:
            words = " ".join(str(part) for part in command)
            said = err.read().decode()[-3000:]
            raise Failed(f"{words}: ended with {child.returncode}\n{said}")
        return text, usage.ru_maxrss * 1024


def arguments(parser, rounds, steps):
    """The options of all scripts."""
    parser.add_argument("--rounds", type=int, default=rounds, help="of all programs by turns")
    parser.add_argument("--steps", type=int, default=steps, help="a round, of each program")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--dtype", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--python", default=sys.executable, help="has torch and numpy")
    parser.add_argument("--aerogel", default=str(AEROGEL))


def prepare(aerogel, recipe, changes=()):
    """Prepares a recipe's data, so that no round pays for it."""
    run([aerogel, "--data", PREPARED, "prepare", recipe, *changes])


def train(aerogel, recipe, steps, changes=(), runs=None):
    """Trains; gives the step events and the peak memory. The run is thrown away, unless there is
    a folder for it."""
    if runs is None:
        with tempfile.TemporaryDirectory(dir=HERE / "data") as folder:
            return train(aerogel, recipe, steps, changes, folder)
    command = [aerogel, "--runs", runs, "--data", PREPARED, "train", recipe, "--json", "-q"]
    text, peak = run([*command, f"train.steps={steps}", *changes])
    events = [json.loads(line) for line in text.splitlines()]
    return [e for e in events if e["event"] == "step"], peak


def tokens(name, split, most=math.inf):
    """The first tokens, or all, of a prepared split, as a numpy array."""
    import numpy

    folder = PREPARED / name
    index = json.loads((folder / "index.json").read_text())
    width = {"u8": numpy.uint8, "u16": "<u2", "u32": "<u4"}[index["token_type"]]
    parts, left = [], most
    for shard in index["splits"][split]["shards"]:
        if left > 0:
            # A header of 1,024 bytes, then the tokens.
            count = min(left, shard["tokens"])
            parts.append(numpy.fromfile(folder / shard["file"], width, count, offset=1024))
            left -= len(parts[-1])
    return numpy.concatenate(parts)


def pytorch(python, script, *args):
    """Runs a script of this folder that prints one JSON object; adds its peak memory."""
    text, peak = run([python, HERE / script, *args])
    return {**json.loads(text.splitlines()[-1]), "peak_bytes": peak}


def median_after(seconds, warmup):
    """The median of a run's steps without the first ones."""
    left = seconds[warmup:] if len(seconds) > warmup else seconds
    return statistics.median(left)


def compare(ours, theirs):
    """Ratios of two lists of rates, round by round: median, lowest, highest."""
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    return {
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(ratios[0], 3),
        "ratio_max": round(ratios[-1], 3),
    }


def table(head, rows):
    """A table as this project's documents have it."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
