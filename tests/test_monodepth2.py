"""The convolutional networks: as their publications have them, name by name and number by number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recon.models.flow import AppearanceNet, FlowNet
from recon.models.monodepth2 import Conv3x3, Monodepth2, SkipDecoder, depth_from_sigmoid, load_parts
from recon.models.posenet import IntrinsicsHead, PoseNet
from recon.models.resnet import ResNetEncoder, load_imagenet
from recon.types import ReconError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shake_statistics(network):
    """Batch norms that do something in evaluation."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)


def hugging_face_name(name):
    """Of one of ResNet-18's tensors (torchvision's name)."""
    parts = name.split(".")
    kind = "normalization" if parts[-2].startswith("bn") or parts[-2] == "1" else "convolution"
    if not name.startswith("layer"):
        return f"embedder.embedder.{kind}.{parts[-1]}"
    inside = "shortcut" if parts[2] == "downsample" else f"layer.{int(parts[2][-1]) - 1}"
    return f"encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}.{inside}.{kind}.{parts[-1]}"


def test_resnet_agrees_with_another_implementation():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    other = transformers.ResNetModel(config).eval()
    encoder = ResNetEncoder(1, centred=False).eval()
    shake_statistics(encoder)
    other.load_state_dict({hugging_face_name(name): value for name, value in encoder.encoder.state_dict().items()})
    image = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        maps, expected = encoder(image), other(image, output_hidden_states=True).hidden_states
    for ours, theirs in zip(maps[1:], expected[1:], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_colours_are_centred_where_the_weights_want_it():
    plain, centred = ResNetEncoder(1, centred=False).eval(), ResNetEncoder(1, centred=True).eval()
    centred.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for a, b in zip(centred(image), plain((image - 0.45) / 0.225), strict=True):
            assert torch.equal(a, b)


def test_imagenet_weights_see_two_equal_pictures_as_one(tmp_path):
    one, two = ResNetEncoder(1, centred=True).eval(), ResNetEncoder(2, centred=True).eval()
    stored = {name: value for name, value in one.encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({**stored, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "resnet18.pth")
    load_imagenet(two, tmp_path / "resnet18.pth")
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for a, b in zip(two(image, image), one(image), strict=True):
            assert torch.allclose(a, b, atol=1e-4)
    torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(ReconError, match=r"missing encoder\.conv1\.weight"):
        load_imagenet(two, tmp_path / "part.pth")


def published_decoder(heads):
    """monodepth2's decoder: name to shape, written out by hand."""
    blocks = [(512, 256), (512, 256), (256, 128), (256, 128), (128, 64), (128, 64), (64, 32), (96, 32), (32, 16), (16, 16)]
    expected = {}
    for place, (inputs, outputs) in enumerate(blocks):
        expected[f"decoder.{place}.conv.conv.weight"] = (outputs, inputs, 3, 3)
        expected[f"decoder.{place}.conv.conv.bias"] = (outputs,)
    for place, width in enumerate((16, 32, 64, 128), start=10):
        name, outputs = heads
        expected[f"decoder.{place}.{name}weight"] = (outputs, width, 3, 3)
        expected[f"decoder.{place}.{name}bias"] = (outputs,)
    return expected


def shapes(network):
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_names_and_sizes_are_the_published_ones():
    network = Monodepth2()
    assert shapes(network.depth) == published_decoder(("conv.", 1))
    assert shapes(FlowNet().position) == published_decoder(("", 2))
    assert shapes(AppearanceNet().transform) == published_decoder(("conv.", 3))
    # torchvision's resnet18 has 11,689,512 parameters, 513,000 of them in its classifier.
    assert count(network.encoder) == 11_689_512 - 513_000
    # The original, which keeps the classifier, has 14.84 million.
    assert count(network) + 513_000 == 14_842_236
    pose = {"net.0": (256, 512, 1, 1), "net.1": (256, 256, 3, 3), "net.2": (256, 256, 3, 3), "net.3": (12, 256, 1, 1)}
    assert {name: shape for name, shape in shapes(PoseNet().pose).items() if "weight" in name} == {
        f"{name}.weight": shape for name, shape in pose.items()
    }
    assert list(shapes(IntrinsicsHead())) == ["focal_length_conv.weight", "offsets_conv.weight"]
    some = {"encoder.conv1.weight", "encoder.bn1.running_var", "encoder.layer2.0.downsample.1.bias", "encoder.layer4.1.bn2.weight"}
    assert some <= set(shapes(network.encoder))


def save_as_published(network, folder):
    """One file a part; beside the weights, what the authors' files hold and nobody uses."""
    for name, part in network.named_children():
        stored = dict(part.state_dict())
        if "encoder" in name:
            stored |= {"encoder.fc.weight": torch.zeros(1000, 512), "encoder.fc.bias": torch.zeros(1000)}
            stored |= {"height": 192, "width": 640, "use_stereo": False}
        if name == "intrinsics_head":
            stored |= {"convs_suqeeze.weight": torch.zeros(256, 512, 1, 1), "convs_suqeeze.bias": torch.zeros(256)}
        torch.save(stored, folder / f"{name}.pth")


@pytest.mark.parametrize("build", [Monodepth2, lambda: PoseNet(learn_intrinsics=True), FlowNet, AppearanceNet])
def test_the_authors_files_load(tmp_path, build):
    source, loaded = build(), build()
    save_as_published(source, tmp_path)
    found = load_parts(loaded, tmp_path)
    assert list(found) == [name for name, _ in source.named_children()]
    assert all(len(part.sha256) == 64 and not part.kept for part in found.values())
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), loaded.state_dict().values(), strict=True))


