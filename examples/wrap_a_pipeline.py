"""Make an unmodified diffusers pipeline sparse, in one reversible line.

    python examples/wrap_a_pipeline.py

Runs the small pipeline that ships; a real one is loaded in the same way:
``WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", torch_dtype=torch.bfloat16)``.
"""

import torch

import vidsparse
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.pipelines.running.video import to_uint8, write_video


def main(frames: int = 25, size: int = 160, steps: int = 20) -> None:
    pipe = load_pipeline()
    with vidsparse.sparsify(pipe, "balanced", density=0.3) as session:
        video = pipe(
            "a blue circle swaying over a light yellow dotted background",
            num_frames=frames,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(0),
        ).frames[0]
    write_video("circle.mp4", to_uint8(video), fps=12)
    print(session.summary())
    print("density of each step:", [round(d, 2) for d in session.stats.step_density.values()])


if __name__ == "__main__":
    main()
