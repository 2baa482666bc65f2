"""Float32 products of a linear layer under each precision of PyTorch: time, and error against float64.

It is PyTorch's own setting that is measured: where its products are less than float32, Habilis keeps the default one.

python benchmarks/matmul.py --threads 1
"""

from __future__ import annotations

import argparse
import time

import torch

SIZES = [(64, 64), (256, 256), (512, 256), (256, 512), (4096, 256)]


def best_microseconds(function, repeats=7, budget=0.05):
    best = float("inf")
    for _ in range(repeats):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < budget:
            function()
            count += 1
        best = min(best, (time.perf_counter() - start) / count)
    return best * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    generator = torch.Generator().manual_seed(0)
    print("| batch x width | precision | us | largest error |\n|---|---|---|---|")
    for batch, width in SIZES:
        x = torch.randn(batch, width, generator=generator)
        weight = torch.randn(width, width, generator=generator)
        exact = x.double() @ weight.double().T
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            error = (torch.nn.functional.linear(x, weight) - exact).abs().max().item()
            microseconds = best_microseconds(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight))
            print(f"| {batch} x {width} | {precision} | {microseconds:.0f} | {error:.1e} |")


if __name__ == "__main__":
    main()
