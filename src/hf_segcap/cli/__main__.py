# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
from . import main

if __name__ == "__main__":
    main()
