"""ExecuTorch 1.5.1, CPU: embedding_4bit checks no index; one outside the table is a row of other memory, or SIGSEGV.

The file is made by conformance/subjects/peers/executorch_cpu.py: run this from the checkout's root.
"""

import numpy as np

from conformance.subjects.peers.executorch_cpu import SubjectUnderTest

values, scales = np.full((2, 64), 7, np.int8), np.ones((2, 2), np.float32)
for index in (2, -1, 1 << 40):
    got = SubjectUnderTest().lookup(values, scales, 32, np.int64([index]), "float32")
    print(index, got[0, :4].tolist(), "where NaN, or an error, is right")
