"""Charts as pictures."""

import io

import numpy as np
import vl_convert
from PIL import Image

from layersift.draw import LayerBars, importance_chart, picture


def pixels(png):
    with Image.open(io.BytesIO(png)) as drawn:
        return np.asarray(drawn.convert("RGB")).astype(int)


def test_a_png_has_few_bytes_and_the_same_looks():
    scores = [0.1 * (i % 7) for i in range(24)]
    chart = importance_chart([LayerBars("a model on some data", scores, (0, 3, 20))])
    found = picture(chart, ".png")
    drawn = bytes(vl_convert.vegalite_to_png(chart.configure(background="white").to_json(), scale=2))
    assert len(found) < len(drawn) / 5
    apart = np.abs(pixels(found) - pixels(drawn)).max(axis=2)
    assert (apart > 8).mean() < 0.005
    colours, counts = np.unique(pixels(drawn).reshape(-1, 3), axis=0, return_counts=True)
    kept = {tuple(colour) for colour in np.unique(pixels(found).reshape(-1, 3), axis=0)}
    assert {tuple(colour) for colour in colours[np.argsort(counts)[-6:]]} <= kept
