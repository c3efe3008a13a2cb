"""What one writes first: a FastAPI server around diffusers' pipeline, one request after the other.

`python -m tools.benchmark.fastapi_server MODEL PORT THREADS PACKAGES`; fastapi and uvicorn lie in the folder PACKAGES.
"""

import io
import sys
import threading


def main(model, port, threads, packages):
    """Serves."""
    sys.path.append(packages)
    import numpy
    import torch
    import uvicorn
    from fastapi import FastAPI, Response
    from pydantic import BaseModel

    from .reference import load

    class Request(BaseModel):
        """As `POST /prior` takes it."""

        prompts: list[str]
        seed: int = 0

    pipeline, _ = load({"model": model, "dtype": "f32", "threads": int(threads)})
    app, alone = FastAPI(), threading.Lock()

    @app.get("/health")
    def health():
        """Ready."""
        return {}

    @app.post("/prior")
    def prior(request: Request):
        """Rows as `.npy`."""
        generators = [torch.Generator().manual_seed(request.seed + row) for row in range(len(request.prompts))]
        with alone:
            embeds = pipeline(request.prompts, generator=generators).image_embeds
        out = io.BytesIO()
        numpy.save(out, embeds.numpy())
        return Response(out.getvalue(), media_type="application/x-npy")

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
