"""Pictures of scenes: rays marched through signed distances (Hart 1996, sphere tracing), all pixels of a batch at once.

Dimensions: B scenes, N parts of all scenes, K rays that pass close to a part, H = W = size pixels.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .grounds import GROUNDS
from .shapes import BOUND, FLAT, FOOT, SHAPES, TOP
from .world import COLOURS, Part, Scene

BATCH = 64  # scenes at a time, for the memory's sake
STEPS = 16
FIELD_OF_VIEW = 0.6  # radians
STRIPES_PER_RADIUS = 1.9
STRIPES_AROUND = 8  # a ring
SPOTS_PER_RADIUS = 1.6
CONTRAST = 0.75  # of the grounds
FOCUS = 7.0  # how far from the camera their pattern begins to fade
SINK = 0.12  # by which a part stands in the one below


@torch.no_grad()
def render(scenes: Sequence[Scene], size: int = 128) -> Tensor:
    """Pictures (B, 3, size, size) in [0, 1] in float32."""
    eye, rays = _camera(scenes, size)
    light = _lights(scenes)
    picture = _ground(scenes, eye, rays, light)
    depth = torch.full((len(scenes), size * size), math.inf)
    placed = [(b, part, foot) for b, scene in enumerate(scenes) for part, foot in stacked(scene.parts)]
    for shape in SHAPES:
        group = [item for item in placed if item[1].shape == shape]
        if group:
            _draw(shape, group, scenes, eye, rays, light, picture, depth, size)
    return picture.clamp(0, 1).view(len(scenes), size, size, 3).permute(0, 3, 1, 2).contiguous()  # BHWC -> BCHW


def rendered(scenes: Sequence[Scene]) -> Iterator[Tensor]:
    """Pictures of any number of scenes, some at a time."""
    for i in range(0, len(scenes), BATCH):
        yield render(scenes[i : i + BATCH])


def rendered_bytes(scenes: Sequence[Scene]) -> Tensor:
    """Pictures (B, 3, 128, 128) of any number of scenes, as bytes."""
    return torch.cat([(pictures * 255).round().byte() for pictures in rendered(scenes)])


def stacked(parts: Sequence[Part]) -> list[tuple[Part, float]]:
    """Each part and the height of its origin."""
    placed, top = [], 0.0
    for part in parts:
        origin = top + FOOT[part.shape] * part.size
        placed.append((part, origin))
        top = origin + (TOP[part.shape] - SINK) * part.size
    return placed


def height(parts: Sequence[Part]) -> float:
    """Of the whole object."""
    part, origin = stacked(parts)[-1]
    return origin + TOP[part.shape] * part.size


def _camera(scenes: Sequence[Scene], size: int) -> tuple[Tensor, Tensor]:
    """Eyes (B, 3) and unit rays (B, H * W, 3). The object's middle is in view, and the whole of it fits in."""
    views = [scene.view for scene in scenes]
    middle = torch.tensor([[0.0, height(scene.parts) / 2, 0.0] for scene in scenes])
    extent = torch.tensor([max(1.2, 0.1 + height(scene.parts) / 2) for scene in scenes])
    elevation = torch.tensor([view.elevation for view in views])
    zoom = torch.tensor([view.zoom for view in views])
    distance = 1.3 * extent / zoom / math.tan(FIELD_OF_VIEW / 2)
    zero = torch.zeros_like(elevation)
    forward = torch.stack([zero, -elevation.sin(), -elevation.cos()], 1)
    up = torch.stack([zero, elevation.cos(), -elevation.sin()], 1)
    right = torch.tensor([1.0, 0.0, 0.0]).expand(len(scenes), 3)
    eye = middle - forward * distance[:, None]
    grid = (torch.arange(size) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(-grid, grid, indexing="ij")
    shift = torch.tensor([view.shift for view in views])
    u = (u.reshape(1, -1) - 2 * shift[:, :1]) * math.tan(FIELD_OF_VIEW / 2)  # (B, H * W)
    v = (v.reshape(1, -1) - 2 * shift[:, 1:]) * math.tan(FIELD_OF_VIEW / 2)
    rays = forward[:, None] + u[..., None] * right[:, None] + v[..., None] * up[:, None]
    return eye, rays / rays.norm(dim=-1, keepdim=True)


def _lights(scenes: Sequence[Scene]) -> Tensor:
    """Unit vectors (B, 3) to the light, which is never behind the object as the camera sees it."""
    azimuth = torch.tensor([scene.view.light[0] for scene in scenes])
    elevation = torch.tensor([scene.view.light[1] for scene in scenes])
    side, front = azimuth.sin() * elevation.cos(), azimuth.cos().abs() * elevation.cos()
    return torch.stack([side, elevation.sin(), front], 1)


def _ground(scenes: Sequence[Scene], eye: Tensor, rays: Tensor, light: Tensor) -> Tensor:
    """Colours (B, H * W, 3) of the ground with the object's shadow and glow on it; far away it fades into haze."""
    t = eye[:, None, 1] / (-rays[..., 1]).clamp(min=1e-3)
    x, z = eye[:, None, 0] + t * rays[..., 0], eye[:, None, 2] + t * rays[..., 2]
    colours = torch.empty_like(rays)
    for b, scene in enumerate(scenes):
        seed = torch.tensor(float(scene.view.seed % 997))
        place = float(scene.view.seed % 61)
        colours[b] = GROUNDS[scene.view.ground](x[b] + place, z[b] + place, seed) * scene.view.brightness
    mean = colours.mean(1, keepdim=True)
    sharp = torch.exp(-(t - FOCUS).clamp(min=0) / FOCUS)  # what is finer than a pixel would only alias
    colours = torch.lerp(mean, colours, CONTRAST * sharp[..., None])
    tall = torch.tensor([height(scene.parts) for scene in scenes])[:, None]
    reach = 0.35 * tall / light[:, 1:2]  # how far from the foot the shadow's middle lies
    away_x, away_z = x + light[:, :1] * reach, z + light[:, 2:] * reach
    shadow = 0.55 * torch.exp(-(away_x.square() + away_z.square()) / 0.9)
    contact = 0.5 * torch.exp(-(x.square() + z.square()) / 0.5)
    colours *= (1 - torch.maximum(shadow, contact))[..., None]
    glow = torch.stack([_glow(scene) for scene in scenes])  # (B, 3)
    colours += glow[:, None] * torch.exp(-(x.square() + z.square()) / 2.2)[..., None]
    haze = 1 - torch.exp(-((t - 12).clamp(min=0) / 30))
    return torch.lerp(colours, torch.tensor([0.80, 0.85, 0.90]), haze[..., None])


def _glow(scene: Scene) -> Tensor:
    lit = [torch.tensor(COLOURS[part.colour]) * part.size for part in scene.parts if part.material == "glowing"]
    return 0.9 * sum(lit) if lit else torch.zeros(3)


def _draw(shape, group, scenes, eye, rays, light, picture, depth, size) -> None:
    """Draw all parts of one shape into picture and depth, in place."""
    where = torch.tensor([b for b, _, _ in group])  # (N,)
    radius = torch.tensor([part.size for _, part, _ in group])
    yaw = torch.tensor([scenes[b].view.yaw for b, _, _ in group])
    middle = torch.zeros(len(group), 3)
    middle[:, 1] = torch.tensor([origin for _, _, origin in group])
    start = _turned(eye[where] - middle, yaw) / radius[:, None]  # (N, 3), in the part's own frame
    beams = _turned(rays[where], yaw[:, None])  # (N, H * W, 3)
    closest = -(start[:, None] * beams).sum(-1)
    missed_by = (start.square().sum(-1)[:, None] - closest.square()).clamp(min=0)
    part, pixel = torch.nonzero(missed_by < BOUND**2, as_tuple=True)  # (K,)
    origin, beam = start[part], beams[part, pixel]
    pixel_width = 2 * math.tan(FIELD_OF_VIEW / 2) / size
    t, cover = _march(SHAPES[shape], origin, beam, closest[part, pixel], pixel_width)
    seen = cover > 0
    part, pixel, t, cover, origin, beam = (x[seen] for x in (part, pixel, t, cover, origin, beam))
    point = origin + t[:, None] * beam
    colour = _shaded(shape, group, scenes, part, point, beam, _turned(light[where], yaw)[part])
    scene = where[part]
    t = t * radius[part]
    nearer = t < depth[scene, pixel]
    cover = cover * (nearer | (cover < 1))  # an edge blends over what is there
    cover = torch.where(nearer, cover, 0.0)
    picture[scene, pixel] = torch.lerp(picture[scene, pixel], colour, cover[:, None])
    solid = nearer & (cover > 0.5)
    depth[scene[solid], pixel[solid]] = t[solid]


def _march(distance, origin: Tensor, beam: Tensor, closest: Tensor, pixel_width: float) -> tuple[Tensor, Tensor]:
    """How far along each ray (K,) the surface is, and how much of the pixel it covers, 0-1."""
    t = (closest - BOUND).clamp(min=0)
    best, best_t = torch.full_like(t, math.inf), t
    for _ in range(STEPS):
        d = distance(tuple((origin + t[:, None] * beam).unbind(1)))
        better = d < best
        best, best_t = torch.where(better, d, best), torch.where(better, t, best_t)
        t = t + d
    return best_t, (1 - best / (best_t * pixel_width)).clamp(0, 1)


def _shaded(shape, group, scenes, part: Tensor, point: Tensor, beam: Tensor, light: Tensor) -> Tensor:
    """Colours (K, 3) of points (K, 3) on the surfaces of parts, all in the parts' own frames."""
    base = torch.tensor([COLOURS[p.colour] for _, p, _ in group])[part]
    material = torch.tensor([MATERIAL_NUMBERS[p.material] for _, p, _ in group])[part]
    other = torch.tensor([_second_colour(p.colour) for _, p, _ in group])[part]
    bright = torch.tensor([scenes[b].view.brightness for b, _, _ in group])[part]
    patterned = ((material == STRIPED) & _is_stripe(shape, point)) | ((material == SPOTTED) & _is_spot(shape, point))
    base = torch.where(patterned[:, None], other, base)
    normal = _normals(SHAPES[shape], point)
    diffuse = (normal * light).sum(1).clamp(min=0)
    sky = 0.5 + 0.5 * normal[:, 1]
    lit = base * ((0.42 + 0.2 * sky + 0.55 * diffuse) * bright)[:, None]
    mirrored = beam - 2 * (beam * normal).sum(1, keepdim=True) * normal
    spot = (mirrored * light).sum(1).clamp(min=0)
    facing = (-(beam * normal).sum(1)).clamp(0, 1)
    gloss = 0.9 * (spot.pow(12) * 1.4).clamp(max=1) + 0.35 * (1 - facing).square() + 0.22 * mirrored[:, 1].clamp(min=0)
    lit = torch.where(
        (material == SHINY)[:, None], torch.lerp(lit * 0.95, torch.ones(3), gloss[:, None].clamp(0, 1)), lit
    )
    glow = base * (1.0 + 0.1 * facing)[:, None] + 0.3 * facing.square()[:, None]
    return torch.where((material == GLOWING)[:, None], glow, lit)


def _second_colour(colour: str) -> tuple[float, float, float]:
    return COLOURS["black"] if colour == "white" else COLOURS["white"]


def _is_stripe(shape: str, point: Tensor) -> Tensor:
    along = point[:, 1] * STRIPES_PER_RADIUS + 0.2
    if shape == "ring":
        along = torch.atan2(point[:, 2], point[:, 0]) * (STRIPES_AROUND / (2 * math.pi))
    return torch.remainder(along, 1) < 0.38


def _is_spot(shape: str, point: Tensor) -> Tensor:
    cell = point * SPOTS_PER_RADIUS
    if shape == "ring":  # a lattice around and along the tube
        x, y, z = point.unbind(1)
        tube = torch.atan2(y, (x * x + z * z).sqrt() - 0.7) * (3 / (2 * math.pi)) - 0.5
        cell = torch.stack([torch.atan2(z, x) * (STRIPES_AROUND / (2 * math.pi)), tube], 1)
    if shape in FLAT:
        cell = cell[:, :2]
    return (cell - cell.round()).square().sum(1) < 0.12


def _normals(distance, point: Tensor, h: float = 1e-3) -> Tensor:
    """Unit gradients (K, 3) of the distance, from four values (Quilez's tetrahedron)."""
    corners = point.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    slope = sum(corner * distance(tuple((point + h * corner).unbind(1)))[:, None] for corner in corners)
    return slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-9)


def _turned(vectors: Tensor, yaw: Tensor) -> Tensor:
    """Vectors (..., 3) turned around the upright axis by -yaw (...)."""
    x, y, z = vectors.unbind(-1)
    cos, sin = yaw.cos(), yaw.sin()
    return torch.stack([cos * x - sin * z, y.expand_as(cos * x), sin * x + cos * z], -1)


MATTE, SHINY, STRIPED, SPOTTED, GLOWING = range(5)
MATERIAL_NUMBERS = {"matte": MATTE, "shiny": SHINY, "striped": STRIPED, "spotted": SPOTTED, "glowing": GLOWING}
