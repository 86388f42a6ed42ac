"""Pages in a real browser, without a network."""

import shutil
import subprocess

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def browse(page, directory, *flags, picture=None):
    """The page as the browser has drawn it; with a picture of it, where one is asked for."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=10000",
        f"--user-data-dir={directory}",
        *flags,
    ]
    if picture is not None:
        subprocess.run(
            [*command, f"--screenshot={picture}", f"file://{page}"], check=True, capture_output=True, timeout=120
        )
    done = subprocess.run([*command, "--dump-dom", f"file://{page}"], check=True, capture_output=True, timeout=120)
    return done.stdout.decode()


def works(directory):
    """Whether there is a browser that starts here at all."""
    if BROWSER is None:
        return False
    (directory / "blank.html").write_text("<!doctype html><p>here</p>")
    try:
        return "here" in browse(directory / "blank.html", directory / "blank")
    except (subprocess.SubprocessError, OSError):
        return False
