"""Measures the notebook and its peers side by side and writes the table benchmarks/results.md.

    python -m benchmarks.bench            # what `make bench` runs; about 24 minutes on two cores
    python -m benchmarks.bench --quick    # one short round, to try it out

Nothing else should run on the machine meanwhile. The programs take turns, so that a slow minute of
the machine hits them all. PyTorch is measured if it is installed: pip install torch==2.13.0. The
form with compiled distortions needs a compiler for C++, such as g++.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.notebook import DATA_PATH, ROOT, settings

RESULTS = ROOT / "benchmarks" / "results.md"

TITLES = {
    "notebook": "this notebook, its own `optimize()`",
    "core": "the same on one fixed batch, no input, no distortions",
    "two_replicas": "the same, two replicas by `MirroredStrategy` on the same cores",
    "pytorch": "PyTorch, batched distortions, channels-last, fused Adam",
    "pytorch_compiled": "the same, the distortions compiled by `torch.compile`",
    "obvious": "obvious port: TensorFlow as it comes, `map_fn`, a Python call per step",
    "keras_fit": "Keras `fit` with Keras' random layers",
    "sgemm": "the machine's limit: `sgemm` of the same size",
}

# These train on batches of 500 images.
BEST_TITLES = {
    "best_network": "the exercises' best network, widths 64/256/256, in this notebook",
    "pytorch_best_network": "the same in PyTorch, channels-last, fused SGD",
}

# Small programs for what a run does once. Each prints its seconds.
ONCE = {
    "loading both sets, with checksums": """
import cifar10
cifar10.data_path = {data_path!r}
start = time.perf_counter()
cifar10.load_training_data(), cifar10.load_test_data()
seconds = time.perf_counter() - start
""",
    "first 10 iterations, with compiling": """
from tools.notebook import run_cells
optimize = run_cells({data_path!r}, {folder!r})["optimize"]
start = time.perf_counter()
optimize(10)
seconds = time.perf_counter() - start
""",
    "classifying the test set of 10,000": """
from tools.notebook import run_cells
notebook = run_cells({data_path!r}, {folder!r})
notebook["predict_cls"](notebook["images_test"][:512], None, notebook["cls_test"][:512])
start = time.perf_counter()
notebook["predict_cls_test"]()
seconds = time.perf_counter() - start
""",
}

# Both in one process, where they share what differs between processes, in turns of a third of a second.
INPUT = """
from benchmarks.contestants import CORE
from tools.notebook import run_cells
notebooks = [run_cells({data_path!r}, {folder!r}, replace) for replace in ({{}}, CORE)]
programs = [notebook["train_steps"] for notebook in notebooks]
ten = notebooks[0]["tf"].constant(10)
for number in range(-1, {rounds}):
    seconds = [0.0, 0.0]
    for i in (0, 1) if number % 2 else (1, 0):
        start = time.perf_counter()
        float(programs[i](ten))
        seconds[i] = time.perf_counter() - start
    if number >= 0:  # The first round compiles.
        print("COST", 100 * (seconds[0] / seconds[1] - 1), flush=True)
"""

GROWTH = """
import resource
from tools.notebook import run_cells
optimize = run_cells({data_path!r}, {folder!r})["optimize"]
optimize(100)
for _ in range(10):
    start = time.perf_counter()
    optimize({part})
    memory = open("/proc/self/statm").read().split()[1]
    print("PART", time.perf_counter() - start, int(memory) * resource.getpagesize(), flush=True)
"""


def python(code, **names):
    """Run a program in a process of its own and return what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        code = "import time\n" + code.format(data_path=DATA_PATH, folder=folder, **names)
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"A benchmark failed:\n{result.stderr}")
    return result.stdout


