"""A few of each fault; ``python -m tests.faults`` makes them in full number."""

import sys

import pytest
from faults import stage
from faults.everything import GROUPS

FAULTS = {fault: few for faults in GROUPS.values() for fault, (_, few) in faults.items()}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and signals of Linux")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    with stage(tmp_path_factory.mktemp("faults") / "stage") as scene:
        yield scene


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_is_lost_and_nothing_ends_in_a_traceback(scene, fault):
    tally = fault(scene, FAULTS[fault])
    assert tally.sound, "\n".join([tally.what, *tally.remarks])
    assert tally.tried or tally.remarks
