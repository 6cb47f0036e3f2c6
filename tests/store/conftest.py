"""A registry at each kind of place."""

from uuid import uuid4

import pytest

from polyvera.store.registry import Registry

DOORS = ["folder", "memory", "s3"]


@pytest.fixture(scope="session")
def s3_options():
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'polyvera[s3]'")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = {"endpoint_url": f"http://{host}:{port}", "region_name": "eu-west-1"}
    options = {"key": "test", "secret": "test", "client_kwargs": client}
    import s3fs

    s3fs.S3FileSystem(**options).mkdir("adapters-test")
    yield options
    server.stop()


@pytest.fixture(params=DOORS)
def opened(request, tmp_path):
    """Opens the same registry again and again."""
    if request.param == "folder":
        return lambda: Registry(tmp_path / "registry")
    if request.param == "memory":
        url = f"memory://{uuid4().hex}"
        return lambda: Registry(url)
    options, url = request.getfixturevalue("s3_options"), f"s3://adapters-test/{uuid4().hex}"
    return lambda: Registry(url, **options)


@pytest.fixture
def registry(opened):
    return opened()
