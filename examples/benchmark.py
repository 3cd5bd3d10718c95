"""How fast a training step is, ours beside PyTorch's and Keras', on this machine.

    python examples/benchmark.py                 one step (forward, backward, Adam) of six networks
    python examples/benchmark.py --layers        where the time of our step goes, and its floor
    python examples/benchmark.py --involution    the involution layer alone, on RedNet's shapes
    python examples/benchmark.py --memory        what a step needs beyond its data
    python examples/benchmark.py --scaling       1 thread against 2, batches of 32 to 1024
    python examples/benchmark.py --startup       from a new process to its first step
    python examples/benchmark.py --device cuda   steps and kernels on an NVIDIA GPU

Whichever of PyTorch and Keras is installed takes part. The networks are the report's, with the same
starting weights in each framework (peers_pytorch.py, peers_keras.py); all take turns in one
process, block by block, and the median of the blocks counts. Threads: NUMBA_NUM_THREADS, 2 unless
set.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

# First of all but the standard library, as it sets the number of threads.
from benchmark_tools import (
    BATCHES,
    NETWORKS,
    OURS,
    THREADS,
    frameworks,
    machine,
    network_and_batch,
    print_row,
    training_step,
)

from scratchnet.backends import BackendError, get_backend
from scratchnet.profiling import measure


def compare(options: argparse.Namespace) -> list[dict]:
    """Samples a second of every framework on every network."""
    makers = frameworks(options.peers)
    rows = []
    print(f"Training step (forward, backward, Adam), float32: samples/s, {options.blocks} blocks")
    print_row(["network", "batch", *makers, "ours / best peer"])
    for network in options.networks:
        model, x, labels = network_and_batch(network)
        # Peers first: they copy the weights, which our steps then change.
        steps = {name: make(model, x, labels) for name, make in reversed(makers.items())}
        seconds = measure(steps, options.blocks, options.seconds)
        rates = {name: len(x) / statistics.median(seconds[name]) for name in makers}
        peers = [rate for name, rate in rates.items() if name != OURS]
        ratio = rates[OURS] / max(peers) if peers else None
        cells = [f"{rate:,.0f}" for rate in rates.values()]
        print_row([network, str(len(x)), *cells, f"{ratio:.2f} x" if ratio else "no peer"])
        rows.append(
            {"network": network, "batch": len(x), "samples_per_second": rates, "ratio": ratio}
            | {"seconds_per_step_by_block": seconds}
        )
    return rows


MEMORY_STEPS = 5


def memory(options: argparse.Namespace) -> list[dict]:
    """What a training step adds to a process, each framework and network in its own."""
    makers = frameworks(options.peers)
    print(
        "Memory in MB: the highest resident size during five training steps, less the resident\n"
        "size just before them, with framework, data and network loaded and one step of two\n"
        "images done (so that code and libraries are not counted). In brackets: that of the\n"
        "whole process. Faults: pages a warm step takes anew from the system, ours."
    )
    print_row(["network", *makers, "ours / best peer", "faults"])
    rows = []
    for network in options.networks:
        results = {name: child("memory", network, name) for name in makers}
        ours = results[OURS]["step_mb"]
        peers = [result["step_mb"] for name, result in results.items() if name != OURS]
        ratio = ours / min(peers) if peers else None
        cells = [f"{r['step_mb']:,.0f} ({r['process_mb']:,.0f})" for r in results.values()]
        faults = f"{results[OURS]['faults_per_step']:.1f}"
        print_row([network, *cells, f"{ratio:.2f}" if ratio else "no peer", faults])
        rows.append({"network": network, "frameworks": results, "ratio": ratio})
    return rows


def measure_memory(network: str, framework: str) -> dict:
    """In a process of its own: see `memory`. Linux only, as it reads /proc."""
    model, x, labels = network_and_batch(network)
    make = frameworks(framework != OURS)[framework]
    make(model, x[:2], labels[:2])()
    step = make(model, x, labels)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    for _ in range(MEMORY_STEPS):
        step()
    peak = resident("VmHWM")
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"step_mb": peak - before, "process_mb": peak, "faults_per_step": faults / 20}


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak) of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


SCALING_BATCHES = (32, 64, 128, 256, 512, 1024)


def scaling(options: argparse.Namespace) -> list[dict]:
    """Our steps with one thread and with two, and with growing batches."""
    print("Threads: our samples/s, each count in processes of its own, taking turns")
    print_row(["network", "1 thread", "2 threads", "2 / 1"])
    rows = []
    for network in options.networks:
        settings = f"{max(1, options.blocks // 2)},{options.seconds}"
        seconds = {"1": [], "2": []}
        for threads in ("1", "2", "1", "2"):
            seconds[threads] += child("threads", network, settings, threads=threads)
        batch = BATCHES[network.split("/")[0]]
        one, two = (batch / statistics.median(seconds[threads]) for threads in ("1", "2"))
        print_row([network, f"{one:,.0f}", f"{two:,.0f}", f"{two / one:.2f} x"])
        rows.append({"network": network, "1": one, "2": two})
    print(f"\nBatches: our samples/s with {THREADS} threads")
    print_row(["network", *map(str, SCALING_BATCHES)])
    for network, row in zip(options.networks, rows, strict=True):
        steps = {
            batch: training_step(*network_and_batch(network, batch)) for batch in SCALING_BATCHES
        }
        seconds = measure(steps, options.blocks, options.seconds)
        row["batches"] = {n: n / statistics.median(s) for n, s in seconds.items()}
        print_row([network, *(f"{rate:,.0f}" for rate in row["batches"].values())])
    return rows


def measure_threads(network: str, settings: str) -> list[float]:
    """In a process of its own: seconds a step, by block."""
    blocks, seconds = settings.split(",")
    step = training_step(*network_and_batch(network))
    return measure({OURS: step}, int(blocks), float(seconds))[OURS]


def startup(options: argparse.Namespace) -> list[dict]:
    """Seconds from the start of a process to the end of its first training step."""
    makers = frameworks(options.peers)
    print("Start-up: seconds from a new process to its first training step, the lowest of three")
    print("after a first that fills the caches of compiled code")
    print_row(["network", *makers])
    rows = []
    for network in options.networks:
        row = {}
        for name in makers:
            runs = []
            for _ in range(4):
                began = time.perf_counter()
                child("startup", network, name)
                runs.append(time.perf_counter() - began)
            row[name] = min(runs[1:])
        print_row([network, *(f"{seconds:.2f}" for seconds in row.values())])
        rows.append({"network": network, "seconds": row})
    return rows


def first_step(network: str, framework: str) -> None:
    """In a process of its own: everything up to the first training step."""
    model, x, labels = network_and_batch(network)
    frameworks(framework != OURS)[framework](model, x, labels)()


CHILDREN = {"memory": measure_memory, "threads": measure_threads, "startup": first_step}


def child(task: str, *arguments: str, threads: str = THREADS):
    """Run one of CHILDREN in a process of its own, and return its result."""
    names = ("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, __file__, "--child", task, *arguments],
        env=os.environ | dict.fromkeys(names, threads),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{task} {' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    question = parser.add_mutually_exclusive_group()
    for name in ("layers", "involution", "memory", "scaling", "startup"):
        question.add_argument(f"--{name}", dest="question", action="store_const", const=name)
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NETWORK",
        help=f"of {', '.join(NETWORKS)}; all of them unless given",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu unless given")
    parser.add_argument("--blocks", type=int, default=9, help="medians are over so many (9)")
    parser.add_argument("--seconds", type=float, default=0.4, help="length of a block (0.4)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="ours alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every number there")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task, *arguments = options.child
        print(json.dumps(CHILDREN[task](*arguments)))
        return
    if options.device == "cuda":
        if options.question:
            parser.error(f"--{options.question} is measured on the CPU, not with --device cuda")
        try:
            get_backend("cuda")
        except BackendError as error:
            sys.exit(str(error))
        options.question = "cuda"
    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"other work is under way here (load {busy:.1f}), which disturbs the figures")
    if options.peers:
        absent = [name for name in ("torch", "keras", "tensorflow") if not find_spec(name)]
        for name in absent:
            print(f"{name} is not installed here and takes no part")
    questions = {"memory": memory, "scaling": scaling, "startup": startup}
    if options.question in ("layers", "involution"):
        questions[options.question] = getattr(
            importlib.import_module("benchmark_layers"), options.question
        )
    if options.question == "cuda":
        questions["cuda"] = importlib.import_module("benchmark_cuda").on_gpu
    rows = questions.get(options.question, compare)(options)
    if options.json:
        result = {"machine": where, "question": options.question or "step", "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
