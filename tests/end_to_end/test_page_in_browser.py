"""Pages as a reader uses them, in a real browser: headless Chromium, driven by Selenium."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

import known_circuits as known
from interp_core.files.params import project_root
from interp_core.loading import subject_of
from interp_core.page import views
from interp_core.page.document import write_own
from interp_core.page.explore import application
from interp_core.page.report import build
from page_parts import HOSTILE, hostile_page
from small_project import word_tokenizer

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="Chromium is not installed (apt-get install chromium chromium-driver)",
    ),
]


class Browser:
    """A browser with one page open, and everything that it asked for and complained of."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        flags = (
            "headless=new",
            "no-sandbox",
            "disable-dev-shm-usage",
            "disable-gpu",
            "disable-background-networking",
        )

        for flag in (*flags, f"window-size={width},{height}"):
            options.add_argument(f"--{flag}")

        self.driver = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(str(DRIVER))
        )
        # A window has a least width; a telephone is narrower.
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, page: Path) -> None:
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def view(self, kind: str) -> WebElement:
        """The first view of a kind, scrolled to and drawn."""
        root = self.driver.find_element(By.CSS_SELECTOR, f'section[data-view="{kind}"]')
        self.run('arguments[0].scrollIntoView({behavior: "instant"})', root)
        WebDriverWait(self.driver, 20).until(lambda _: root.get_attribute("data-ready") is not None)
        return root

    def draw_all(self) -> None:
        """Scroll through the page, until every view is drawn."""
        for root in self.driver.find_elements(By.CSS_SELECTOR, "[data-view]"):
            self.run('arguments[0].scrollIntoView({behavior: "instant"})', root)
            WebDriverWait(self.driver, 20).until(
                lambda _, root=root: root.get_attribute("data-ready") is not None
            )

    def point_at(self, element: WebElement, x: int = 0, y: int = 0) -> None:
        self.run('arguments[0].scrollIntoView({behavior: "instant", block: "center"})', element)
        ActionChains(self.driver).move_to_element_with_offset(element, x, y).perform()

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address that was asked for since the last call."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (project_root() / "data" / "models").is_dir():
        pytest.skip("the run's models are not here (dvc repro)")

    return build(project_root(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module", params=[1280, 400], ids=["desk", "phone"])
def browser(request: pytest.FixtureRequest, report: Path) -> Iterator[Browser]:
    browser = Browser(width=request.param)
    browser.open(report)
    yield browser
    browser.driver.quit()


def told(root: WebElement) -> str:
    return root.find_element(By.CSS_SELECTOR, ".told").text


def test_every_view_is_drawn_without_a_complaint_and_without_a_request(
    browser: Browser, report: Path
) -> None:
    browser.draw_all()

    assert browser.complaints() == []
    folder = report.parent.as_uri()
    assert [url for url in browser.requests() if not url.startswith((folder, "data:"))] == []


def test_the_page_is_as_wide_as_its_window(browser: Browser) -> None:
    browser.draw_all()
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_a_head_tells_its_score_when_it_is_pointed_at(browser: Browser) -> None:
    root = browser.view("heads")
    cell = root.find_element(By.CSS_SELECTOR, '[data-head="L1H1"]')
    browser.point_at(cell)

    view = json.loads(
        browser.run(
            "return document.getElementById(arguments[0]).textContent",
            f"{root.get_attribute('id')}-data",
        )
    )
    score = view["scores"][0]
    value, low, high = (score[key][1][1] for key in ("value", "low", "high"))
    spelt = [f"{number:.2f}".replace("0.", ".", 1) for number in (value, low, high)]
    assert told(root) == f"L1H1 {spelt[0]} [{spelt[1]}, {spelt[2]}], {score['label']}"


def test_a_click_shows_the_heads_attention_beside_its_control(browser: Browser) -> None:
    root = browser.view("heads")
    cell = root.find_element(By.CSS_SELECTOR, '[data-head="L0H3"]')
    browser.point_at(cell)
    cell.click()

    captions = [one.text for one in root.find_elements(By.CSS_SELECTOR, "figcaption")]
    assert captions == ["L0H3 over the text", "L0H3 over its control"]
    names = root.find_elements(By.CSS_SELECTOR, ".pattern")[0].find_elements(By.TAG_NAME, "text")
    tokens = root.find_elements(By.CSS_SELECTOR, ".text")[0].find_elements(
        By.CSS_SELECTOR, ".token"
    )
    assert len(names) == 2 * len(tokens)


def test_the_keyboard_goes_from_head_to_head_and_from_token_to_token(browser: Browser) -> None:
    root = browser.view("heads")
    browser.run("arguments[0].focus()", root.find_element(By.CSS_SELECTOR, '.grid [tabindex="0"]'))
    start = browser.driver.switch_to.active_element.get_attribute("data-head")
    ActionChains(browser.driver).send_keys(Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ENTER).perform()

    chosen = browser.driver.switch_to.active_element
    assert chosen.get_attribute("data-head") != start
    assert chosen.get_attribute("aria-pressed") == "true"

    token = root.find_element(By.CSS_SELECTOR, '.text .token[tabindex="0"]')
    browser.run("arguments[0].focus()", token)
    before = browser.run(
        "return [...document.activeElement.parentNode.children].indexOf(document.activeElement)"
    )
    ActionChains(browser.driver).send_keys(Keys.ARROW_RIGHT).perform()
    after = browser.run(
        "return [...document.activeElement.parentNode.children].indexOf(document.activeElement)"
    )
    assert after == before + 1


def test_the_switch_shows_predictions_without_heads_beside_random_ones(browser: Browser) -> None:
    root = browser.view("heads")
    switch = root.find_element(By.CSS_SELECTOR, ".without select")
    browser.point_at(switch)
    Select(switch).select_by_visible_text("the best 3")

    rows = [row.text for row in root.find_elements(By.CSS_SELECTOR, ".losses th")]
    assert rows[:2] == ["whole model", "without the best 3"]
    # Its layer has one head besides the best three: two partners come from the next layers.
    assert "random heads of the same and the nearest layers" in rows[2]
    columns = [
        column.text for column in root.find_elements(By.CSS_SELECTOR, ".predictions thead th")
    ]
    assert columns == ["whole model", "without the best 3", "without random heads"]


def test_one_slider_moves_head_maps_and_curves(browser: Browser) -> None:
    root = browser.view("clock")
    slider = root.find_element(By.CSS_SELECTOR, 'input[type="range"]')
    cells = (
        "return [...arguments[0].querySelectorAll('.grid .cell')].map((cell) => "
        "cell.textContent).join()"
    )
    marks = (
        "return [...arguments[0].querySelectorAll('svg > line')].map((line) => "
        "line.getAttribute('x1'))"
    )
    at_end, mark = browser.run(cells, root), browser.run(marks, root)

    browser.run("arguments[0].focus()", slider)
    ActionChains(browser.driver).send_keys(Keys.HOME).perform()

    assert told(root).startswith("Step 0.")
    assert browser.run(cells, root) != at_end
    assert all(now != before for now, before in zip(browser.run(marks, root), mark, strict=True))


def test_channels_are_sorted_by_the_heading_that_is_tapped(browser: Browser) -> None:
    root = browser.view("channels")
    heading = root.find_elements(By.CSS_SELECTOR, "th button")[3]
    browser.point_at(heading)
    heading.click()

    values = [
        float(row.text.replace(",", ""))
        for row in root.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(4)")
    ]
    assert values == sorted(values, reverse=True)
    assert (
        root.find_elements(By.CSS_SELECTOR, "thead th")[3].get_attribute("aria-sort")
        == "descending"
    )


def test_pointing_at_ink_tells_what_a_stroke_reads(browser: Browser) -> None:
    root = browser.view("strokes")
    drawing = root.find_element(By.CSS_SELECTOR, "svg.ink")
    browser.point_at(drawing, -40, 0)
    first = told(root)
    browser.point_at(drawing, 60, 5)
    assert told(root) != first


def test_a_page_has_a_name_for_everything_that_can_be_used(browser: Browser) -> None:
    browser.draw_all()
    nameless = browser.run("""
        const named = (e) => e.getAttribute("aria-label") || e.textContent.trim()
            || e.closest("label") || e.title;
        const all = [...document.querySelectorAll("button, select, input, [role=img], a")];
        const nameless = all.filter((e) => !named(e) && !e.querySelector("img[alt]"));
        return nameless.map((e) => e.outerHTML.slice(0, 200));
    """)
    assert nameless == []


def test_paper_shows_every_view_and_no_switches(browser: Browser) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    visible = (
        "return [...document.querySelectorAll('.controls')].filter((e) => e.offsetParent).length"
    )
    assert browser.run(visible) == 0
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_paper_shows_the_figures_that_are_folded_away(browser: Browser) -> None:
    seen = "return document.querySelector('.gallery img').checkVisibility()"
    folded = browser.run(seen)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    unfolded = browser.run(seen)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert (folded, unfolded) == (False, True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper(browser: Browser, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    contrast = browser.run("""
        const channels = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const linear = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92
            : ((c / 255 + 0.055) / 1.055) ** 2.4);
        const light = (text) => { const [r, g, b] = channels(text).map(linear);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const ratio = (e) => { const ink = light(getComputedStyle(e).color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); };
        return Math.min(...[...document.querySelectorAll("p, h2, td, th, li, .quiet")].map(ratio));
    """)
    assert contrast > 4.5


@pytest.fixture
def window() -> Iterator[Browser]:
    """A browser of its own."""
    browser = Browser()
    yield browser
    browser.driver.quit()


def test_no_name_can_run_anything_or_ask_for_anything(window: Browser, tmp_path: Path) -> None:
    for i, name in enumerate(HOSTILE):
        page = tmp_path / f"{i}.html"
        page.write_text(hostile_page(name), encoding="utf-8")
        window.open(page)
        window.draw_all()
        root = window.view("heads")
        cell = root.find_element(By.CSS_SELECTOR, '[data-head="L0H1"]')
        window.point_at(cell)
        cell.click()

        assert window.run("return window.hurt") is None, name
        assert window.run("return document.querySelectorAll('img, iframe, object').length") == 0, (
            name
        )
        assert window.complaints() == [], name
        assert root.find_elements(By.CSS_SELECTOR, ".token")[0].get_attribute("textContent"), name

    asked = [url for url in window.requests() if not url.startswith((tmp_path.as_uri(), "data:"))]
    assert asked == []


def test_a_map_with_nothing_behind_its_heads_can_be_used(window: Browser, tmp_path: Path) -> None:
    value = np.linspace(0, 1, 6).reshape(2, 3)
    scores = [
        views.score(label, "What it is.", value, value - 0.1, value + 0.1, colour="induction")
        for label in ("first", "second")
    ]
    page = tmp_path / "plain.html"
    write_own(page, [views.head_map("m", scores, n="n", found=[])], title="t", lead="l", made={})

    window.open(page)
    root = window.view("heads")
    cell = root.find_element(By.CSS_SELECTOR, '[data-head="L1H1"]')
    window.point_at(cell)
    cell.click()
    Select(root.find_element(By.TAG_NAME, "select")).select_by_index(1)

    assert told(root) == "L1H1 .80 [.70, .90], first"
    assert cell.get_attribute("aria-pressed") == "true"
    assert window.complaints() == []


@pytest.fixture
def live() -> Iterator[str]:
    """The address of the hand-built induction circuit, served."""
    import uvicorn

    subject = subject_of(known.induction_model(), word_tokenizer(), name="induction")
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    app = application(subject, "token", seed=0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/token/"
    server.should_exit = True
    thread.join(timeout=20)


def test_a_head_that_is_clicked_off_changes_the_predictions_beside_its_control(
    window: Browser, live: str
) -> None:
    window.driver.get(live)
    wait = WebDriverWait(window.driver, 30)
    text = window.driver.find_element(By.TAG_NAME, "textarea")
    wait.until(lambda _: "tokens" in window.driver.find_element(By.CSS_SELECTOR, ".told").text)
    window.run("arguments[0].value = ''", text)
    text.send_keys("w5 w6 w7 w8 w5 w6 w7 w8")
    wait.until(
        lambda _: (
            "9 tokens, 3 of them copied"
            in window.driver.find_element(By.CSS_SELECTOR, ".told").text
        )
    )

    layer, head = known.INDUCTION_HEAD
    cell = window.driver.find_element(By.CSS_SELECTOR, f'[data-head="L{layer}H{head}"]')
    window.point_at(cell)
    cell.click()

    def rows() -> list[list[str]]:
        script = (
            "return [...document.querySelectorAll('.losses tr')].map((row) => "
            "[...row.cells].map((c) => c.textContent))"
        )
        return window.run(script)

    wait.until(lambda _: len(rows()) == 3)
    (_, whole), (name, without), (_, random) = rows()
    assert name == f"without L{layer}H{head}"
    assert float(whole) < 0.1 < 1 < float(without)
    assert float(random.split(" [")[0]) < 0.1

    cell.click()
    wait.until(lambda _: len(rows()) == 1)
    assert window.complaints() == []
    assert [url for url in window.requests() if not url.startswith((live, "data:"))] == []
