"""A clip that moves like a real one, and what goes wrong with clips."""

import cv2
import numpy as np
import pytest


class Scene:
    """A textured background sliding by 2 pixels a frame right to left, sensor noise on top."""

    def __init__(self, frames=9, height=96, width=128, speed=2):
        rng = np.random.default_rng(0)
        size = (height + 40, width + 40 + speed * frames, 3)
        fine, coarse = (cv2.GaussianBlur(rng.normal(size=size), (0, 0), s) * s for s in (2, 8))
        world = 128 + 40 * (fine + coarse) / (fine + coarse).std()
        self.rng, self.shape = rng, (frames, height, width, 3)
        still = [
            world[20 : 20 + height, 20 + speed * t : 20 + speed * t + width] for t in range(frames)
        ]
        self.exact = np.stack(still)
        self.dense = self.pixels(self.exact + rng.normal(0, 1.5, self.shape))

    @staticmethod
    def pixels(clip):
        return np.clip(np.rint(clip), 0, 255).astype(np.uint8)

    def error(self, decibels):
        """Smooth errors, other ones in each frame."""
        noise = [
            cv2.GaussianBlur(self.rng.normal(size=self.shape[1:]), (0, 0), 3) for _ in self.dense
        ]
        return self.pixels(
            self.dense + np.stack(noise) / np.std(noise) * 255 / 10 ** (decibels / 20)
        )

    def blur(self, sigma=2.0):
        return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in self.dense])

    def flicker(self, levels=6):
        signs = np.where(np.arange(len(self.dense)) % 2, 1, -1).reshape(-1, 1, 1, 1)
        return self.pixels(self.dense + levels * signs)

    def noise(self, levels=5):
        return self.pixels(self.dense + self.rng.normal(0, levels, self.shape))

    def jitter(self, pixels=3):
        shifts = self.rng.integers(-pixels, pixels + 1, (len(self.dense), 2))
        return np.stack([np.roll(f, s, (0, 1)) for f, s in zip(self.dense, shifts, strict=True)])

    def frozen(self):
        return np.repeat(self.dense[:1], len(self.dense), axis=0)


@pytest.fixture
def scene():
    return Scene()


@pytest.fixture
def make_scene():
    return Scene
