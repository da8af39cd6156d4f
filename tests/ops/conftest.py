import pytest

from vimdeploy.ops import dispatch


@pytest.fixture(scope="module", params=["torch", "kernels"])
def computed_by(request):
    """Compute the ops in torch, then with the native kernels."""
    with dispatch.using(request.param):
        yield request.param
