from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what the clients saw of every kill, of passing tests too."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    counts = [value for report in reports for name, value in report.user_properties if name == "chaos"]
    if counts:
        terminalreporter.section("chaos, what clients saw")
        for count in counts:
            terminalreporter.write_line(count)
