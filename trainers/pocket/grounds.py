"""Colours of the ten grounds of the pocket world at points of the plane y = 0. Lengths are in radii of an object.

Every texture is coarse on purpose: what an autoencoder that shrinks 128 px eightfold cannot keep would only blur.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def value_noise(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    """Smooth noise in [0, 1] with one value per unit of length. seed broadcasts against x and z."""
    x0, z0 = x.floor(), z.floor()
    u, v = x - x0, z - z0
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    near = torch.lerp(_hash(x0, z0, seed), _hash(x0 + 1, z0, seed), u)
    far = torch.lerp(_hash(x0, z0 + 1, seed), _hash(x0 + 1, z0 + 1, seed), u)
    return torch.lerp(near, far, v)


def _hash(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    """A number in [0, 1) per whole point."""
    return torch.frac((torch.sin(x * 12.9898 + z * 78.233 + seed) * 43758.547).abs())


def _mix(a: tuple[float, ...], b: tuple[float, ...], share: Tensor) -> Tensor:
    """Colours (..., 3) between a and b."""
    share = share.unsqueeze(-1)
    return share.new_tensor(a) * (1 - share) + share.new_tensor(b) * share


def _step(x: Tensor, edge: float, width: float) -> Tensor:
    return ((x - edge) / width + 0.5).clamp(0, 1)


def grass(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    blades = value_noise(x * 3.6, z * 1.05, seed)
    return _mix((0.10, 0.34, 0.08), (0.42, 0.68, 0.18), 0.6 * blades + 0.4 * value_noise(x * 0.8, z * 0.8, seed + 1))


def sand(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    ripples = 0.5 + 0.5 * torch.sin(3.6 * z + 2.5 * value_noise(x * 0.6, z * 0.6, seed))
    return _mix((0.80, 0.66, 0.42), (0.95, 0.84, 0.60), ripples)


def snow(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    return _mix((0.76, 0.83, 0.93), (0.97, 0.98, 1.0), value_noise(x * 0.9, z * 0.9, seed))


def water(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    warp = 2.5 * value_noise(x, z, seed)
    waves = 0.5 + 0.5 * torch.sin(2.8 * z + warp + 0.6 * x) * torch.sin(1.2 * x + warp)
    return _mix((0.04, 0.22, 0.50), (0.30, 0.62, 0.84), waves)


def leaves(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    kind = value_noise(x * 1.5, z * 1.5, seed)
    floor = _mix((0.30, 0.12, 0.05), (0.86, 0.46, 0.08), _step(kind, 0.42, 0.14))
    return torch.lerp(floor, floor.new_tensor((0.93, 0.72, 0.16)), _step(kind, 0.68, 0.14).unsqueeze(-1))


def bricks(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    row = (z * 1.05).floor()
    along = x * 0.55 + 0.5 * torch.remainder(row, 2)
    joint = torch.minimum(_edge(z * 1.05) / 1.05, _edge(along) / 0.55)
    brick = _mix((0.52, 0.18, 0.12), (0.72, 0.30, 0.20), _hash(along.floor(), row, seed))
    return torch.lerp(brick.new_tensor((0.78, 0.74, 0.68)), brick, _step(joint, 0.09, 0.06).unsqueeze(-1))


def wood(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    board = (x * 0.7).floor()
    grain = value_noise(x * 2.8, z * 0.4 + board * 7, seed)
    planks = _mix((0.48, 0.28, 0.13), (0.70, 0.46, 0.24), 0.6 * grain + 0.4 * _hash(board, board, seed))
    return planks * (0.45 + 0.55 * _step(_edge(x * 0.7) / 0.7, 0.06, 0.06)).unsqueeze(-1)


def tiles(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    checker = torch.remainder((x * 0.55).floor() + (z * 0.55).floor(), 2)
    return _mix((0.25, 0.27, 0.30), (0.85, 0.85, 0.83), checker)


def carpet(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    zigzag = (torch.remainder(x, 2.0) - 1.0).abs()
    return _mix((0.30, 0.08, 0.36), (0.72, 0.42, 0.70), _step(torch.remainder(z + zigzag, 1.8), 0.9, 0.15))


def cobblestones(x: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    row = (z * 0.85).floor()
    along = x * 0.85 + 0.5 * torch.remainder(row, 2)
    u, v = torch.frac(along.abs()) - 0.5, torch.frac((z * 0.85).abs()) - 0.5
    stone = _step(0.46 - (u * u + v * v).sqrt(), 0.0, 0.12)
    shade = 0.7 + 0.3 * _hash(along.floor(), row, seed)
    return _mix((0.16, 0.16, 0.15), (0.62, 0.62, 0.60), stone * shade)


def _edge(x: Tensor) -> Tensor:
    """Distance to the next whole number."""
    return (x - x.round()).abs()


GROUNDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "grass": grass,
    "sand": sand,
    "snow": snow,
    "water": water,
    "leaves": leaves,
    "bricks": bricks,
    "wood": wood,
    "tiles": tiles,
    "carpet": carpet,
    "cobblestones": cobblestones,
}
