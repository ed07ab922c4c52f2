"""The README that every exported kit carries.

Source: docs/kits.md.
"""

README = """# Kits: play these on your runtime

Each directory is one question to a runtime. It needs no Python to be played: load `model.pte`, give method `forward`
the input files, and write what it returns to files. The answers are judged later, anywhere, from the files alone.

In each directory:

| file | what |
|---|---|
| `model.pte` | the program. Lookups are in a Vulkan delegate, the rest runs on the CPU kernels |
| `input_0.bin`, ... | the inputs, in order: raw elements, little-endian, row-major, no header |
| `case.json` | dtype and shape of every file, its SHA-256, and how each output is judged |
| `product_N.bin` | the exact products (float64) that output N holds after one rounding (float32) or two (float16) |
| `values_N.bin`, `scales_N.bin` | the int8 values and the scales they are products of |
| `expected_N.bin` | the bits of an output that is no product |
| `exact_N.bin`, `bound_N.bin` | a dot product's exact value, and how far a float32 sum to nearest even may be off |
| `bound_any_N.bin` | the same where the shader declares no rounding to nearest even for 32 bit |
| `case.toml` | the case itself: `python -m conformance` can build it again |
| `model.bpte` | a convenience: program, inputs and rounded outputs as ExecuTorch bundles them; no verdict (see below) |

Steps:

1. Read `inputs` of `case.json`. For each, read the file into a tensor of that dtype and shape.
2. Load `model.pte`, run method `forward`.
3. For each entry of `outputs`, in order, write the tensor's elements raw and little-endian to `OUT/CASE/FILE`, where
   CASE is the directory's name and FILE the entry's `file`. A float16 is 2 bytes; convert nothing.
4. Bring OUT back and run `python -m conformance judge KITS OUT`.

There is no tolerance. Without a device profile every element must be the product rounded to nearest even. If your
shader does not declare RoundingModeRTE, DenormPreserve or SignedZeroInfNanPreserve, say what it does declare in a
profile (`--device-profile`), and what the device is then free to do is accepted:

    execution_modes = ["RoundingModeRTE 32", "DenormPreserve 16"]
    precise = true            # the product is decorated NoContraction
    io_storage = "texture3d"  # or "buffer"
    device = "my phone"

ExecuTorch's runner can load `model.bpte` and compare, but with a tolerance: a wrong last bit passes there.
"""
