#!/usr/bin/env python3
"""Exports a ViT-MSN classifier to ONNX, for the comparison with onnxruntime-web.

  python bench/export_onnx.py MODEL OUT.onnx [--attention eager|sdpa] [--opset 18] [--int8]

MODEL is a folder or hub id that transformers' ViTMSNForImageClassification.from_pretrained opens. float32, dynamic
batch, one output: logits; with --int8 quantised dynamically by onnxruntime, as it does by default.
Needs: pip install torch transformers onnx onnxscript, and onnxruntime for --int8
"""
import argparse
import pathlib
import tempfile

import torch
from transformers import ViTMSNForImageClassification


class Logits(torch.nn.Module):
    """The model with its output reduced to the one tensor that is compared."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


def export(source, out, attention, opset):
    model = ViTMSNForImageClassification.from_pretrained(source, attn_implementation=attention).float().eval()
    size = model.config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    # Two images: an example of one would fix the batch size in the graph.
    example = torch.zeros(2, model.config.num_channels, height, width)
    torch.onnx.export(
        Logits(model),
        (example,),
        str(out),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        opset_version=opset,
        external_data=False,
        dynamo=True,
    )


def quantise(out):
    """Replaces a float32 model by one whose linear layers have int8 weights."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = pathlib.Path(folder, "prepared.onnx")
        quant_pre_process(str(out), str(prepared))
        quantize_dynamic(str(prepared), str(out), op_types_to_quantize=["MatMul", "Gemm"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="eager")
    parser.add_argument("--opset", type=int, default=18)
    parser.add_argument("--int8", action="store_true")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    export(options.model, options.out, options.attention, options.opset)
    if options.int8:
        quantise(options.out)
