"""From a scene in µm to an image: dye concentrations, light through the slide, optics and sensor."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histo.phantom.anatomy import Scene
from histo.phantom.drawing import Canvas, Drawing, Plane, draw_nuclei
from histo.phantom.noise import SmoothField
from histo.phantom.patients import Patient
from histo.phantom.structures import Fibres, Ring


def render(
    generator: np.random.Generator, scene: Scene, patient: Patient, shape: tuple[int, int], mpp: float
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]:
    """Image uint8 [3, H, W] of a scene, its instance map int32 [H, W] and nucleus types uint8 [K+1] (0 first).

    Light follows Beer and Lambert as in Ruifrok & Johnston (2001): I = glass · 10^−(C·M), with concentrations
    C [H·W, 3] and unit optical density vectors M [3, 3]. Then come the blur of the optics and the noise of the sensor.
    """
    canvas = Canvas(shape, mpp)
    drawing = draw_nuclei(generator, scene.nuclei, canvas)
    haematoxylin, eosin = _draw_tissue(generator, scene, patient, canvas, drawing)
    erythrocytes = _draw_distractors(generator, scene, canvas, haematoxylin, eosin)
    _stain_nuclei(generator, scene, canvas, drawing, haematoxylin, eosin, erythrocytes)

    matrix = patient.stains * (patient.strength * np.exp(generator.normal(0, 0.05, 3)))[:, None]
    thickness = 1 + 0.07 * SmoothField(generator, scene.extent, 30.0).on(shape, mpp)
    if scene.tissue is not None:
        thickness *= _step(scene.tissue.on(shape, mpp), 2.0)
    concentrations = np.stack([haematoxylin, eosin, erythrocytes]) * thickness
    density = np.einsum("sc,shw->chw", matrix.astype(np.float32), concentrations)
    image = np.exp(density * np.float32(-np.log(10)))
    image *= patient.glass.astype(np.float32)[:, None, None]
    blur = patient.blur * np.exp(generator.normal(0, 0.2))
    # Half a pixel stands for the sensor's own aperture and softens the hard outlines drawn above.
    sigma = np.hypot(blur / mpp, 0.5)
    image = ndimage.gaussian_filter(image, (0, sigma, sigma), mode="nearest", truncate=2.5)
    image += 2 * generator.standard_normal(image.shape, dtype=np.float32)
    types = np.concatenate([np.zeros(1, np.uint8), drawing.nuclei["type"]])
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), drawing.instances, types


def _draw_tissue(
    generator: np.random.Generator, scene: Scene, patient: Patient, canvas: Canvas, drawing: Drawing
) -> tuple[Plane, Plane]:
    """Concentrations of haematoxylin and eosin without nuclei: stroma, epithelium, lumina and clefts."""
    shape, mpp, extent = canvas.shape, canvas.mpp, scene.extent
    patches = SmoothField(generator, extent, 10.0).on(shape, mpp)
    granules = SmoothField(generator, extent, 1.1).on(shape, mpp)
    broad, fine = _fibre_texture(generator, scene.fibres, canvas)

    if scene.label == "lymphoid":
        eosin = np.clip(0.13 + 0.05 * patches + 0.05 * fine + 0.03 * granules, 0.01, None)
        haematoxylin = np.clip(0.07 + 0.03 * patches + 0.025 * granules, 0, None)
        gaps = _step(0.6 * patches + 0.5 * broad - 0.55, 0.15)
    else:
        eosin = 0.27 * patient.fibrosis * np.exp(0.14 * patches + 0.15 * broad + 0.20 * fine + 0.10 * granules)
        basophilia = generator.uniform(0.04, 0.13)
        haematoxylin = np.clip(basophilia * (1 + 0.45 * patches + 0.3 * broad + 0.3 * fine + 0.2 * granules), 0, None)
        gaps = _step(broad + 0.5 * patches - 1.9, 0.15)
    eosin *= 1 - 0.9 * gaps
    haematoxylin *= 1 - 0.95 * gaps

    cells = _epithelial_cytoplasm(generator, scene, canvas, drawing, patches, granules)
    if scene.nests is not None:
        nest = _step(scene.nests.on(shape, mpp), 0.06)
        haematoxylin += nest * (cells[0] - haematoxylin)
        eosin += nest * (cells[1] - eosin)
    for ring in scene.rings:
        _draw_ring(ring, canvas, cells, haematoxylin, eosin)
    return haematoxylin, eosin


def _epithelial_cytoplasm(
    generator: np.random.Generator, scene: Scene, canvas: Canvas, drawing: Drawing, patches: Plane, granules: Plane
) -> tuple[Plane, Plane]:
    """Granular, somewhat basophilic cytoplasm with membranes half-way between neighbouring nuclei."""
    basophilia = generator.uniform(0.08, 0.24)
    membrane = np.exp(-(((drawing.second - drawing.nearest) / 0.7) ** 2))
    haematoxylin = basophilia * (1 + 0.3 * patches + 0.2 * granules) + 0.05 * membrane
    eosin = generator.uniform(0.17, 0.27) * (1 + 0.18 * patches + 0.15 * granules) + 0.10 * membrane
    return np.clip(haematoxylin, 0, None), np.clip(eosin, 0, None)


def _draw_ring(ring: Ring, canvas: Canvas, cells: tuple[Plane, Plane], haematoxylin: Plane, eosin: Plane) -> None:
    """Wall, lumen and mucin of one gland or vessel, in place."""
    place = canvas.window(ring.y, ring.x, ring.reach + 2.5)
    if place is None:
        return
    where, dy, dx = place
    depth = ring.depth(ring.y + dy, ring.x + dx).astype(np.float32)
    wall = _step(ring.wall - depth, 0.3)
    lumen = _step(-depth, 0.3)
    if ring.kind == "gland":
        # The brush border is denser eosin, the basement membrane a thin pink line.
        border = 0.16 * np.exp(-(((depth - 0.9) / 0.8) ** 2))
        basement = 0.14 * np.exp(-(((depth - ring.wall) / 0.6) ** 2))
        inside = (cells[0][where], cells[1][where] + border)
        eosin[where] += basement
    else:
        inside = (haematoxylin[where], eosin[where] + 0.12)
    haematoxylin[where] += wall * (inside[0] - haematoxylin[where])
    eosin[where] += wall * (inside[1] - eosin[where])
    haematoxylin[where] *= 1 - lumen
    eosin[where] *= 1 - 0.97 * lumen
    for y, x, size in ring.goblets:
        spot = canvas.window(y, x, size + 1)
        if spot is not None:
            there, gy, gx = spot
            drop = _step(size - np.hypot(gy, gx), 0.25)
            haematoxylin[there] += drop * (0.07 - haematoxylin[there])
            eosin[there] += drop * (0.03 - eosin[there])


def _draw_distractors(
    generator: np.random.Generator, scene: Scene, canvas: Canvas, haematoxylin: Plane, eosin: Plane
) -> Plane:
    """Add debris to the two dyes in place; return the concentration of red blood cells."""
    erythrocytes = np.zeros(canvas.shape, np.float32)
    for y, x, size in scene.erythrocytes:
        place = canvas.window(y, x, 1.3 * size)
        if place is not None:
            where, dy, dx = place
            distance = np.hypot(dy, dx * np.float32(generator.uniform(0.8, 1.25)))
            disc = _step(size - distance, 0.2) * (0.75 + 0.25 * (distance / size) ** 2)
            erythrocytes[where] = np.maximum(erythrocytes[where], 0.5 * disc)
            eosin[where] *= 1 - 0.8 * disc
            haematoxylin[where] *= 1 - 0.9 * disc
    for y, x, size, share in scene.debris:
        place = canvas.window(y, x, 2 * size)
        amount, squash = generator.uniform(0.15, 0.4), generator.uniform(0.5, 2.0)
        if place is not None:
            where, dy, dx = place
            blob = np.float32(amount) * np.exp(-(((dy * dy * squash + dx * dx / squash) / size**2) ** 2))
            haematoxylin[where] += np.float32(1.3 * share) * blob
            eosin[where] += np.float32(1 - share) * blob
    return erythrocytes


def _stain_nuclei(
    generator: np.random.Generator,
    scene: Scene,
    canvas: Canvas,
    drawing: Drawing,
    haematoxylin: Plane,
    eosin: Plane,
    erythrocytes: Plane,
) -> None:
    """Chromatin in place: clumped texture, darker rim, nucleoli; less eosin above and below the nucleus."""
    clumps = SmoothField(generator, scene.extent, 0.8).on(canvas.shape, canvas.mpp)
    clouds = SmoothField(generator, scene.extent, 2.2).on(canvas.shape, canvas.mpp)
    inside = drawing.instances > 0
    nucleus = drawing.nuclei[drawing.instances[inside] - 1]
    texture = np.tanh(0.8 * clumps[inside] + 0.6 * clouds[inside])
    rim = np.exp(-((drawing.depth[inside] / np.float32(0.5)) ** 2))
    chromatin = nucleus["density"] * (1 + nucleus["contrast"] * texture) + nucleus["rim"] * rim
    spots = drawing.nucleoli[inside]
    haematoxylin[inside] = np.clip(chromatin + 0.35 * spots, 0.05, None) + 0.3 * haematoxylin[inside]
    eosin[inside] = 0.35 * eosin[inside] + 0.12 * spots + 0.03
    erythrocytes[inside] = 0


def _fibre_texture(generator: np.random.Generator, fibres: Fibres, canvas: Canvas) -> tuple[Plane, Plane]:
    """Broad bundles and single fibres, each about mean 0 and variance 1: noise stretched along the fibres."""
    y, x = (((np.arange(pixels) + 0.5) * canvas.mpp).astype(np.float32) for pixels in canvas.shape)
    cosine, sine = np.float32(np.cos(fibres.angle)), np.float32(np.sin(fibres.angle))
    along = cosine * x[None, :] + sine * y[:, None]
    across = cosine * y[:, None] - sine * x[None, :]
    across = across + np.float32(fibres.wave) * fibres.field.on(canvas.shape, canvas.mpp)
    textures = []
    for length, thickness in ((26.0, 3.2), (14.0, 0.8)):
        table = generator.standard_normal((128, 128), dtype=np.float32)
        table = ndimage.gaussian_filter(table, 0.6, mode="wrap") / np.float32(0.45)
        row = across / thickness
        # The shear lays the table's columns nearly along the fibres; upright they would show as a weave.
        column = along / length + 0.6 * row
        textures.append(ndimage.map_coordinates(table, [row, column], order=1, mode="grid-wrap"))
    return textures[0], textures[1]


def _step(distance: NDArray[np.floating], softness: float) -> Plane:
    """0 to 1 where `distance` rises through 0, over a few `softness` µm."""
    return (0.5 * (1 + np.tanh(distance / np.float32(softness)))).astype(np.float32)
