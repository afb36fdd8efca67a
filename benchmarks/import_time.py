"""How long `import everloop` takes after torch and gymnasium: `python benchmarks/import_time.py`.

Wanted: at most 0.25 s. Each round is a new interpreter with warm file caches. The result is the
median of ten rounds.
"""

import statistics
import subprocess
import sys

ROUNDS = 10
CODE = """
import sys, time
import torch, gymnasium
began = time.perf_counter()
import everloop
print(time.perf_counter() - began)
packages = "stable_baselines3", "matplotlib", "scipy", "sklearn", "tensorboard"
heavy = [name for name in packages if name in sys.modules]
print(",".join(heavy) or "none")
"""


def main() -> None:
    command = [sys.executable, "-c", CODE]
    rounds = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(ROUNDS)
    ]
    seconds = statistics.median(float(seconds) for seconds, _ in rounds)
    print(f"import everloop after torch and gymnasium: {seconds:.3f} s (median of {ROUNDS})")
    print(f"heavy packages that it imported: {rounds[-1][1]}")


if __name__ == "__main__":
    main()
