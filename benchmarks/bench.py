"""Measures the notebook and its peers side by side and writes the table benchmarks/results.md.

    python -m benchmarks.bench            # what `make bench` runs; about half an hour on two cores
    python -m benchmarks.bench --quick    # one short round, to try it out

Nothing else should run on the machine meanwhile. The programs take turns, so that a slow minute of
the machine hits them all. PyTorch is measured if it is installed: pip install torch==2.13.0. The
form with compiled distortions needs a compiler for C++, such as g++.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.accuracy import machine
from benchmarks.contestants import BEST, CONTESTANTS
from tools.notebook import DATA_PATH, ROOT, settings

RESULTS = ROOT / "benchmarks" / "results.md"

# Small programs for what a run does once. Each finds a number.
ONCE = {
    "seconds for loading both sets, with checksums": """
import cifar10
cifar10.data_path = {data_path!r}
start = time.perf_counter()
cifar10.load_training_data(), cifar10.load_test_data()
number = time.perf_counter() - start
""",
    "seconds for the first 10 iterations, with compiling": """
optimize = run_cells({data_path!r}, {folder!r})["optimize"]
start = time.perf_counter()
optimize(10)
number = time.perf_counter() - start
""",
    "seconds for classifying the test set of 10,000": """
notebook = run_cells({data_path!r}, {folder!r})
notebook["predict_cls"](notebook["images_test"][:512], None, notebook["cls_test"][:512])
start = time.perf_counter()
notebook["predict_cls_test"]()
number = time.perf_counter() - start
""",
    "MB more memory after 2,000 iterations than after 1,000": """
optimize = run_cells({data_path!r}, {folder!r})["optimize"]
pages = []
for _ in range(2):
    optimize({iterations})
    pages.append(int(open("/proc/self/statm").read().split()[1]))
number = (pages[1] - pages[0]) * resource.getpagesize() / 1e6
""",
}


def run_once(code, quick):
    """Run a small program in a process of its own and return its number."""
    with tempfile.TemporaryDirectory() as folder:
        code = code.format(data_path=DATA_PATH, folder=folder, iterations=100 if quick else 1000)
        code = f"import resource, time\nfrom tools.notebook import run_cells\n{code}\nprint(number)"
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"A benchmark failed:\n{result.stderr}")
    return float(result.stdout.split()[-1])


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
    """Run the notebook from scratch and again. Return the seconds of the latter and the peak memory in GB."""
    result = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "tools.run_notebook", "--build", folder],
                cwd=ROOT,
                env=settings(DATA_PATH, f"{folder}/checkpoints", last_iteration=10),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            # The largest process of this run is the kernel that runs the notebook.
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit("The notebook failed: try `python -m tools.run_notebook`.")
            result.append((time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9))
    return result[1][0], max(memory for _, memory in result)


def spread(values, form):
    """Format median, minimum and maximum."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(contestants, speeds, unit, factor=1):
    """Return the lines of a table of speeds, compared with the first one."""
    lines = [f"| program | {unit} per second | speed of the first ÷ speed of the program |", "|---|---|---|"]
    first, *_ = speeds.values()
    for name, speed in speeds.items():
        ratio = spread([a / b for a, b in zip(first, speed, strict=True)], ".2f")
        numbers = spread([factor * number for number in speed], ".1f" if factor == 1 else ".0f")
        lines.append(f"| {contestants[name][0]} | {numbers} | {'' if speed is first else ratio} |")
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round, and no file is written")
    quick = parser.parse_args().quick
    rounds = 1 if quick else 13

    def can_run(name):
        has_compiler = shutil.which("g++") or shutil.which("clang++")
        has_torch = importlib.util.find_spec("torch")
        return not name.startswith("pytorch") or (has_torch and (has_compiler or "compiled" not in name))

    lines = [
        f"Measured by `make bench` on {machine('torch')}. Median (minimum to maximum) of {rounds} rounds, in "
        "which the programs take turns.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        speeds = take_turns(list(filter(can_run, CONTESTANTS)), rounds, 100, folder)
        lines += table(CONTESTANTS, speeds, "iterations")
        speeds = take_turns(list(filter(can_run, BEST)), rounds, 1 if quick else 4, folder)
        lines += table(BEST, speeds, "images", factor=500)
    lines += ["| what a run does once | measured |", "|---|---|"]
    for title, code in ONCE.items():
        lines.append(
            f"| {title} | {spread([run_once(code, quick) for _ in range(1 if quick else 3)], '.2f')} |"
        )
    seconds, memory = run_whole_notebook()
    lines.append(f"| seconds for the whole notebook with a checkpoint, without training | {seconds:.0f} |")
    lines.append(f"| GB of memory at the peak of the whole notebook | {memory:.2f} |")
    print("\n" + "\n".join(lines))
    if not quick:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
