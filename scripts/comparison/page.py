"""The report: one HTML file that needs nothing else, its pictures, and all numbers as CSV."""

import re
from collections.abc import Iterable
from pathlib import Path

from common.files import replacing
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.progress import track

from comparison import agent_sections, contest, findings, notes, optimizer_sections, shared_sections
from comparison.intervals import REPETITIONS
from comparison.layout import Section
from comparison.plots import Drawer
from comparison.results import FAILED, MISSING, Results
from comparison.tidy import write_csv

PAGE, CSV, PLOTS = "report.html", "results.csv", "plots"
TEMPLATES = Path(__file__).parent / "templates"


def write(
    results: Results,
    directory: Path,
    repetitions: int = REPETITIONS,
) -> Path:
    """Writes report.html, results.csv and plots/ into a comparison's directory.

    Pictures that are only on the page that was there before go; what else is in plots/ stays.

    Args:
        results: What ran; complete or not.
        directory: Where to write.
        repetitions: Bootstrap resamples; more give steadier last digits and take longer.

    Returns:
        The page.
    """
    drawer = Drawer(directory / PLOTS)
    if not any(run.finished for run in results.runs):
        sections: Iterable[Section] = _nothing_finished(results)
    elif results.kind == "agent":
        of_agents = contest.of_agents(results, repetitions)
        sections = agent_sections.sections(results, of_agents, drawer)
    else:
        of_optimizers = contest.of_optimizers(results, repetitions)
        sections = optimizer_sections.sections(results, of_optimizers, drawer)
    drawn = list(track(sections, "report", total=8, transient=True))
    write_csv(results, directory / CSV)
    page, text = directory / PAGE, _rendered(results, drawn, repetitions)
    before = page.read_text(encoding="utf-8", errors="replace") if page.exists() else ""
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
        drawer.remove(_pictures(before) - _pictures(text))  # while the old page still names them
    return page


def _pictures(page: str) -> set[str]:
    """Returns the names of a page's pictures."""
    return set(re.findall(r'<figure id="plot-([\w.+-]+)">', page))


def _nothing_finished(results: Results) -> list[Section]:
    found = [findings.Finding(findings.NOTE, text) for text in notes.of(results)]
    return [
        Section("Findings", "findings", ["No run has finished yet."], findings=found),
        shared_sections.runs(results),
        shared_sections.settings(results),
    ]


def _rendered(results: Results, sections: list[Section], repetitions: int) -> str:
    # Everything that a run says goes through autoescape; what is marked safe, this project wrote.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    counts = {
        "finished": sum(run.finished for run in results.runs),
        FAILED: len(results.with_status(FAILED)),
        MISSING: len(results.with_status(MISSING)),
    }
    return environment.get_template("report.html").render(
        results=results,
        sections=sections,
        counts={status: count for status, count in counts.items() if count},
        repetitions=repetitions,
        no_seconds=shared_sections.NO_SECONDS,
    )
