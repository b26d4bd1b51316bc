"""From the end of a stroke to the answer: `python tests/measure_demo.py http://127.0.0.1:7860/`, while the demo runs.

In chromium, by the page's own clock: from the event `pointerup` until the text of the answer has been set.
"""

import os
import shutil
import statistics
import sys

from drawn import DIGITS, answered, draw
from playwright.sync_api import sync_playwright

ROUNDS = 4  # of the ten digits
TIMED = """() => {
  window.times = []
  let lifted = null
  document.addEventListener("pointerup", () => { lifted = performance.now() }, true)
  new MutationObserver(() => { if (lifted !== null) { times.push(performance.now() - lifted); lifted = null } })
    .observe(document.getElementById("text"), {attributes: true, attributeFilter: ["data-answered"]})
}"""


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.locator("#network option").first.wait_for(state="attached")
        page.evaluate(TIMED)
        for _ in range(ROUNDS):
            for strokes in DIGITS.values():
                page.keyboard.press("Escape")
                for stroke in strokes:
                    draw(page, [stroke])
                    answered(page)
        times = page.evaluate("times")
        browser.close()
    tenths = statistics.quantiles(times, n=10)
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(
        f"{len(times)} strokes: median {tenths[4]:.0f} ms, a tenth over {tenths[8]:.0f} ms, slowest {max(times):.0f} ms"
    )
    print(f"{os.cpu_count()} cores, load {load}")


if __name__ == "__main__":
    main(*sys.argv[1:])
