"""Build the viewer's page into the package, so that who installs normscan needs no node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MISSING = (
    "the viewer's page is not built, and npm or the folder web, which build it, are missing. Install "
    "Node 20 or newer and run again; without the page all but `normscan view` works."
)


class ViewerHook(BuildHookInterface):
    """Runs npm where there is no page yet; a source distribution brings it along."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page before the files are gathered; an editable install goes without."""
        web = Path(self.root, "web")
        page = Path(self.root, "src", "normscan", "viewer", "page", "index.html")
        if page.exists() or version == "editable":
            return
        if shutil.which("npm") is None or not web.is_dir():
            if self.target_name == "sdist":  # what is released is complete
                raise RuntimeError(MISSING)
            self.app.display_warning(MISSING)
            return
        # What these need only to be installed, such as fetching browsers, is not run.
        install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        for command in (install, ["npm", "run", "build"]):
            subprocess.run(command, cwd=web, check=True)
