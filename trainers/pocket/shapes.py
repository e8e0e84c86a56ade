"""Signed distances of the shapes of the pocket world, and how tall each stands.

Formulas of two-dimensional star, heart and cross after Inigo Quilez's catalogue of distance functions
(https://iquilezles.org/articles/distfunctions2d), extruded and rounded here. A shape fits into the unit sphere around
its origin; y is up and z is the axis of what is extruded.
"""

import math

import torch
from torch import Tensor

ROUNDING = 0.06  # radius of every edge

Point = tuple[Tensor, Tensor, Tensor]  # x, y, z, each of any one shape


def ball(p: Point) -> Tensor:
    x, y, z = p
    return (x * x + y * y + z * z).sqrt() - 0.85


def cube(p: Point) -> Tensor:
    return _box(p, (0.6, 0.6, 0.6))


def cone(p: Point) -> Tensor:
    """Radius 0.75 at the foot, a point at the top, 1.6 tall."""
    x, y, z = p
    side = ((x * x + z * z).sqrt() * 1.6 + (y - 0.8) * 0.75) / math.hypot(1.6, 0.75)
    return _rounded(side + ROUNDING, -(y + 0.8) + ROUNDING)


def cylinder(p: Point) -> Tensor:
    x, y, z = p
    return _rounded((x * x + z * z).sqrt() - 0.6 + ROUNDING, y.abs() - 0.75 + ROUNDING)


def ring(p: Point) -> Tensor:
    """A torus that lies flat."""
    x, y, z = p
    around = (x * x + z * z).sqrt() - 0.7
    return (around * around + y * y).sqrt() - 0.27


def star(p: Point) -> Tensor:
    """Five points, one up."""
    x, y, z = p
    angle = torch.atan2(x, y)
    sector = 2 * math.pi / 5
    angle = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    radius = (x * x + y * y).sqrt()
    u, v = radius * angle.cos(), radius * angle.sin()  # within half a point: tip at (0.95, 0), notch at 36 degrees
    tip, notch = 0.95, (0.46 * math.cos(sector / 2), 0.46 * math.sin(sector / 2))
    edge_u, edge_v = notch[0] - tip, notch[1]
    length = math.hypot(edge_u, edge_v)
    return _extruded(((u - tip) * edge_v - v * edge_u) / length, z, 0.24)


def cross(p: Point) -> Tensor:
    x, y, z = p
    flat = torch.minimum(_rounded(x.abs() - 0.22, y.abs() - 0.76), _rounded(x.abs() - 0.76, y.abs() - 0.22))
    return _extruded(flat, z, 0.24)


def heart(p: Point) -> Tensor:
    x, y, z = p
    size = 1.5
    x, y = x.abs() / size, y / size + 0.52
    lobe = ((x - 0.25).square() + (y - 0.75).square()).sqrt() - math.sqrt(2) / 4
    along = 0.5 * (x + y).clamp(min=0)
    tip = torch.minimum(x.square() + (y - 1).square(), (x - along).square() + (y - along).square()).sqrt()
    flat = torch.where(x + y > 1, lobe, tip * torch.sign(x - y))
    return _extruded(flat * size, z, 0.26)


def _box(p: Point, half: tuple[float, float, float]) -> Tensor:
    x, y, z = (c.abs() - h + ROUNDING for c, h in zip(p, half, strict=True))
    outside = (x.clamp(min=0).square() + y.clamp(min=0).square() + z.clamp(min=0).square()).sqrt()
    return outside + torch.maximum(x, torch.maximum(y, z)).clamp(max=0) - ROUNDING


def _extruded(flat: Tensor, z: Tensor, half_depth: float) -> Tensor:
    return _rounded(flat + ROUNDING, z.abs() - half_depth + ROUNDING)


def _rounded(a: Tensor, b: Tensor) -> Tensor:
    """Distance to where both are negative, with edges rounded."""
    outside = (a.clamp(min=0).square() + b.clamp(min=0).square()).sqrt()
    return outside + torch.maximum(a, b).clamp(max=0) - ROUNDING


SHAPES = {
    "ball": ball,
    "cube": cube,
    "cone": cone,
    "cylinder": cylinder,
    "ring": ring,
    "star": star,
    "cross": cross,
    "heart": heart,
}
FOOT = {  # from the origin down to what the shape stands on
    "ball": 0.85,
    "cube": 0.6,
    "cone": 0.8,
    "cylinder": 0.75,
    "ring": 0.27,
    "star": 0.77,
    "cross": 0.76,
    "heart": 0.76,
}
BOUND = 1.12  # radius of a sphere that holds any of them
TOP = FOOT | {"star": 0.95, "heart": 0.82}
FLAT = ("star", "cross", "heart")  # seen from the side they are only bars, so they never turn that far
