"""Messages of other libraries are filtered by origin and wording; errors and our own warnings are not."""

import logging

import pytest

from sf_lightning.terminal import LOG_MESSAGES, silence_libraries


def test_only_listed_messages_below_an_error_are_filtered(caplog: pytest.LogCaptureFixture) -> None:
    silence_libraries()
    name = next(iter(LOG_MESSAGES))
    with caplog.at_level(logging.INFO):
        logging.getLogger(name).info("GPU available: False, used: False")
        logging.getLogger(name).error("GPU available: False, used: False")
        logging.getLogger(name).info("something else")
        logging.getLogger("sf_lightning").warning("GPU available")
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO", "WARNING"]
