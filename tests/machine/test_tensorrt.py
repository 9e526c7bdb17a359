"""TensorRT's libraries: imported by target, and their messages go to ``logging``."""

from __future__ import annotations

import logging

import pytest

from koala_bundle.errors import TargetError
from koala_bundle.targets import RTX, TENSORRT
from koala_machine.tensorrt import make_logger, open_tensorrt


def test_without_tensorrt_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(TargetError, match=r"tensorrt, found none; install it with `pip install koala-trt\[t"):
        open_tensorrt(TENSORRT)


def test_errors_are_collected_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """By the logger of the real library, which calls it for what it refuses."""
    pytest.importorskip("tensorrt_rtx")
    trt = open_tensorrt(RTX)
    caplog.set_level(logging.DEBUG, "koala_machine.tensorrt")
    logger, errors = make_logger(trt)
    network = trt.Builder(logger).create_network(0)
    caplog.clear()
    errors.clear()
    assert not trt.OnnxParser(network, logger).parse(b"no ONNX")
    assert errors
    logged = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert [message for level, message in logged if level == logging.ERROR] == errors
    logger.log(trt.ILogger.WARNING, "a word of caution")
    logger.log(trt.ILogger.INFO, "a word by the way")
    assert (logging.DEBUG, "a word of caution") in [(r.levelno, r.getMessage()) for r in caplog.records]
    assert "a word by the way" not in caplog.text
    assert "a word of caution" not in errors