def test_files_that_do_not_fit_say_why(tmp_path):
    save_as_published(Monodepth2(), tmp_path)
    (tmp_path / "depth.pth").rename(tmp_path / "encoder.pth")
    with pytest.raises(ReconError, match=r"encoder\.pth.*missing encoder\.conv1\.weight.*unknown decoder\.0"):
        load_parts(Monodepth2(), tmp_path)
    (tmp_path / "encoder.pth").unlink()
    with pytest.raises(ReconError, match=r"encoder\.pth"):
        load_parts(Monodepth2(), tmp_path)


def test_depth_of_a_sigmoid():
    sigmoid = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64)
    expected = [150.0, 1 / (1 / 150 + (10 - 1 / 150) / 2), 0.1]
    assert depth_from_sigmoid(sigmoid).tolist()[0] == pytest.approx(expected, rel=1e-12)
    assert depth_from_sigmoid(sigmoid, 1.0, 4.0).tolist()[0] == pytest.approx([4.0, 1.6, 1.0], rel=1e-12)


def test_outputs_have_four_scales_and_their_ranges():
    image, other = torch.rand(2, 3, 64, 96), torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        depth, flow, appearance = Monodepth2()(image), FlowNet()(image, other), AppearanceNet()(image, other)
    for scale in range(4):
        size = (64 // 2**scale, 96 // 2**scale)
        assert depth[scale].shape == (2, *size) and depth[scale].min() > 0 and depth[scale].max() < 1
        assert flow[scale].shape == (2, 2, *size)
        assert appearance[scale].shape == (2, 3, *size) and appearance[scale].abs().max() < 1


@pytest.mark.parametrize("size", [(64, 100), (70, 64), (32, 64)])
def test_a_size_that_does_not_fit_is_refused(size):
    with pytest.raises(ReconError, match=f"{size[1]}x{size[0]} px: both sides must be multiples of 32 and at least 64"):
        Monodepth2()(torch.zeros(1, 3, *size))


def test_convolutions_mirror_the_border():
    layer = Conv3x3(2, 3)
    flat = layer(torch.ones(1, 2, 5, 6))
    assert torch.allclose(flat, flat[..., :1, :1].expand_as(flat), atol=1e-6)


def test_a_skip_decoder_joins_what_the_encoder_saw():
    """One channel, all kernels the identity of their first input (the path) or of their last (the skip)."""
    decoder = SkipDecoder((1, 1), (1, 1), [Conv3x3(1, 1)])
    for block, channel in zip(decoder.decoder, (0, 1, 0, 0, 0), strict=True):
        layer = block.conv if isinstance(block.conv, nn.Conv2d) else block.conv.conv
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        layer.weight.data[0, channel, 1, 1] = 1
    fine, coarse = torch.rand(1, 1, 4, 6), torch.rand(1, 1, 2, 3)
    # The skip stands at half the picture's size, and is enlarged by repeating each pixel.
    assert torch.equal(decoder.decode([fine, coarse])[0], fine.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_flow_starts_at_nothing():
    network = FlowNet()
    for head in network.position.decoder[10:]:
        assert head.weight.std().item() == pytest.approx(1e-5, rel=0.2)
        assert abs(head.weight.mean().item()) < 3e-6 and head.bias.abs().max() == 0
    with torch.inference_mode():
        flow = network.eval()(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    assert max(scale.abs().max() for scale in flow) < 0.05


def test_motion_is_the_mean_over_the_picture_times_its_factor():
    usual, large = PoseNet().eval(), PoseNet(0.01).eval()
    large.load_state_dict(usual.state_dict())
    source, target = torch.rand(2, 3, 64, 96), torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        small, big = usual(source, target), large(source, target)
        assert small.axis_angle.shape == small.translation.shape == (2, 3) and small.intrinsics is None
        assert torch.allclose(10 * small.axis_angle, big.axis_angle) and torch.allclose(10 * small.translation, big.translation)
        nn.init.zeros_(usual.pose.net[3].weight)
        usual.pose.net[3].bias.copy_(torch.arange(1.0, 13.0))
        motion = usual(source, target)
    assert torch.allclose(motion.axis_angle, torch.tensor([0.001, 0.002, 0.003]).expand(2, 3))
    assert torch.allclose(motion.translation, torch.tensor([0.004, 0.005, 0.006]).expand(2, 3))


def test_the_source_comes_first():
    network = PoseNet().eval()
    network.pose_encoder.encoder.conv1.weight.data[:, 3:] = 0
    source, target = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network(source, target).translation, network(source, source).translation)
        assert not torch.equal(network(source, target).translation, network(target, target).translation)


@pytest.mark.parametrize("batch", [1, 3])
def test_intrinsics_follow_the_published_rule(batch):
    head = IntrinsicsHead()
    features = torch.randn(batch, 256, 2, 3)
    with torch.inference_mode():
        lens = head(features, 320, 256)
        pooled = features.mean((2, 3)).double()
        focal, offset = (conv.weight[:, :, 0, 0].double() @ pooled.T for conv in (head.focal_length_conv, head.offsets_conv))
    sides = torch.tensor([[320.0], [256.0]])
    expected = torch.cat([(torch.log1p(torch.exp(focal)) + 0.5) * sides, (offset + 0.5) * sides]).T
    assert torch.allclose(lens.double(), expected, atol=1e-4)
    with torch.inference_mode():
        neutral = head(torch.zeros(batch, 256, 2, 3), 320, 256)[0].tolist()
    assert neutral == pytest.approx([(math.log(2) + 0.5) * 320, (math.log(2) + 0.5) * 256, 160, 128], rel=1e-6)


def test_a_lens_comes_with_the_motion_where_it_is_wanted():
    with torch.inference_mode():
        motion = PoseNet(learn_intrinsics=True)(torch.rand(2, 3, 64, 96), torch.rand(2, 3, 64, 96))
    assert motion.intrinsics.shape == (2, 4)
    assert (motion.intrinsics[:, 0] > 48).all() and (motion.intrinsics[:, 1] > 32).all()


@pytest.mark.parametrize("build", [Monodepth2, FlowNet, AppearanceNet])
def test_every_parameter_learns(build):
    network = build()
    images = [torch.rand(2, 3, 64, 64) for _ in range(1 if build is Monodepth2 else 2)]
    sum((output**2).sum() for output in network(*images)).backward()
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.abs().max() > 0] == []
