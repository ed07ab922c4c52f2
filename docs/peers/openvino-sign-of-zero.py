"""OpenVINO 2026.4.1, CPU: a float32 scale of -0.0, or a negative one that is flushed, loses its sign in an i4 table.

The graph is made by conformance/subjects/peers/openvino.py: run this from the checkout's root.
"""

import numpy as np

from conformance.subjects.peers.openvino import SubjectUnderTest

values, scales = np.int8([[-8, 7], [-8, 7], [1, -1]]), np.float32([[-0.0], [-1e-40], [1]])
got = SubjectUnderTest().lookup(values, scales, 2, np.int64([0, 1, 2]), "float32")
print(got.tolist(), "where [[0.0, -0.0], [0.0, -0.0], [1.0, -1.0]] is right")
