"""A plain FastAPI server over transformers, for comparison with `vit-msn serve`: POST /embed with an image's bytes.

Usage: python bench/serve_fastapi.py MODEL PORT. Needs: pip install torch torchvision transformers fastapi uvicorn pillow
"""

import io
import sys

import torch
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder, port = sys.argv[1], int(sys.argv[2])
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
app = FastAPI()


# A plain function: FastAPI runs it in one of its threads, so that requests are computed in parallel.
@app.post("/embed")
def embed(image: bytes = Body(media_type="application/octet-stream")):
    inputs = processor(Image.open(io.BytesIO(image)).convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        state = model(**inputs).last_hidden_state
    return {"embedding": state[0, 0].tolist()}


uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
