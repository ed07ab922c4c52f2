"""ExecuTorch's WGSL embedding_q4gsw (cff6f4dd32) reads whatever an index outside the table names: give the tree's path.

The shader is bound by conformance/subjects/peers/executorch_webgpu_src.py: run this from the checkout's root.
"""

import sys

import numpy as np

from conformance.subjects.peers.executorch_webgpu_src import SubjectUnderTest

values, scales = np.full((4, 32), 7, np.int8), np.float32([[1], [2], [3], [4]])
got = SubjectUnderTest(sys.argv[1]).lookup(values, scales, 32, np.int32([0, 4, -1]), "float32")
print(got[:, 0], "where contract 7.3 has 7 and two NaN")
