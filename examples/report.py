"""The student report's whole study, run again, with the answer to what it left open.

Which is faster, convolution or involution, when both are written with the same care? Trains the
report's six networks on MNIST, Fashion-MNIST and CIFAR-10 with three seeds, then networks of equal
size, window attention in the involution's place, and a compact involution network for each data
set; times every layer; and writes runs/report/report.md with its figures. It can be stopped and
goes on where it was. `examples/report/report.md` is what it wrote here.

    python examples/report.py --quick            three minutes, to see it work
    python examples/report.py --report-pixels    all of it
"""

import sys

from scratchnet.cli import main

sys.exit(main(["report", *sys.argv[1:]]))
