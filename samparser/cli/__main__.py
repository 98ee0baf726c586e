"""``python -m samparser.cli`` is the ``samparser`` command, for ``accelerate launch -m`` and ``torchrun -m``."""

from . import main

raise SystemExit(main())
