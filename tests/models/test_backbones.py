"""Any convolutional network of torchvision works as a backbone, with its weights."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import safetensors.torch
import torch
import torchvision
from torch.overrides import TorchFunctionMode

from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.backbones import build_backbone

NAMES = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5"]

REFUSED = {
    "alexnet": "its strides are no powers of two",
    "inception_v3": "its convolutions have no padding, so its maps lie on no grid",
    "maxvit_t": "it takes images of one size only",
    "squeezenet1_0": "its convolutions have no padding, and it ends at stride 16",
    "squeezenet1_1": "its convolutions have no padding, and it ends at stride 16",
    **dict.fromkeys(["swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t"], "its channels come last"),
    **dict.fromkeys(["vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"], "it has tokens, not maps"),
}


class _WeightsOnMeta(TorchFunctionMode):
    """Puts weights on the meta device and skips norms, so that the largest networks are built at once."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.batch_norm:
            return args[0]
        if func in {torch.empty, torch.zeros, torch.ones} and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_cut_at_the_strides_asked_for(name):
    backbone = build_backbone(name, None, (8, 16, 32)).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 32))
    assert [tuple(one.shape) for one in maps] == [
        (1, channels, 64 // stride, 32 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert backbone.strides == (8, 16, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_network_of_torchvision_becomes_a_localizer_or_is_refused(name):
    with _WeightsOnMeta():
        if name in REFUSED:
            with pytest.raises(UsageError, match=f"{name} has no feature maps of stride 16 and 32"):
                build_model(f"localizer/{name}", 3)
        else:
            assert build_model(f"localizer/{name}", 3).backbone.strides == (16, 32)


def test_stages_follow_one_another_and_hold_every_layer_once():
    whole = torchvision.models.resnet18()
    backbone = build_backbone("resnet18", None, (16, 32))
    assert len(backbone.stages) == 5
    assert sum(weight.numel() for weight in backbone.parameters()) == sum(
        weight.numel() for name, weight in whole.named_parameters() if not name.startswith("fc.")
    )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_the_whole_network_reach_the_backbone(name, suffix, tmp_path):
    torch.manual_seed(1)
    whole = torchvision.models.get_model(name, weights=None).eval()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(whole.state_dict(), file)
    else:
        safetensors.torch.save_file(whole.state_dict(), file)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        coarse = build_backbone(name, str(file)).eval()(images)[1]
        pooled = coarse.mean(dim=(2, 3))
        head = whole.fc if name == "resnet18" else whole.classifier
        torch.testing.assert_close(head(pooled), whole(images))


def test_weights_trained_for_other_classes_are_welcome(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), file)
    build_backbone("resnet18", str(file))


def test_weights_of_another_network_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), file)
    with pytest.raises(UsageError, match="not those of torchvision's resnet18"):
        build_backbone("resnet18", str(file))


def test_a_pickle_that_runs_code_is_refused_unread(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_here"), "w"))

    file = tmp_path / "weights.pth"
    torch.save({"weight": Attack()}, file)
    with pytest.raises(UsageError, match="can be read safely"):
        build_backbone("resnet18", str(file))
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02}q\x00."])
def test_a_file_of_something_else_is_refused(content, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"weights\.pth"):
        build_backbone("resnet18", str(file))


def test_an_unknown_name_of_weights_lists_the_known_ones():
    with pytest.raises(UsageError, match="it has IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        build_backbone("mobilenet_v2", "IMAGENET")


class LoginPage(BaseHTTPRequestHandler):
    """The login page that some networks serve instead of the file."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Please log in</html>")

    def log_message(self, *_):
        pass


@pytest.fixture
def login_page():
    with HTTPServer(("127.0.0.1", 0), LoginPage) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def weights_at(tmp_path, monkeypatch):
    """Points torchvision's weights of resnet18 at another server, with an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def move(server):
        url = f"{server}/resnet18-f37072fd.pth"
        monkeypatch.setattr(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
        return url

    return move


@pytest.mark.parametrize(("server", "reason"), [("http://127.0.0.1:1", "refused"), (None, "invalid hash value")])
def test_a_failed_weights_download_names_its_address_and_a_way_out(server, reason, weights_at, login_page, tmp_path):
    url = weights_at(server or login_page)
    with pytest.raises(UsageError) as told:
        build_backbone("resnet18", "DEFAULT")
    assert f"the weights DEFAULT of resnet18 could not be downloaded from {url} (" in str(told.value)
    assert reason in str(told.value)
    assert "pass it as --weights FILE.pth" in str(told.value)
    assert not list(tmp_path.rglob("*.pth"))


def test_splitting_moves_no_statistics_and_leaves_training_mode():
    backbone = build_backbone("mobilenet_v2", None)
    assert backbone.training
    assert all(
        int(layer.num_batches_tracked) == 0 for layer in backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d)
    )
