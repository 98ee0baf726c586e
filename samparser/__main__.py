"""`python -m samparser` is the `samparser` command, for `accelerate launch -m` and `torchrun -m` too."""

from __future__ import annotations

from samparser_command import main

raise SystemExit(main())
