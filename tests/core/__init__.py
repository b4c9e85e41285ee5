"""Tests of the probabilistic core: contracts, exactness, memory."""

import pytest

pytest.register_assert_rewrite("core.contract", "core.statistics")
