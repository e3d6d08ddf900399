# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""One module per model: MODELS, PROCESSORS, IMAGE_PROCESSORS and PIPELINES (see `..spec_types`)."""
