"""Random models as Keras 2 writes them, with inputs and what Keras 2 computes, for machines without TensorFlow.

In an environment of its own, of Python 3.11 or so:

    pip install tensorflow==2.21.0 tf_keras==2.21.0
    python tests/record_keras2.py --count 40 --output tests/keras2.tar.xz

The archive holds, for each seed, ``7.keras`` or ``7.h5`` and ``7.npz`` with the inputs by name and ``output_0``, ...
``tests/test_keras_random.py`` compares them with fastrnn; for other recordings than its own,
``python tests/compare_keras.py --recorded FILE`` does.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from keras_random import random_model

EPOCH = 315532800  # of all members, so that the same models make the same archive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import tf_keras as keras

    with tempfile.TemporaryDirectory() as folder, tarfile.open(options.output, "w:xz", preset=9) as archive:
        seed = options.seed - 1
        for k in range(options.count):
            model = None
            while model is None:  # some graphs fail in Keras itself
                seed += 1
                keras.backend.clear_session()
                try:
                    model, inputs = random_model(keras, seed)
                    outputs = model(inputs, training=False)
                except (TypeError, ValueError) as error:
                    print(f"seed {seed} does not run in Keras 2: {str(error).splitlines()[0][:100]}")
                    model = None
            path = Path(folder, f"{seed}.keras" if k % 2 else f"{seed}.h5")
            model.save(path)
            arrays = {tensor.name: array for tensor, array in zip(model.inputs, inputs, strict=True)}
            arrays |= {f"output_{n}": y.numpy() for n, y in enumerate(outputs)}
            file = io.BytesIO()
            np.savez(file, **arrays)
            for name, content in ((path.name, path.read_bytes()), (f"{seed}.npz", file.getvalue())):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), EPOCH
                archive.addfile(member, io.BytesIO(content))
    print(f"{options.output}: {Path(options.output).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
