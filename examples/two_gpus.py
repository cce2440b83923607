"""One video, its sequence shared by several GPUs, sparse.

    torchrun --nproc-per-node 2 examples/two_gpus.py

diffusers splits the tokens over the devices; for the time of attention each holds all tokens of
its share of the heads, and plans for those. Heads are dealt out anew where their densities make
one device wait for the other. Without GPUs two processes of one CPU do the same, through gloo.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from torch.distributed.device_mesh import init_device_mesh

import vidsparse
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.pipelines.running.video import to_uint8, write_video

PROMPT = "a blue circle swaying over a light yellow dotted background"


def share_the_sequence(transformer: Any, devices: int) -> None:
    """Split the sequence by Ulysses over all devices.

    Args:
        transformer: Of a pipeline.
        devices: How many share it; any number of heads and tokens will do.
    """
    config = ContextParallelConfig(ulysses_degree=devices)
    if torch.cuda.is_available():
        transformer.enable_parallelism(config=config)
        return
    # by hand on a CPU, which diffusers does not count as a device
    mesh = init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    config.setup(dist.get_rank(), devices, torch.device("cpu"), mesh)
    for module in transformer.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = ParallelConfig(context_parallel_config=config)
    apply_context_parallel(transformer, config, transformer._cp_plan)


def main() -> None:
    args = parse()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "cpu:gloo")
    pipe = load_pipeline()
    pipe.to("cuda" if on_gpu else "cpu")
    pipe.set_progress_bar_config(disable=dist.get_rank() > 0)
    share_the_sequence(pipe.transformer, dist.get_world_size())
    with vidsparse.sparsify(pipe, "balanced", min_tokens=0) as session:
        video = pipe(
            PROMPT,
            num_frames=args.frames,
            height=args.size,
            width=args.size,
            num_inference_steps=args.steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(0),
        ).frames[0]
    if dist.get_rank() == 0:
        write_video(args.output, to_uint8(video), fps=12)
        print(session.summary())
        print("work of the busier device over the mean, by step:", session.stats.step_imbalance)
    dist.destroy_process_group()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-o", "--output", default="shared.mp4")
    return parser.parse_args()


if __name__ == "__main__":
    main()
