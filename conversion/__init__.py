# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Scripts that turn official checkpoints into the format of this package, one per checkpoint format.

In an installed package this folder is `hf_segcap.conversion`: `python -m hf_segcap.conversion.convert_sca --help`.
"""
