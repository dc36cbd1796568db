"""What a user is told of a mistake."""

import pytest

from lab.errors import UserError


def said(call, *args, **options):
    """The one line of the UserError that a call raises."""
    with pytest.raises(UserError) as e:
        call(*args, **options)
    assert "\n" not in str(e.value)
    return str(e.value)
