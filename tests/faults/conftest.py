"""One thread for the small networks, nothing that stays open, and the table with every row at the end."""

from __future__ import annotations

import pathlib
from collections.abc import Generator, Iterator

import pytest
import torch
from _pytest.terminal import TerminalReporter

from tests.faults import launcher, table, weights


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let ``make faults`` ask for the table."""
    parser.addoption(
        "--table", action="store_true", help="print every row; a row that did not run is a failure"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Note how many weights the test compared."""
    weights.taken()
    try:
        return (yield)
    finally:
        item.user_properties.append(("weights", weights.taken()))


def _comparisons(report: pytest.TestReport) -> int:
    return sum(
        count for name, count in report.user_properties if name == "weights" and isinstance(count, int)
    )


def _outcomes(config: pytest.Config) -> dict[str, table.Outcome]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    assert isinstance(reporter, TerminalReporter)
    return table.outcomes(
        (report.nodeid, kind, _comparisons(report))
        for kind, reports in reporter.stats.items()
        for report in reports
        if kind and isinstance(report, pytest.TestReport)
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if a row of the table that was asked for did not pass."""
    asked = session.config.getoption("--table", default=False) and not hasattr(session.config, "workerinput")
    if asked and any(row.verdict != "PASS" for row in _outcomes(session.config).values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    if config.getoption("--table", default=False):
        terminalreporter.section("fault table")
        for line in table.lines(_outcomes(config)):
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _processes() -> None:
    """Start what processes are forked from, before open files are counted."""
    launcher.prepare()


@pytest.fixture(autouse=True)
def _nothing_left_open(no_fd_leak: None) -> None:
    """Nothing that a fault leaves behind stays open."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the whole table to ``make faults``: it takes minutes."""
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
