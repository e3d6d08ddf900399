# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""transformers' own common test suites, run against the classes of this package.

    pytest modeling_tests/conformance/test_sam_caption.py -k save_load

- `specs/<model>.py` says what is judged: tiny configurations, inputs, and the skips with their reasons.
- `test_<model>.py` turns a spec into test classes, which pytest collects like any other.
- `suites/` builds those classes from the mixins of the sdist of the *installed* transformers and from own tests.
- `sdist.py` fetches the sdist once; without network the tests are skipped with a warning.
- `overlay.py` makes its files importable; `generation.py` replaces the generation mixin that the sdist leaves out.

Most skips of a run are those of transformers: hardware or library gated (CUDA, flash attention, DeepSpeed, MoE, tensor
parallelism, chat templates, video, audio). `-rs` prints them all.
"""
