# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
