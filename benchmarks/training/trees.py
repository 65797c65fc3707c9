"""Time and memory of the training step in several working trees, in turn.

    python benchmarks/training/trees.py TREE... --data RUN/tokenize [--preset mini] [--rounds 15] [--threads 1]
        [--paths "attention in C" ...] [--set train.matmul=float32 ...]

Each tree runs in a process of its own, not compiled, with the same fast paths, on the run's train tokens. In every
round each makes one step at each shape of the preset's schedule while the others wait, so what else the machine does
meets all alike. Printed per shape are medians and minima in ms of processor time (with more than one thread: of wall
time) and the most memory that the process has held up to then.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


def step(options: argparse.Namespace) -> None:
    """In a tree's own process: one step for every line of standard input, a fraction of training done."""
    import torch

    from pgolf import config as configs
    from pgolf import runtime as runtimes
    from pgolf.model.gpt import GPT
    from pgolf.model.paths import LOADERS, use_paths
    from pgolf.tokens.loader import Loader
    from pgolf.tokens.shards import TokenStream
    from pgolf.training.trainer import Trainer

    config = configs.load(options.preset, None, options.set)
    runtime = runtimes.choose("cpu", threads=options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    stream = TokenStream.open(sorted(options.data.glob("fineweb_train_*.bin")))
    trainer = Trainer(GPT(config.model).train(), Loader(stream, seed=0), config, runtime)
    for name in options.paths:
        LOADERS[name](trainer.model, runtime.cache)
    use_paths(trainer.model, options.paths)
    fractions = config.train.breakpoints()
    print(json.dumps([[fraction, *config.train.sizes_at(fraction)] for fraction in fractions]), flush=True)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for line in sys.stdin:
        begun = clock()
        trainer.step(float(line))
        spent = clock() - begun
        print(json.dumps([1e3 * spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", help="none: this process makes the steps that it is told to")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    default = ["attention in C", "softmax in C", "head products in C", "copies in C", "norms in C"]
    parser.add_argument("--paths", nargs="*", default=default)
    parser.add_argument("--set", nargs="*", default=["train.matmul=float32"])
    options = parser.parse_args()
    if not options.trees:
        step(options)
        return
    arguments = ["--data", str(options.data.resolve()), "--preset", options.preset, "--threads", str(options.threads)]
    arguments += ["--paths", *options.paths, "--set", *options.set]
    children = {}
    for tree in options.trees:
        environment = {**os.environ, "PYTHONPATH": tree, "OMP_NUM_THREADS": str(options.threads)}
        command = [sys.executable, __file__, *arguments]
        children[tree] = subprocess.Popen(
            command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    shapes = [json.loads(child.stdout.readline()) for child in children.values()][-1]
    for fraction, batch_tokens, length in shapes:
        times, memory = {tree: [] for tree in children}, {}
        for number in range(options.rounds + 2):
            for tree, child in children.items():
                child.stdin.write(f"{fraction}\n")
                child.stdin.flush()
                spent, memory[tree] = json.loads(child.stdout.readline())
                times[tree] += [spent] * (number > 1)  # the first two allocate
        print(f"\n{batch_tokens // length} x {length} tokens")
        for tree, kept in times.items():
            held = f"{memory[tree]:.0f} MB held at most"
            print(f"  {tree}: median {statistics.median(kept):.1f} ms, minimum {min(kept):.1f}; {held}")
    for child in children.values():
        child.stdin.close()
        child.wait()


if __name__ == "__main__":
    main()
