#!/usr/bin/env python3
"""Cuts the two fonts of the chart down to the characters it may print.

    pip install fonttools
    npm pack @fontsource/inter@5.3.0
    python make_fonts.py fontsource-inter-5.3.0.tgz
"""

import io
import sys
import tarfile
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

HERE = Path(__file__).parent
CHARACTERS = "".join(map(chr, range(32, 127))) + "–—·×−•…±°"

with tarfile.open(sys.argv[1]) as package:
    read = lambda name: package.extractfile(f"package/{name}").read()
    (HERE / "LICENSE-Inter").write_bytes(read("LICENSE"))
    for weight, style in ((400, "Regular"), (600, "SemiBold")):
        font = TTFont(io.BytesIO(read(f"files/inter-latin-{weight}-normal.woff")))
        font.flavor = None
        options = Options()
        options.layout_features = ["kern", "tnum"]
        options.hinting = False
        subsetter = Subsetter(options)
        subsetter.populate(text=CHARACTERS)
        subsetter.subset(font)
        # One family, so that `font-family: Inter` with a weight finds both files.
        for name_id, text in ((16, "Inter"), (17, style)):
            font["name"].setName(text, name_id, 3, 1, 0x409)
        font.save(HERE / f"Inter-{style}.ttf")
