"""python -m multilevel.commands.surfaces FOLDER [parts=50] [camera=second]: write generated photographs of surfaces

For trying a command on a folder of images, such as monitor on photographs by a camera that training has not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multilevel.configuration.command_line import read
from multilevel.recipes.data.sources.surfaces import SIZE, CameraName, PartCount, PictureSize, write_surfaces
from multilevel.runs.exit_status import exit_status
from multilevel.solvers.ranges import Seed, require


@dataclass
class SurfacesSettings:
    """Settings of the command.

    Args:
        parts: number of parts, each with four photographs.
        camera: first or second.
        seed: seed of the parts; ``data=surfaces`` has those of seeds 0 (training) and 1 (test).
        size: pixels per side.
    """

    parts: PartCount = 50
    camera: CameraName = "first"
    seed: Seed = 2
    size: PictureSize = SIZE


def main(arguments: Sequence[str]) -> int:
    """Write the photographs into a new folder."""
    line = read("surfaces", arguments, SurfacesSettings, words=True, recipe=False)
    require("surfaces", " ".join(line.words) or None, len(line.words) == 1, "one folder to write into")
    settings = line.settings
    write_surfaces(Path(line.words[0]), settings.parts, settings.camera, settings.seed, settings.size)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:]), "python -m multilevel.commands.surfaces can be run again"))
