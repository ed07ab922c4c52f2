"""LiteRT 2.3.0: int4 EMBEDDING_LOOKUP loses what scales below 2**-122 have in their last four bits.

The file of one operator is made by conformance/subjects/peers/litert.py: run this from the checkout's root.
"""

import numpy as np

from conformance.subjects.peers.litert import SubjectUnderTest

values = np.int8([[-8, 7, 1, -1]])
for scale in (np.float32(1.1 * 2**-122), np.float32(1.1 * 2**-123), np.float32(2**-149)):
    got = SubjectUnderTest().lookup(values, scale.reshape(1, 1), 4, np.int32([0]), "float32")
    print(f"scale {scale:.4g}: {got[0]}, right {values[0] * scale}")
