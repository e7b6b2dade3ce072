"""What Hugging Face's ports of DINOv2 and Depth Anything call the tensors of the authors' files.

One table names every tensor. The files on the hub keep the names of transformers 4; a state dict of a live module of
transformers 5 has shorter ones in the attention. Both stand here. The authors keep query, key and value in one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from recon.types import ReconError

JOINED = "#"
"""Separates the name of a joined tensor from the place of a part in it."""

ENCODER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.*.norm1": "blocks.*.norm1",
    "encoder.layer.*.attention.attention.query": "blocks.*.attn.qkv#0",
    "encoder.layer.*.attention.attention.key": "blocks.*.attn.qkv#1",
    "encoder.layer.*.attention.attention.value": "blocks.*.attn.qkv#2",
    "encoder.layer.*.attention.output.dense": "blocks.*.attn.proj",
    "encoder.layer.*.attention.q_proj": "blocks.*.attn.qkv#0",
    "encoder.layer.*.attention.k_proj": "blocks.*.attn.qkv#1",
    "encoder.layer.*.attention.v_proj": "blocks.*.attn.qkv#2",
    "encoder.layer.*.attention.o_proj": "blocks.*.attn.proj",
    "encoder.layer.*.layer_scale1.lambda1": "blocks.*.ls1.gamma",
    "encoder.layer.*.norm2": "blocks.*.norm2",
    "encoder.layer.*.mlp.fc1": "blocks.*.mlp.fc1",
    "encoder.layer.*.mlp.fc2": "blocks.*.mlp.fc2",
    "encoder.layer.*.layer_scale2.lambda1": "blocks.*.ls2.gamma",
    "layernorm": "norm",
}
"""Module or tensor of a Hugging Face Dinov2Model: the original's. A star stands for a number."""

HEAD = {
    "neck.reassemble_stage.layers.*.projection": "depth_head.projects.*",
    "neck.reassemble_stage.layers.*.resize": "depth_head.resize_layers.*",
    "neck.convs.0": "depth_head.scratch.layer1_rn",
    "neck.convs.1": "depth_head.scratch.layer2_rn",
    "neck.convs.2": "depth_head.scratch.layer3_rn",
    "neck.convs.3": "depth_head.scratch.layer4_rn",
    **{
        # Hugging Face counts the fusion blocks from coarse to fine, the authors from fine to coarse.
        f"neck.fusion_stage.layers.{4 - block}.{theirs}": f"depth_head.scratch.refinenet{block}.{original}"
        for block in (1, 2, 3, 4)
        for theirs, original in (
            ("projection", "out_conv"),
            ("residual_layer1.convolution1", "resConfUnit1.conv1"),
            ("residual_layer1.convolution2", "resConfUnit1.conv2"),
            ("residual_layer2.convolution1", "resConfUnit2.conv1"),
            ("residual_layer2.convolution2", "resConfUnit2.conv2"),
        )
    },
    "head.conv1": "depth_head.scratch.output_conv1",
    "head.conv2": "depth_head.scratch.output_conv2.0",
    "head.conv3": "depth_head.scratch.output_conv2.2",
}
"""The same for what a DepthAnythingForDepthEstimation holds beside its encoder."""

HUGGING_FACE = {**ENCODER, **{f"backbone.{theirs}": f"pretrained.{original}" for theirs, original in ENCODER.items()}, **HEAD}
RULES = [
    (re.compile(re.escape(theirs).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias)?"), original) for theirs, original in HUGGING_FACE.items()
]


def original_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in Hugging Face's layout under the original names; any other state dict as it is.

    Names that the table does not know are kept, for whoever loads them to complain about. Raises ReconError where two
    tensors claim one name, or where query, key or value is missing.
    """
    if not {"embeddings.cls_token", "backbone.embeddings.cls_token"} & set(state):
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for theirs, value in state.items():
        name = _original_name(theirs)
        if name in renamed:
            raise ReconError(f"weights hold {name!r} twice, once as {theirs!r}: the file mixes two layouts; save the network again")
        renamed[name] = value
    return _joined(renamed)


def _original_name(theirs: str) -> str:
    """`a.*.b` of the table with the number filled in; a joined part keeps its place behind the sign."""
    for pattern, original in RULES:
        match = pattern.fullmatch(theirs)
        if match:
            *numbers, leaf = match.groups(default="")
            for number in numbers:
                original = original.replace("*", number, 1)
            name, sign, place = original.partition(JOINED)
            return f"{name}{leaf}{sign}{place}"
    return theirs


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack the three parts of each joined tensor by rows."""
    whole = {name: value for name, value in state.items() if JOINED not in name}
    for name in dict.fromkeys(name.partition(JOINED)[0] for name in state if JOINED in name):
        parts = [f"{name}{JOINED}{place}" for place in range(3)]
        missing = [place for place, part in zip(("query", "key", "value"), parts, strict=True) if part not in state]
        if missing:
            raise ReconError(f"weights lack the {' and '.join(missing)} of {name!r}: the file is not whole; get it again")
        whole[name] = torch.cat([state[part] for part in parts])
    return whole
