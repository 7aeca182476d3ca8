import pytest

from effllm.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (AssertionError(), "AssertionError"),
        (ValueError(" \n"), "ValueError"),
        (RuntimeError("\nfirst\nsecond"), "first"),
    ],
)
def test_an_error_without_a_message_is_its_type(error: Exception, line: str) -> None:
    assert first_line(error) == line
