"""The look of a progress bar."""

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_UPDATES = 0.25


def progress_bar(title: str, *columns: str) -> Progress:
    """Makes a bar with a title, the share that is done, some columns, and the time left.

    Args:
        title: What is going on.
        *columns: Formats of rich's text columns, such as ``"loss {task.fields[loss]}"``.

    Returns:
        The bar, without a task.
    """
    return Progress(
        TextColumn(f"[bold]{title}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        *map(TextColumn, columns),
        TimeRemainingColumn(),
        expand=True,
        refresh_per_second=4,
    )