def take_turns(names, rounds, iterations, folder):
    """Return the iterations per second of each program in each round. They may write in the folder."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestants", name],
            cwd=ROOT,
            env=os.environ | {"CIFAR10_DATA_PATH": DATA_PATH, "TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        for name in names
    }
    speeds = {name: [] for name in names}
    try:
        for name, process in processes.items():
            if process.stdout.readline() != "ready\n":
                sys.exit(f"{name} doesn't run: try `python -m benchmarks.contestants {name}`.")
            process.send_signal(signal.SIGSTOP)  # Some go on working when nobody asks them to.
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                process = processes[name]
                process.send_signal(signal.SIGCONT)
                print(iterations, file=process.stdin)
                speeds[name].append(iterations / float(process.stdout.readline()))
                process.send_signal(signal.SIGSTOP)
            print({name: f"{speed[-1]:.1f}" for name, speed in speeds.items()}, flush=True)
    finally:
        for process in processes.values():
            process.kill()
    return speeds


def run_whole_notebook():
    """Run the notebook from scratch and again. Return the seconds of the latter and the peak memory."""
    result = []
    with tempfile.TemporaryDirectory() as folder:
        for iterations in (10, 0):
            command = [sys.executable, "-m", "tools.run_notebook", "--build", folder]
            start = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=settings(DATA_PATH, f"{folder}/checkpoints", iterations),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            # The largest process of this run is the kernel that runs the notebook.
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit("The notebook failed: try `python -m tools.run_notebook`.")
            result.append((time.perf_counter() - start, usage.ru_maxrss * 1024))
    return result[1][0], max(memory for _, memory in result)


def machine(*more_packages):
    """Describe the processor and the versions in a line."""
    model, details = platform.processor() or platform.machine(), []
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        model = re.search(r"model name\s*: (.*)", text)[1] if "model name" in text else model
        # The name alone may be that of several generations: Zen 4 is family 25, Zen 5 is family 26.
        if family := re.search(r"cpu family\s*: (\d+)", text):
            details.append(f"family {family[1]}")
        details += [name for name in ("avx2", "avx512f") if f" {name} " in text]
    versions = []
    for package in ("tensorflow", "keras", "numpy", *more_packages):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = f"{os.cpu_count()} cores of {model} ({', '.join(details) or 'unknown instructions'})"
    return f"{cores}, Python {platform.python_version()}, {', '.join(versions)}"


def spread(values, form):
    """Format median, minimum and maximum."""
    return (
        f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"
    )


def table(titles, speeds, unit, factor=1):
    """Return the lines of a table of speeds, compared with the first one."""
    lines = [f"| program | {unit} per second | speed of the first ÷ speed of the program |", "|---|---|---|"]
    first, *_ = speeds.values()
    for name, speed in speeds.items():
        ratios = [a / b for a, b in zip(first, speed, strict=True)]
        ratio = "" if speed is first else spread(ratios, "{:.2f}")
        numbers = spread([factor * number for number in speed], "{:.1f}" if factor == 1 else "{:.0f}")
        lines.append(f"| {titles[name]} | {numbers} | {ratio} |")
    return [*lines, ""]


def report(speeds, best_speeds, input_cost, once, growth, whole):
    """Return all results as Markdown."""
    rounds = len(speeds["notebook"])
    lines = [
        f"Measured by `make bench` on {machine('torch')}. Median (minimum to maximum) of {rounds} rounds, in "
        "which the programs take turns.",
        "",
        *table(TITLES, speeds, "iterations"),
        *table(BEST_TITLES, best_speeds, "images", factor=500),
    ]
    if "pytorch" not in speeds:
        lines += ["PyTorch is not installed: `pip install torch==2.13.0`", ""]
    lines += ["| what | measured |", "|---|---|"]
    title = f"input and distortions, compared with the rest of an iteration, in {len(input_cost)} short turns"
    first, median, third = statistics.quantiles(input_cost, n=4)
    lines.append(f"| {title} | {median:.1f} (quartiles {first:.1f} to {third:.1f}) % |")
    lines += [f"| {title} | {spread(seconds, '{:.2f}')} s |" for title, seconds in once.items()]
    seconds, memory = whole
    lines.append(f"| whole notebook with a checkpoint, without training | {seconds:.0f} s |")
    lines.append(f"| peak memory of the whole notebook | {memory / 1e9:.2f} GB |")
    (first, before), *_, (last, after) = growth
    part = f"{len(growth)} equal parts of a longer training"
    lines.append(
        f"| time of the last of {part}, compared with the first | {100 * (last / first - 1):+.1f} % |"
    )
    lines.append(f"| memory after the last, compared with the first | {(after - before) / 1e6:+.0f} MB |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round, and no file is written")
    quick = parser.parse_args().quick

    left_out = []
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        left_out = ["pytorch", "pytorch_compiled", "pytorch_best_network"]
    if not (shutil.which("g++") or shutil.which("clang++")):
        left_out.append("pytorch_compiled")
    names, best_names = ([n for n in titles if n not in left_out] for titles in (TITLES, BEST_TITLES))
    rounds = 1 if quick else 13
    with tempfile.TemporaryDirectory() as folder:
        speeds = take_turns(names, rounds, iterations=20 if quick else 100, folder=folder)
        best_speeds = take_turns(best_names, rounds, iterations=1 if quick else 4, folder=folder)
    costs = re.findall(r"COST (\S+)", python(INPUT, rounds=4 if quick else 200))
    input_cost = [float(cost) for cost in costs]
    once = {title: [float(python(code + "print('SECONDS', seconds)").rsplit("SECONDS ", 1)[1])
                    for _ in range(1 if quick else 3)] for title, code in ONCE.items()}  # fmt: skip
    parts = re.findall(r"PART (\S+) (\S+)", python(GROWTH, part=10 if quick else 1000))
    growth = [(float(seconds), float(memory)) for seconds, memory in parts]
    result = report(speeds, best_speeds, input_cost, once, growth, run_whole_notebook())
    print("\n" + result)
    if not quick:
        RESULTS.write_text(result, encoding="utf-8")


if __name__ == "__main__":
    main()
