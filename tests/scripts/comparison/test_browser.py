"""The page in Debian's chromium, headless and without a network."""

import shutil

import pytest
from comparison import page

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if BROWSER is None or DRIVER is None:
    pytest.skip(
        "needs a browser: apt-get install chromium chromium-driver", allow_module_level=True
    )
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install .[dev]")
wait = pytest.importorskip("selenium.webdriver.support.wait")

WIDTHS = [1280, 400]
PATIENCE = 30  # seconds; a busy machine draws later
REPORTS = ["agent_report", "optimizer_report"]
# Per table and head: the column before, and after each of two clicks, with all heads' aria-sort.
PRESS_EVERY_HEAD = """
const cells = (table, i) => [...table.tBodies[0].rows].map(
    r => [r.cells[i].textContent.trim(), r.cells[i].dataset.key ?? null]);
return [...document.querySelectorAll('table')].map(
    table => [...table.querySelectorAll('th')].map((head, i) => {
        const clicked = () => {
            head.querySelector('button').click();
            const sorts = [...table.querySelectorAll('th[aria-sort]')];
            return [cells(table, i), sorts.map(h => h === head ? h.ariaSort : 'another')];
        };
        return [cells(table, i), clicked(), clicked()];
    }));
"""


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",  # the width is then that of the page
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield started
    started.quit()


@pytest.fixture(params=REPORTS)
def shown(request, browser):
    return show(browser, request.getfixturevalue(request.param))


def show(browser, directory, width=1280, scheme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get((directory / page.PAGE).as_uri())
    # A busy machine may answer before it has read the page to its end, where the settings stand.
    wait.WebDriverWait(browser, PATIENCE).until(lambda _: find(browser, "#settings"))
    return browser


def column(browser, table, index):
    cells = f"[...document.querySelectorAll('table')[{table}].tBodies[0].rows]"
    return browser.execute_script(
        f"return {cells}.map(r => [r.cells[{index}].textContent.trim(),"
        f" r.cells[{index}].dataset.key ?? null])"
    )


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def press(browser, element):
    """Clicks where the element is: a pointer may miss one that a busy machine still lays out."""
    browser.execute_script("arguments[0].click()", element)


class TestPage:
    def test_loads_without_a_network_and_without_complaint(self, shown):
        assert shown.title.endswith("compared")  # no run took it over
        assert [entry for entry in shown.get_log("browser") if entry["level"] != "INFO"] == []
        asked = [
            entry["message"]
            for entry in shown.get_log("performance")
            if '"Network.requestWillBeSent"' in entry["message"] and '"http' in entry["message"]
        ]
        assert asked == []

    def test_every_plot_is_shown(self, shown):
        shown.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        plots = find(shown, "figure svg")
        assert len(plots) > 5
        patience = wait.WebDriverWait(shown, PATIENCE)
        for plot in plots:
            assert patience.until(lambda _, plot=plot: plot.is_displayed())
            assert plot.size["width"] > 200
            assert plot.size["height"] > 60
            assert plot.accessible_name
            assert plot.aria_role in ("image", "img")

    @pytest.mark.parametrize("width", WIDTHS)
    def test_no_horizontal_scrolling_of_the_page(self, shown, width):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for opened in ("false", "true"):
            shown.execute_script(
                f"document.querySelectorAll('details').forEach(d => d.open = {opened})"
            )
            size = "return document.documentElement."
            assert shown.execute_script(f"{size}clientWidth") == width
            assert shown.execute_script(f"{size}scrollWidth") <= width
        assert shown.execute_script(
            "return [...document.querySelectorAll('p, h1, h2, li, figure, summary')]"
            ".filter(e => !e.closest('.table'))"
            f".every(e => e.getBoundingClientRect().right <= {width})"
        )

    def test_numbers_stand_beside_names_on_a_narrow_screen(self, browser, optimizer_report):
        show(browser, optimizer_report, width=400)
        for section in ("scores", "rates"):
            best = find(browser, f"#{section} tbody tr td:nth-child(4)")
            assert all(cell.rect["x"] + cell.rect["width"] < 400 for cell in best)

    def test_details_fold(self, shown):
        run = find(shown, "#runs td details")[0]
        command = run.find_element("css selector", "pre")
        assert not command.is_displayed()
        patience = wait.WebDriverWait(shown, PATIENCE)
        press(shown, run.find_element("css selector", "summary"))
        assert patience.until(lambda _: command.is_displayed())
        assert "python scripts/" in command.text
        press(shown, run.find_element("css selector", "summary"))
        assert patience.until(lambda _: not command.is_displayed())

    @pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
    def test_follows_the_scheme(self, browser, agent_report, scheme, dark):
        show(browser, agent_report, scheme=scheme)
        script = "return getComputedStyle({}).{}.match(/\\d+/g).slice(0, 3).map(Number)"
        page_colour = browser.execute_script(script.format("document.body", "backgroundColor"))
        label = browser.execute_script(
            script.format("document.querySelector('figure svg text')", "fill")
        )
        assert (sum(page_colour) < sum(label)) == dark
        assert abs(sum(page_colour) - sum(label)) > 300


class TestSorting:
    def test_each_column_of_each_table(self, shown):
        pressed = shown.execute_script(PRESS_EVERY_HEAD)
        assert {len(heads) for heads in pressed} != {0}
        for before, first, second in (head for heads in pressed for head in heads):
            for direction, (after, sorts) in (("ascending", first), ("descending", second)):
                assert sorts == [direction]  # of the whole table
                assert sorted(map(str, after)) == sorted(map(str, before))
                keys = [float(key) for _, key in after if key is not None]
                assert keys == sorted(keys, reverse=direction == "descending")

    def test_numbers_by_value_and_unknown_ones_last(self, browser, agent_report):
        show(browser, agent_report)
        (table,) = browser.execute_script(
            "return [[...document.querySelectorAll('table')].findIndex(t => t.closest('#runs'))]"
        )
        seconds = find(browser, "#runs th button")[6]
        assert seconds.text.startswith("seconds")
        press(browser, seconds)
        keys = [key for _, key in column(browser, table, 6)]
        assert keys.count(None) == 1
        assert keys[-1] is None

    def test_by_keyboard(self, browser, agent_report):
        from selenium.webdriver.common.keys import Keys

        show(browser, agent_report)
        button = find(browser, "#scores th button")[1]
        button.send_keys(Keys.ENTER)
        head = find(browser, "#scores th")[1]
        assert head.get_attribute("aria-sort") == "ascending"
        assert browser.switch_to.active_element == button
        names = [text for text, _ in column(browser, 0, 1)]
        assert names == sorted(names, key=str.lower)
        summary = find(browser, "#runs td summary")[0]
        summary.send_keys(Keys.ENTER)
        assert find(browser, "#runs td pre")[0].is_displayed()
