from __future__ import annotations

import pytest

from services.common import errors
from services.common.errors import ConfigurationError, FieldViolation, InvalidInputError, ServiceError

FAMILY = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, ServiceError)]


@pytest.mark.parametrize("error_class", FAMILY, ids=lambda cls: cls.__name__)
def test_default_reasons_are_upper_snake(error_class: type[ServiceError]) -> None:
    assert error_class.default_reason.isupper()
    assert error_class.default_reason.isidentifier()


def test_default_reasons_tell_the_public_classes_apart() -> None:
    reasons = [
        cls.default_reason for cls in FAMILY if cls is not ServiceError and not cls.__name__.startswith("_")
    ]
    assert len(set(reasons)) == len(reasons)


def test_metadata_is_a_copy() -> None:
    given = {"limit": "5"}
    error = errors.ResourceExhaustedError("full", metadata=given)
    error.metadata["peer"] = "x"
    assert given == {"limit": "5"}


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (errors.UnavailableError("x"), True),
        (errors.ResourceExhaustedError("x"), True),
        (errors.AbortedError("x"), True),
        (errors.NotFoundError("x"), False),
        (errors.InvalidInputError("x"), False),
        (errors.ResourceExhaustedError("x", retryable=False), False),
    ],
)
def test_retryable_has_a_default_for_each_class(error: ServiceError, retryable: bool) -> None:
    assert error.retryable is retryable


def test_invalid_input_of_field_names_the_field() -> None:
    error = InvalidInputError.of_field("signals[3].price_e8", "must be positive")
    assert error.violations == (FieldViolation("signals[3].price_e8", "must be positive"),)
    assert error.message == "signals[3].price_e8: must be positive"


def test_configuration_error_is_one_line_that_says_what_where_and_what_to_do() -> None:
    error = ConfigurationError("port in\nuse", where="GRPC_BIND_ADDRESS", do="choose another")
    assert str(error) == "GRPC_BIND_ADDRESS: port in use; choose another"
    assert error.exit_code == 3


def test_configuration_error_of_lines_has_one_line_for_each() -> None:
    assert str(ConfigurationError.of_lines(["A: bad\n", "B: bad"])) == "A: bad\nB: bad"
