import subprocess
import sys

import pytest

import fcn
from fcn import metrics, model


def test_the_public_names_are_those_of_their_modules():
    from fcn import FCN, ConfusionMatrix

    assert (FCN, ConfusionMatrix) == (model.FCN, metrics.ConfusionMatrix)
    assert all(getattr(fcn, name) is not None for name in fcn.__all__)
    with pytest.raises(AttributeError, match="FCNN"):
        _ = fcn.FCNN


def test_counts_are_scored_and_void_is_named_without_importing_torch():
    program = "import fcn, fcn.scores, sys; print(fcn.IGNORE_LABEL, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["255", "False"]
