"""The instructions that the executors know, by number; what is not here is named and refused, never skipped.

Source: SPIR-V specification 1.6, section 3.52.
"""

#: Instructions without a result.
_PLAIN = {
    3: "OpSource", 4: "OpSourceExtension", 5: "OpName", 6: "OpMemberName", 8: "OpLine", 10: "OpExtension",
    14: "OpMemoryModel", 15: "OpEntryPoint", 16: "OpExecutionMode", 17: "OpCapability", 56: "OpFunctionEnd",
    62: "OpStore", 71: "OpDecorate", 72: "OpMemberDecorate", 99: "OpImageWrite", 246: "OpLoopMerge",
    247: "OpSelectionMerge", 249: "OpBranch", 250: "OpBranchConditional", 251: "OpSwitch", 252: "OpKill",
    253: "OpReturn", 255: "OpUnreachable", 317: "OpNoLine", 330: "OpModuleProcessed",
}  # fmt: skip
#: Instructions with a result id and no type.
_IDS = {
    7: "OpString", 11: "OpExtInstImport", 19: "OpTypeVoid", 20: "OpTypeBool", 21: "OpTypeInt", 22: "OpTypeFloat",
    23: "OpTypeVector", 24: "OpTypeMatrix", 25: "OpTypeImage", 26: "OpTypeSampler", 27: "OpTypeSampledImage",
    28: "OpTypeArray", 29: "OpTypeRuntimeArray", 30: "OpTypeStruct", 32: "OpTypePointer", 33: "OpTypeFunction",
    248: "OpLabel",
}  # fmt: skip
#: Instructions with a type and a result id that are no plain function of scalars.
_TYPED = {
    1: "OpUndef", 12: "OpExtInst", 41: "OpConstantTrue", 42: "OpConstantFalse", 43: "OpConstant",
    44: "OpConstantComposite", 46: "OpConstantNull", 48: "OpSpecConstantTrue", 49: "OpSpecConstantFalse",
    50: "OpSpecConstant", 51: "OpSpecConstantComposite", 52: "OpSpecConstantOp", 54: "OpFunction",
    55: "OpFunctionParameter", 57: "OpFunctionCall", 59: "OpVariable", 61: "OpLoad", 65: "OpAccessChain",
    66: "OpInBoundsAccessChain", 68: "OpArrayLength", 77: "OpVectorExtractDynamic", 79: "OpVectorShuffle",
    80: "OpCompositeConstruct", 81: "OpCompositeExtract", 82: "OpCompositeInsert", 83: "OpCopyObject",
    95: "OpImageFetch", 100: "OpImage", 124: "OpBitcast", 142: "OpVectorTimesScalar", 154: "OpAny", 155: "OpAll",
    245: "OpPhi",
}  # fmt: skip
#: Functions of scalars, applied lane by lane: number -> name, and the domain's method with its operation.
LANES = {
    109: ("OpConvertFToU", "convert"), 110: ("OpConvertFToS", "convert"), 111: ("OpConvertSToF", "convert"),
    112: ("OpConvertUToF", "convert"), 115: ("OpFConvert", "convert"), 126: ("OpSNegate", "integer"),
    127: ("OpFNegate", "real"), 128: ("OpIAdd", "integer"), 129: ("OpFAdd", "real"), 130: ("OpISub", "integer"),
    131: ("OpFSub", "real"), 132: ("OpIMul", "integer"), 133: ("OpFMul", "real"), 134: ("OpUDiv", "integer"),
    135: ("OpSDiv", "integer"), 136: ("OpFDiv", "real"), 137: ("OpUMod", "integer"), 138: ("OpSRem", "integer"),
    139: ("OpSMod", "integer"), 164: ("OpLogicalEqual", "logical"), 165: ("OpLogicalNotEqual", "logical"),
    166: ("OpLogicalOr", "logical"), 167: ("OpLogicalAnd", "logical"), 168: ("OpLogicalNot", "logical"),
    169: ("OpSelect", "select"), 170: ("OpIEqual", "compare"), 171: ("OpINotEqual", "compare"),
    172: ("OpUGreaterThan", "compare"), 173: ("OpSGreaterThan", "compare"), 174: ("OpUGreaterThanEqual", "compare"),
    175: ("OpSGreaterThanEqual", "compare"), 176: ("OpULessThan", "compare"), 177: ("OpSLessThan", "compare"),
    178: ("OpULessThanEqual", "compare"), 179: ("OpSLessThanEqual", "compare"), 194: ("OpShiftRightLogical", "integer"),
    195: ("OpShiftRightArithmetic", "integer"), 196: ("OpShiftLeftLogical", "integer"),
    197: ("OpBitwiseOr", "integer"), 198: ("OpBitwiseXor", "integer"), 199: ("OpBitwiseAnd", "integer"),
    200: ("OpNot", "integer"),
}  # fmt: skip

NAMES: dict[int, str] = {**_PLAIN, **_IDS, **_TYPED, **{code: name for code, (name, _kind) in LANES.items()}}
#: Whether an instruction has a type and a result id, as 0 or 1 each.
SHAPES: dict[int, tuple[int, int]] = {
    **dict.fromkeys(_IDS, (0, 1)),
    **dict.fromkeys((*_TYPED, *LANES), (1, 1)),
}
