"""Libraries without the network: what is local needs none, and asks for none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vidsparse.kernels.engines.xformers import import_beside_flash_4


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Let nothing ask the hub, as with ``HF_HUB_OFFLINE``.

    diffusers imports every quantizer that is installed, and one of them (bitsandbytes) looks for a
    kernel on the hub as it is imported.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def import_diffusers() -> None:
    """Import what loads a pipeline, without the network and beside xformers and flash-attn-4."""
    import_beside_flash_4()
    with without_network():
        import diffusers.pipelines.pipeline_utils
        import diffusers.quantizers  # noqa: F401
