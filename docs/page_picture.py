"""The picture of the service's page: `python docs/page_picture.py` writes docs/page.png from a run that it serves.

Needs a tuned run (`make demo` makes `runs/demo/gems`), the packages of `.[train,serve]` and a Chromium.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
# Of the page hardly more are used; so the file is small.
COLOURS = 48


@contextlib.contextmanager
def served(workdir):
    """The address of the service, once it answers."""
    command = [sys.executable, "-m", "gems_jax.cli", "serve", "--workdir", workdir, "--base_model", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            line = process.stdout.readline()
            if not line.startswith("serve: http://"):
                raise RuntimeError(f"the service did not start: {line}")
            address = line.split()[1]
            while not is_ready(address):
                if process.poll() is not None:
                    raise RuntimeError("the service has ended before it was ready")
                time.sleep(1)
            yield address
        finally:
            process.terminate()


def is_ready(address):
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=10):
            return True
    except urllib.error.HTTPError:
        return False


def take(address, size, out):
    """Writes the page at an address, as a window of a size shows it, as a PNG of few colours."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise RuntimeError("there is no chromium here: install one (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "page.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}", f"--window-size={size}", f"--screenshot={taken}"]
        # The clock of the page stands still while an answer is waited for.
        command += ["--virtual-time-budget=20000", address]
        subprocess.run(command, check=True, timeout=600, stderr=subprocess.DEVNULL)
        with Image.open(taken) as picture:
            few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(out, optimize=True)


def main():
    """Serves a run, asks on its page, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/demo/gems")
    parser.add_argument("--user", default="user0003")
    parser.add_argument("--query", default="lamp")
    parser.add_argument("--size", default="1200,1000", help="of the window, in pixels")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "page.png")
    options = parser.parse_args()
    with served(options.workdir) as address:
        take(f"{address}/#user={options.user}&query={options.query}", options.size, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
