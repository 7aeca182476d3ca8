"""What `effllm report` costs: processor time of the command, size of the page, and how long Chromium takes to show it.

    python benchmarks/report.py [--rows 500] [--results results] [--repeats 5] [--output figures.json]

Of a made-up table of many rows (that of recommend.py) and, with --results, of a directory with tables. What Python and
the imports take is measured apart and not subtracted. Without Chromium, showing the page is not measured.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from recommend import cpu_seconds, write_table

IMPORTS = "import effllm.cli, effllm.report.command"


def seconds_to_show(page: Path, repeats: int) -> list[float] | None:
    """From asking for the page until it is laid out and its script has run, in s; None without Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    found = []
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not run as root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        for _ in range(repeats):
            opened = browser.new_page()
            begin = time.perf_counter()
            opened.goto(page.as_uri())
            opened.evaluate("document.body.getBoundingClientRect().height")
            found.append(time.perf_counter() - begin)
            opened.close()
        browser.close()
    return found


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    imports = [cpu_seconds([sys.executable, "-c", IMPORTS]) for _ in range(arguments.repeats)]
    print(f"imports: {statistics.median(imports):.2f} s of CPU")
    figures = {"imports_cpu_s": imports}
    with tempfile.TemporaryDirectory() as directory:
        write_table(Path(directory, "table9.csv"), arguments.rows)
        sources = {f"{arguments.rows} rows": Path(directory)}
        if arguments.results:
            sources[str(arguments.results)] = arguments.results
        for name, source in sources.items():
            page = Path(directory, "page.html")
            command = [sys.executable, "-m", "effllm.cli", "report", str(source), "--output", str(page)]
            cpu = [cpu_seconds(command) for _ in range(arguments.repeats)]
            shown = seconds_to_show(page, arguments.repeats)
            figures[name] = {"cpu_s": cpu, "bytes": page.stat().st_size, "shown_s": shown}
            told = "not measured" if shown is None else f"{statistics.median(shown):.2f} s"
            size = page.stat().st_size / 1e6
            print(f"{name}: {statistics.median(cpu):.2f} s of CPU, {size:.2f} MB, shown in {told}")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
